"""Rows: one JSON object a line, in NeMo Gym's shape for RL and OpenAI chat for SFT, read with one clear line for each bad one.

Unknown keys are never dropped: they are the payload a verifier gets.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

# Cascade-2 rows without agent_ref are told apart by these keys, in this order [paper, section 9].
TYPE_BY_KEY = {
    "schema_str": "structured_outputs",
    "ground_truth": "workplace_assistant",
    "environment_name": "workplace_assistant",
    "instruction_id_list": "instruction_following",
    "options": "mcqa",
    "expected_answer": "math",
    "golden_patch": "swe_repair",
}
AGENT_SUFFIX = "_simple_agent"
# Names of NeMo Gym's servers for what has another name here.
ALIASES = {
    "math_with_judge": "math",
    "ns_tools": "math_with_python",
    "ifbench": "instruction_following",
    "mrcr": "long_context",
    "ruler": "long_context",
    "equivalence_llm_judge": "long_context",
    "lc_judge": "long_context",
    "structured_outputs_v3": "structured_outputs",
    "structured_outputs_v4": "structured_outputs",
}


class DataError(ValueError):
    """A row or file that cannot be used; the message names the file and the row and says what to do."""


@dataclass
class Reading:
    """How a file was read: the line number of every good row, and what `on_bad_row="skip"` left out ("file:row reason")."""

    numbers: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def load_rows(
    path: str | Path,
    kind: str,
    on_bad_row: str = "stop",
    environments: Iterable[str] = (),
    unverifiable: Callable[[list[dict]], list[str | None]] = lambda rows: [None] * len(rows),
) -> tuple[list[dict], Reading]:
    """All good rows of a JSONL file, and how it was read.

    kind "rl" wants a prompt, an environment out of `environments` and what that environment needs to verify a reply
    (`unverifiable` tells what is wrong with each), "sft" wants messages that end with the assistant's. Raises DataError for a
    missing or empty file, for a bad row unless on_bad_row is "skip", and when no row is left.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; check data_path, or write the demo data with python -m nemo_cascade.data.demo")
    known = set(environments)
    with open(path, encoding="utf-8") as file:
        parsed = [(number, *parse_line(line)) for number, line in enumerate(file, start=1) if line.strip()]
    if kind == "rl":
        read = [(number, row, problem or rl_problem(row, known)) for number, row, problem in parsed]
        found = iter(unverifiable([row for _, row, problem in read if not problem]))
        read = [(number, row, problem or next(found)) for number, row, problem in read]
    else:
        read = [(number, row, problem or sft_problem(row)) for number, row, problem in parsed]
    rows, reading = [], Reading()
    for number, row, problem in read:
        if not problem:
            rows.append(row)
            reading.numbers.append(number)
        elif on_bad_row == "skip":
            reading.skipped.append(f"{path}:{number} {problem}")
        else:
            raise DataError(f"{path}, row {number}: {problem}; mend the row or set data.on_bad_row=skip")
    if reading.skipped:
        logger.warning("skipped %d rows:\n%s", len(reading.skipped), "\n".join(reading.skipped))
    if not rows:
        raise DataError(f"{path}: no usable row in this file ({len(reading.skipped)} skipped)")
    return rows, reading


def rl_problem(row: dict, environments: set[str]) -> str | None:
    """What keeps a row from being sampled and verified, None when nothing does."""
    try:
        messages = messages_of(row)
        name = environment_of(row)
    except DataError as error:
        return str(error)
    problem = _messages_problem(messages)
    if problem:
        return problem
    if messages[-1]["role"] == "assistant":
        return "the prompt ends with an assistant message; it must end where the model is to answer"
    if name not in environments:
        return f"unknown environment {name!r}; known are {', '.join(sorted(environments))}"
    return None


def sft_problem(row: dict) -> str | None:
    """What keeps a row from being trained on, None when nothing does."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return "no list of messages under 'messages'"
    problem = _messages_problem(messages)
    if problem:
        return problem
    if messages[-1]["role"] != "assistant":
        return f"the last message is of role {messages[-1]['role']!r}, not 'assistant'"
    return None


def messages_of(row: dict) -> list[dict]:
    """The prompt's chat messages; a plain string becomes one user message. Raises DataError without a prompt.

    Rows released for agentless SWE have no responses_create_params but their prompt under `prompt`.
    """
    params = row.get("responses_create_params", {"input": row.get("prompt")})
    prompt = params.get("input") if isinstance(params, dict) else None
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt.strip() else None
    if not isinstance(prompt, list) or not prompt:
        raise DataError("no prompt under responses_create_params.input (a list of messages or a string)")
    return prompt


def tools_of(row: dict) -> list[dict] | None:
    """Tool definitions of a row in chat-completions form ({"type": "function", "function": {...}}), None without any.

    Raises DataError for what are none.
    """
    params = row.get("responses_create_params")
    tools = (params.get("tools") if isinstance(params, dict) else None) or row.get("tools") or []
    if not isinstance(tools, list) or not all(map(_is_tool, tools)):
        raise DataError("tools must be a list of objects, each with the name and perhaps the parameters (a schema) of a function")
    chat = []
    for tool in tools:
        flat = {key: value for key, value in tool.items() if key not in ("type", "strict")}
        chat.append(tool if "function" in tool else {"type": "function", "function": flat})
    return chat or None


def _is_tool(tool) -> bool:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    parameters = function["parameters"] if function.get("parameters") is not None else {}
    properties = parameters.get("properties", {}) if isinstance(parameters, dict) else None
    return isinstance(properties, dict) and all(isinstance(schema, dict | bool) for schema in properties.values())


def server_of(row: dict) -> str | None:
    """The name of NeMo Gym's server that the row's agent_ref means, None without one."""
    reference = row.get("agent_ref")
    if isinstance(reference, dict) and isinstance(reference.get("name"), str):
        return reference["name"].removesuffix(AGENT_SUFFIX)
    return None


def environment_of(row: dict) -> str:
    """The environment's name: from agent_ref, else by the keys the row carries. Raises DataError when neither tells."""
    name = server_of(row)
    if name is not None:
        return ALIASES.get(name, name)
    for key, name in TYPE_BY_KEY.items():
        if row.get(key) is not None:
            return name
    raise DataError("no environment: neither agent_ref.name nor a key that tells the type of the row")


def prompt_id(row: dict) -> str:
    """sha256 (hex) of the whole row, so that equal rows have equal noise wherever they stand in a file."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def parse_line(line: str | bytes) -> tuple[dict, str | None]:
    """The object of a line, and what is wrong with the line; the object is empty then."""
    try:
        row = json.loads(line)
    # An integer of thousands of digits is no JSONDecodeError, nor is what is nested thousands deep.
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON ({error})"
    return (row, None) if isinstance(row, dict) else ({}, f"a JSON {type(row).__name__}, not an object")


def _messages_problem(messages: list) -> str | None:
    if not messages:
        return "the list of messages is empty"
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {place} is not an object with a role"
        if not isinstance(message.get("content") or "", str):
            return f"the content of message {place} is not text"
    if not any((message.get("content") or "").strip() or message.get("tool_calls") for message in messages):
        return "all messages are empty"
    return None
