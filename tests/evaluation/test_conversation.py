"""However a server tells a reply, it is the same response; and what comes of a conversation."""

import asyncio
import json

import pytest

from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.environments.endpoint import Silence
from nemo_cascade.environments.response import answer_of
from nemo_cascade.evaluation import conversation
from nemo_cascade.evaluation.benchmark import Settings
from nemo_cascade.evaluation.conversation import completed, converse, items, read
from nemo_cascade.sandbox import SandboxError

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"properties": {"item": {"type": "string"}}}}}]
CALL = {"name": "add", "arguments": {"item": "5"}}
TEXT_CALL = f"First this.\n{render_tool_call(CALL)}"
FIELD_CALL = {"id": "0-0", "type": "function", "function": {"name": "add", "arguments": '{"item": "5"}'}}


def told(message: dict, finish: str = "stop", thinking: bool = True, tools=None) -> list[tuple]:
    """(type, what it says) of the items of a turn."""
    answer = {"choices": [{"message": message, "finish_reason": finish}], "usage": {"completion_tokens": 3}}
    found = items(completed(read(answer), thinking, tools, 0))
    return [(one["type"], one.get("arguments") or (one.get("summary") or one["content"])[0]["text"]) for one in found]


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Yes.", "reasoning_content": "Hm."},
        {"content": "Yes.", "reasoning": "Hm."},
        {"content": "Hm.</think>Yes."},
    ],
)
def test_a_thought_is_a_thought_in_a_field_or_in_the_text(message):
    assert told(message) == [("reasoning", "Hm."), ("message", "Yes.")]


def test_what_was_cut_inside_its_thought_has_no_answer():
    assert told({"content": "It must be \\boxed{7}, or"}, "length") == [("reasoning", "It must be \\boxed{7}, or")]
    assert told({"content": "", "reasoning": "It must be"}, "length") == [("reasoning", "It must be"), ("message", "")]
    assert told({"content": "It must be"}, "length", thinking=False) == [("message", "It must be")]
    assert told({"content": "No thought at all."}) == [("message", "No thought at all.")]


@pytest.mark.parametrize("message", [{"content": TEXT_CALL}, {"content": "First this.", "tool_calls": [FIELD_CALL]}])
def test_a_call_is_a_call_in_a_field_or_in_the_text(message):
    assert told(message, tools=TOOLS) == [("message", "First this."), ("function_call", '{"item": "5"}')]


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{"message": {"content": 5}}]}, {"choices": [{"message": {"tool_calls": [5]}}]}])
def test_what_is_no_answer_is_none(answer):
    with pytest.raises((ValueError, LookupError, TypeError, AttributeError)):
        read(answer)


class Session:
    """Counts what it adds; ends when it is told to."""

    max_steps, finished, closed = 9, False, False

    def __init__(self):
        self.items = []

    def call(self, name, arguments):
        item = json.loads(arguments)["item"]
        if item == "broken":
            raise SandboxError("the host is gone")
        if item == "wrong":
            raise KeyError("wrong")
        self.finished = item == "end"
        self.items.append(item)
        return f"{len(self.items)} items"

    def outcome(self):
        return {"items": self.items}

    def close(self):
        self.closed = True


def conversed(monkeypatch, says: list[list[str]], turns: int = 4):
    """(reply, session, messages of each request): a model that adds these items, turn by turn."""
    session, requests = Session(), []

    async def speak(messages, tools):
        requests.append(messages)
        if len(requests) > len(says):
            return Silence("judge_unreachable")
        calls = [{"id": item, "function": {"name": "add", "arguments": json.dumps({"item": item})}} for item in says[len(requests) - 1]]
        message = {"content": "" if calls else "Done.", "reasoning": "Hm.", "tool_calls": calls}
        return read({"choices": [{"message": message}], "usage": {"completion_tokens": 5}})

    monkeypatch.setattr(conversation.environments, "session", lambda row: session)
    row = {"responses_create_params": {"input": "Add.", "tools": TOOLS}, "enable_thinking": True}
    settings = Settings(1, 1.0, 1.0, 100, "", turns=turns)
    return asyncio.run(converse(row, settings, speak)), session, requests


def test_tools_answer_until_the_model_calls_none(monkeypatch):
    reply, session, requests = conversed(monkeypatch, [["a", "wrong"], ["b"], []])
    assert (reply["finish"], reply["tokens"], reply["response"]["outcome"]) == ("stop", 15, {"items": ["a", "b"]})
    outputs = [item["output"] for item in reply["response"]["output"] if item["type"] == "function_call_output"]
    assert outputs == ["1 items", "Error: KeyError: 'wrong'", "2 items"] and answer_of(reply["response"]) == "Done."
    assert [message["role"] for message in requests[2]] == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert requests[2][1]["reasoning_content"] == "Hm." and requests[2][3]["tool_call_id"] == "wrong" and session.closed


def test_a_conversation_ends_with_its_session_or_its_turns(monkeypatch):
    assert conversed(monkeypatch, [["end"], ["b"]])[0]["finish"] == "stop"
    assert conversed(monkeypatch, [["a"]] * 9, turns=3)[0]["finish"] == "turns"


def test_nothing_is_made_of_a_model_or_a_host_that_is_gone(monkeypatch):
    reply, session, _ = conversed(monkeypatch, [["a"]])
    assert isinstance(reply, Silence) and session.closed
    reply, session, _ = conversed(monkeypatch, [["broken"]])
    assert isinstance(reply, SandboxError) and session.closed
