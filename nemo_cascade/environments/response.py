"""A reply as an OpenAI Responses object, and the answer inside one: what every verifier reads."""

import json
import re

from nemo_cascade.data.chat import parse_reply

END_OF_THOUGHT = "</think>"
# What a tool said, in the model's template.
_TOLD = re.compile(r"<tool_response>\n(.*?)\n</tool_response>", re.DOTALL)


def response_of(text: str, thinking: bool = True) -> dict:
    """A sampled reply as the `response` of a `/verify` call: its thought as a reasoning item, the rest as the message.

    With thinking=True the prompt ended inside a thought, so a reply that never closes it has no message at all.
    """
    thought, answer = split_reply(text, thinking)
    output = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": thought}]}] if thinking else []
    if answer is not None:
        content = [{"type": "output_text", "text": answer, "annotations": []}]
        output.append({"type": "message", "role": "assistant", "status": "completed", "content": content})
    return {"object": "response", "output": output}


def response_of_turns(texts: tuple[str, ...], thinking: bool = True, tools: list[dict] | None = None) -> dict:
    """A conversation as one response: texts are the model's turns and, between them, what it was told, as the template has it.

    A turn gives its thought, its message where it says anything, and its calls; what it was told, an output a call.
    """
    output: list[dict] = []
    for place, text in enumerate(texts):
        turn = place // 2
        if place % 2:
            told, asked = _TOLD.findall(text), [item["call_id"] for item in output if item.get("call_id", "").startswith(f"{turn}-")]
            # An answer may have the template's own tags in it.
            told = told if len(told) == len(asked) else [text] * len(asked)
            output += [
                {"type": "function_call_output", "call_id": call, "output": answer} for call, answer in zip(asked, told)
            ]
            continue
        thought_and_message = response_of(text, thinking)["output"]
        answer = split_reply(text, thinking)[1]
        message = parse_reply(answer or "", tools)
        calls = message.get("tool_calls", [])
        last = place == len(texts) - 1
        for item in thought_and_message:
            if item["type"] == "message" and calls:
                item["content"][0]["text"] = message["content"]
            if item["type"] != "message" or last or item["content"][0]["text"]:
                output.append(item)
        output += [
            {
                "type": "function_call",
                "call_id": f"{turn}-{number}",
                "name": call["name"],
                "arguments": json.dumps(call["arguments"]),
            }
            for number, call in enumerate(calls)
        ]
    return {"object": "response", "output": output}


def split_reply(text: str, thinking: bool = True) -> tuple[str, str | None]:
    """(thought, answer) of a sampled reply; the answer is None when a thought was begun and never closed."""
    if not thinking:
        return "", text
    thought, closed, answer = text.rpartition(END_OF_THOUGHT)
    return (thought, answer) if closed else (text, None)


def answer_of(response: dict) -> str:
    """The message text of a response, without a thought that was left in it; empty when there is no message."""
    return text_of(response).strip()


def text_of(response: dict) -> str:
    """The same with the space around it, for what a space can change."""
    texts = [
        part.get("text", "")
        for item in response.get("output", [])
        if item.get("type") == "message"
        for part in item.get("content", [])
        if part.get("type") == "output_text"
    ]
    return "".join(texts).rpartition(END_OF_THOUGHT)[2]


def last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} of a text, braces inside balanced; None without one."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for end in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : end].strip()
    return None
