"""SFT rows as conversations that the chat template knows: roles, thoughts, calls and what tools said, each in its own field.

Released rows are text throughout: thoughts inline in the content, calls too, and what tools said under role user, where the
template would take it for a new request and drop all thoughts before it. What a harness says to the model as a user (a
terminal's screen, OpenHands' observations) stays the user's, as it is when the model is at work there.
"""

import json
import re
from collections import Counter

from nemo_cascade.data.chat import parse_reply, render_tool_call
from nemo_cascade.data.prepare.outcome import Unusable
from nemo_cascade.data.rows import sft_problem

ROLES = {
    **{name: "system" for name in ("system", "developer")},
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "model")},
    **{name: "tool" for name in ("tool", "function", "observation", "ipython", "tool_response")},
}
# Names of the field for a thought, by the program that wrote it.
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_RESULTS = re.compile(r"(?:\s*<tool_response>.*?</tool_response>)+\s*", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)


def to_conversation(row: dict) -> tuple[dict, Counter]:
    """({"messages", "tools" where it has any}, what was mended and how often). Raises Unusable."""
    mended: Counter = Counter()
    if not isinstance(row.get("messages"), list):
        raise Unusable("no_messages", "no list of messages under 'messages'")
    messages: list[dict] = []
    for place, message in enumerate(row["messages"]):
        plain = _plain(message, place, mended)
        messages += _results(plain, messages, mended) or [plain]
    problem = sft_problem({"messages": messages})
    if problem:
        raise Unusable("no_answer", problem)
    conversation = {"messages": messages}
    tools = _tools(row.get("tools"))
    return (conversation | {"tools": tools} if tools else conversation), +mended


def _plain(message: object, place: int, mended: Counter) -> dict:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Unusable("malformed", f"message {place} is not an object with a role")
    role = ROLES.get(message["role"].lower())
    if role is None:
        raise Unusable("malformed", f"message {place} has the role {message['role']!r}; known are {', '.join(ROLES)}")
    mended["roles"] += role != message["role"]
    plain = {"role": role, "content": _text(message.get("content"), place)}
    if role != "assistant":
        return plain
    if message.get("tool_calls"):
        plain["tool_calls"] = _calls(message["tool_calls"], place)
    given = (message.get(name) for name in THOUGHTS)
    thought = next((text for text in given if isinstance(text, str) and text.strip()), None)
    mended["thought_fields"] += thought is not None and message.get("reasoning_content") != thought
    return _with_thought(plain, thought, place, mended)


def _with_thought(plain: dict, thought: str | None, place: int, mended: Counter) -> dict:
    """The thought in its field, calls in theirs; no field where nothing was thought."""
    content = plain["content"]
    if "</think>" in content and "<think>" not in content:
        # The template of the model that wrote it had the opening tag in the prompt.
        content = f"<think>{content}"
        mended["thoughts_opened"] += 1
    if "<think>" in content and "</think>" not in content:
        raise Unusable("thought_without_end", f"message {place} begins a thought and does not end it")
    inline = _THOUGHT.fullmatch(content)
    if inline:
        thought, content = thought or inline[1], inline[2]
    if "<think>" in content or "</think>" in content:
        raise Unusable("thoughts_nested", f"message {place} has a <think> or </think> beside that of its thought")
    calls = plain.get("tool_calls") or _inline_calls(content)
    if calls and "tool_calls" not in plain:
        content = content[: content.index("<tool_call>")]
        mended["calls_inline"] += 1
    if not content.strip() and not calls:
        raise Unusable("no_answer", f"message {place} of the assistant says nothing")
    answer = {"role": "assistant", "content": content.strip()}
    if thought and thought.strip():
        answer["reasoning_content"] = thought.strip()
    return answer | ({"tool_calls": calls} if calls else {})


def _inline_calls(content: str) -> list[dict]:
    """Calls at the end of a text, if the template writes them exactly so again; else they stay the text that they are."""
    start = content.find("<tool_call>")
    if start < 0:
        return []
    read = parse_reply(content)
    calls = read.get("tool_calls", [])
    try:
        again = "\n".join(map(render_tool_call, calls))
    except ValueError:
        return []
    return [{"function": call} for call in calls] if again == content[start:].strip() else []


def _results(message: dict, before: list[dict], mended: Counter) -> list[dict]:
    """What tools said, stored as the user's: in the protocol's tags, or right behind a call. Empty for words of a user."""
    if message["role"] != "user" or not before or before[-1]["role"] not in ("assistant", "tool"):
        return []
    if _RESULTS.fullmatch(message["content"]):
        results = _RESULT.findall(message["content"])
    elif before[-1].get("tool_calls") or before[-1]["content"].endswith("</tool_call>"):
        results = [message["content"]]
    else:
        return []
    mended["tool_results"] += 1
    return [{"role": "tool", "content": result} for result in results]


def _calls(calls: object, place: int) -> list[dict]:
    """OpenAI's shape with arguments that are read."""
    read = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function", call) if isinstance(call, dict) else None
        try:
            arguments = function["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if not isinstance(function["name"], str) or not isinstance(arguments, dict):
                raise TypeError("no name, or arguments that are no object")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise Unusable("malformed", f"a call of message {place} cannot be read: {error}") from error
        read.append({"function": {"name": function["name"], "arguments": arguments}})
    return read


def _text(content: object, place: int) -> str:
    """The text of a content, also of OpenAI's list of parts."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Unusable("malformed", f"the content of message {place} is not text")
    return content


def _tools(tools: object) -> list | None:
    """Definitions, also where they are stored as JSON text."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except (ValueError, RecursionError) as error:
            raise Unusable("malformed", f"tools are not JSON ({error})") from error
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise Unusable("malformed", "tools are not a list of objects")
    return tools or None
