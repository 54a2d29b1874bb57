"""The calls of tools that a response makes, and their arguments."""

import json

from nemo_cascade.data.chat import parse_reply
from nemo_cascade.environments.response import answer_of

# Longer than any context; reading calls out of more would only take time.
MAX_MESSAGE = 2_000_000


def calls_of(response: dict, tools: list[dict]) -> list[dict] | None:
    """[{"name", "arguments"}, ...] in order: the response's function_call items, else those that its message spells out.

    None when it has neither calls nor a message, so that the model never came to an answer, or when the message has no end.
    What cannot be read as a call is none, as with Gym, whose model server leaves it in the message's text.
    """
    items = [item for item in response.get("output") or () if isinstance(item, dict)]
    calls = [
        {"name": item.get("name"), "arguments": item.get("arguments")} for item in items if item.get("type") == "function_call"
    ]
    if calls:
        return calls
    if not any(item.get("type") == "message" for item in items):
        return None
    text = answer_of(response)
    return parse_reply(text, tools).get("tool_calls", []) if len(text) <= MAX_MESSAGE else None


def arguments_of(given) -> dict | None:
    """Arguments as a dict, given so or as JSON; None for what is neither."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    return given if isinstance(given, dict) else None
