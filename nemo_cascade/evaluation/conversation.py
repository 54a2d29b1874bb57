"""One reply over an endpoint, as an OpenAI response: a single turn, or, where the row has tools and the benchmark more than one turn, as
many as it takes.

What a server makes of a reply differs: a thought may stand in a field of its own or before `</think>` in the text, calls may be read
already or stand in the text as the model's template has them. Both become the same.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nemo_cascade import environments
from nemo_cascade.data.chat import parse_reply
from nemo_cascade.data.rows import messages_of, tools_of
from nemo_cascade.environments import foreign
from nemo_cascade.environments.response import END_OF_THOUGHT
from nemo_cascade.evaluation.benchmark import Settings
from nemo_cascade.evaluation.replies import Reply
from nemo_cascade.rollout.protocol import shortened
from nemo_cascade.sandbox import SandboxError


@dataclass(frozen=True)
class Turn:
    """What a model said at once. text: what is no thought, None where it never came to any. calls: [{"id", "name", "arguments"}, ...]."""

    thought: str | None
    text: str | None
    calls: list[dict]
    finish: str
    tokens: int


def read(answer: dict) -> Turn:
    """A turn of an answer of `/chat/completions`; calls that stand in its text are not read yet. Raises what `Endpoint.send` takes."""
    choice = answer["choices"][0]
    message, finish = choice["message"], choice.get("finish_reason") or "stop"
    thought = message.get("reasoning_content") or message.get("reasoning")
    text = message.get("content") or ""
    if not isinstance(text, str) or not isinstance(thought or "", str):
        raise TypeError("what is said is a text")
    calls = [
        {"id": str(call["id"]), "name": str(call["function"]["name"]), "arguments": str(call["function"]["arguments"])}
        for call in message.get("tool_calls") or []
    ]
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    text = foreign.plain(text)
    if thought is None and END_OF_THOUGHT in text:
        thought, _, text = text.rpartition(END_OF_THOUGHT)
    told = foreign.plain(thought) if thought else None
    return Turn(told, text, calls, "length" if finish == "length" else "stop", tokens if isinstance(tokens, int) else 0)


def completed(turn: Turn, thinking: bool, tools: list[dict] | None, number: int) -> Turn:
    """The same with the calls out of its text; a turn that was cut inside its thought says nothing."""
    thought, text, calls = turn.thought, turn.text, turn.calls
    if thinking and thought is None and turn.finish == "length":
        return Turn(text, None, [], turn.finish, turn.tokens)
    if tools and not calls and "<tool_call>" in text:
        message = parse_reply(text, tools)
        calls = [
            {"id": f"{number}-{place}", "name": call["name"], "arguments": json.dumps(call["arguments"])}
            for place, call in enumerate(message.get("tool_calls", []))
        ]
        text = message["content"] if calls else text
    return Turn(thought, text, calls, turn.finish, turn.tokens)


async def converse(row: dict, settings: Settings, speak: Callable[[list[dict], list[dict] | None], Awaitable]) -> Reply | object:
    """The reply to a row. speak(messages, tools): the model's next Turn, or why there is none, which is given back then, as is a
    SandboxError of its tools."""
    tools, thinking = tools_of(row), row["enable_thinking"]
    session = await asyncio.to_thread(environments.session, row) if settings.turns > 1 else None
    messages, output, tokens, finish = messages_of(row), [], 0, "turns"
    try:
        for number in range(min(settings.turns, session.max_steps) if session is not None else 1):
            turn = await speak(messages, tools)
            if not isinstance(turn, Turn):
                return turn
            turn = completed(turn, thinking, tools, number)
            tokens += turn.tokens
            output += items(turn)
            if session is None or not turn.calls or turn.finish == "length":
                finish = turn.finish
                break
            answers = await asyncio.to_thread(_answers, session, turn.calls)
            if isinstance(answers, SandboxError):
                return answers
            output += [
                {"type": "function_call_output", "call_id": call["id"], "output": said} for call, said in zip(turn.calls, answers)
            ]
            if getattr(session, "finished", False):
                finish = "stop"
                break
            messages = [*messages, spoken(turn), *map(told, turn.calls, answers)]
        outcome = {"outcome": session.outcome()} if hasattr(session, "outcome") else {}
    finally:
        getattr(session, "close", lambda: None)()
    return {"response": {"object": "response", "output": output, **outcome}, "finish": finish, "tokens": tokens}


def items(turn: Turn) -> list[dict]:
    """A turn as items of a response."""
    found: list[dict] = []
    if turn.thought is not None:
        found.append({"type": "reasoning", "summary": [{"type": "summary_text", "text": turn.thought}]})
    if turn.text is not None and (turn.text or not turn.calls):
        content = [{"type": "output_text", "text": turn.text, "annotations": []}]
        found.append({"type": "message", "role": "assistant", "status": "completed", "content": content})
    calls = [{"call_id": call["id"], "name": call["name"], "arguments": call["arguments"]} for call in turn.calls]
    return found + [{"type": "function_call", **call} for call in calls]


def spoken(turn: Turn) -> dict:
    """A turn as a message of the conversation that goes on."""
    calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}} for call in turn.calls
    ]
    # Inside of one request the model sees what it thought before.
    thought = {"reasoning_content": turn.thought} if turn.thought is not None else {}
    return {"role": "assistant", "content": turn.text or "", **thought, "tool_calls": calls}


def told(call: dict, answer: str) -> dict:
    """What a tool said as a message."""
    return {"role": "tool", "tool_call_id": call["id"], "content": answer}


def _answers(session, calls: list[dict]) -> list[str] | SandboxError:
    """What the tools say; errors are said too, save those of the host."""
    answers = []
    try:
        getattr(session, "prepare", lambda: None)()
        for call in calls:
            try:
                answers.append(shortened(str(session.call(call["name"], call["arguments"]))))
            except SandboxError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a tool does, the model is told
                answers.append(shortened(f"Error: {type(error).__name__}: {error}"))
    except SandboxError as error:
        return error
    return answers
