"""`/v1/chat/completions` over a `Model`: what is asked as messages, tools and settings, and what is said as OpenAI's chunks or as one answer.

Keys that would change an answer in a way that is not here (several choices, stop strings, log-probs, formats) are refused by name.
"""

import json
import secrets
import time
from dataclasses import dataclass

from nemo_cascade.chat.turns import Called, Ended, Said, Settings, Thought, Turn
from nemo_cascade.data.rows import DataError, tools_of

ROLES = ("system", "developer", "user", "assistant", "tool")
READ = {"model", "messages", "tools", "tool_choice", "stream", "stream_options", "temperature", "top_p", "seed"}
READ |= {"max_tokens", "max_completion_tokens", "chat_template_kwargs", "thinking_token_budget"}
# Say nothing about the answer.
IGNORED = {"user", "metadata", "store", "parallel_tool_calls", "service_tier", "include_reasoning", "safety_identifier", "prompt_cache_key"}
NEUTRAL = {"n": 1, "repetition_penalty": 1, "top_k": -1}


class Refused(ValueError):
    """A request that is not answered; status is HTTP's."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Asked:
    """A request, read."""

    messages: list[dict]
    tools: list[dict] | None
    settings: Settings
    stream: bool
    with_usage: bool


def asked(body: object, model: str) -> Asked:
    """Raises Refused naming the key that is wrong."""
    if not isinstance(body, dict):
        raise Refused("a JSON object is wanted, with model and messages")
    if body.get("model", model) != model:
        raise Refused(f"model: there is no {body['model']!r} here, only {model!r}", 404)
    others = set(body) - READ - IGNORED
    unknown = sorted(key for key in others if body[key] not in (None, False, 0, [], {}, "", NEUTRAL.get(key, 0)))
    if unknown:
        raise Refused(f"{', '.join(unknown)}: not done by this server; leave it out")
    template = typed(body, "chat_template_kwargs", dict, {})
    if odd := sorted(set(template) - {"enable_thinking"}):
        raise Refused(f"chat_template_kwargs.{odd[0]}: only enable_thinking is known")
    settings = settings_of(
        {
            "thinking": template.get("enable_thinking", True),
            "budget": body.get("thinking_token_budget"),
            "max_tokens": body.get("max_completion_tokens") or body.get("max_tokens"),
            **{key: body[key] for key in ("temperature", "top_p", "seed") if body.get(key) is not None},
        }
    )
    choice = body.get("tool_choice") or "auto"
    if choice not in ("auto", "none"):
        raise Refused("tool_choice: auto or none")
    try:
        tools = tools_of({"tools": body.get("tools") or []}) if choice == "auto" else None
    except DataError as error:
        raise Refused(str(error)) from error
    options = typed(body, "stream_options", dict, {})
    return Asked(messages_of(body.get("messages")), tools, settings, bool(body.get("stream")), bool(options.get("include_usage")))


def settings_of(given: dict) -> Settings:
    """Settings by their names here. Raises Refused for one of another type or out of its range."""
    bounds = {"budget": (0, None), "max_tokens": (1, None), "seed": (0, 2**40), "temperature": (0, 100), "top_p": (0, 1)}
    for name, value in given.items():
        if name == "thinking":
            good = isinstance(value, bool)
        else:
            low, high = bounds[name]
            number = int | float if name in ("temperature", "top_p") else int
            good = isinstance(value, number) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
            good = good or value is None and name in ("budget", "max_tokens", "seed")
        if not good:
            raise Refused(f"{name}: {value!r} cannot be taken")
    return Settings(**given)


def messages_of(given: object) -> list[dict]:
    """Messages whose content is one text. Raises Refused naming the first that cannot be read."""
    if not isinstance(given, list) or not given:
        raise Refused("messages: a list with at least one message is wanted")
    return [_message(place, message) for place, message in enumerate(given)]


def _message(place: int, message: object) -> dict:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise Refused(f"messages[{place}]: an object is wanted whose role is one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content or "", str):
        raise Refused(f"messages[{place}].content: a text is wanted")
    tokens = message.get("tokens")
    if tokens is not None and not (isinstance(tokens, list) and all(type(token) is int for token in tokens)):
        raise Refused(f"messages[{place}].tokens: ids are wanted")
    kept = {key: message[key] for key in ("tool_calls", "tool_call_id", "tokens") if message.get(key) is not None}
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str):
        kept["reasoning_content"] = thought
    role = "system" if message["role"] == "developer" else message["role"]
    return {"role": role, "content": content or "", **kept}


def typed(body: dict, key: str, kind: type, default):
    value = default if body.get(key) is None else body[key]
    if not isinstance(value, kind):
        raise Refused(f"{key}: {value!r} cannot be taken")
    return value


class Answer:
    """OpenAI's forms of one turn."""

    def __init__(self, model: str):
        self.model, self.id, self.created = model, f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.calls = 0

    def chunk(self, event: Thought | Said | Called | Ended) -> dict:
        match event:
            case Thought(text):
                return self._chunk({"reasoning_content": text})
            case Said(text):
                return self._chunk({"content": text})
            case Called():
                self.calls += 1
                return self._chunk({"tool_calls": [{"index": self.calls - 1, **call_of(event)}]})
            case Ended(reason):
                return self._chunk({}, reason)

    def first(self) -> dict:
        return self._chunk({"role": "assistant", "content": ""})

    def usage(self, turn: Turn) -> dict:
        """The chunk that counts tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(turn)}

    def whole(self, turn: Turn) -> dict:
        """Of a turn that has ended."""
        message = {key: value for key, value in turn.message.items() if key != "tokens"}
        if turn.calls:
            message["tool_calls"] = [call_of(call) for call in turn.calls]
        choice = {"index": 0, "message": message, "finish_reason": turn.end.reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage_of(turn)}

    def _chunk(self, delta: dict, reason: str | None = None) -> dict:
        return {**self._head("chat.completion.chunk"), "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def call_of(call: Called) -> dict:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def usage_of(turn: Turn) -> dict:
    read, wrote = turn.end.prompt_tokens or 0, turn.end.tokens or 0
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
