"""A model behind an OpenAI-compatible endpoint, as it streams: vLLM, NIM, `nemo-cascade serve`, a hosted one.

Thoughts and calls must be told apart by the server (vLLM: --reasoning-parser, --tool-call-parser). What it encodes the conversation to is its
own affair: here there are no ids.
"""

import json
import os
from collections.abc import Iterator

import httpx

from nemo_cascade.chat.turns import Called, ChatError, Ended, Event, Said, Settings, Thought, Turn
from nemo_cascade.environments import foreign
from nemo_cascade.environments.tool_calls import arguments_of

CONNECT_SECONDS = 10.0
# What the API has of a message; `tokens` are of no use there.
FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")


class Served:
    """A `Model`. base_url ends in /v1 as a rule; key_env names the variable with the key; timeout: seconds without a word."""

    def __init__(self, base_url: str, model: str | None = None, key_env: str | None = None, timeout: float = 600.0):
        """model None: the only one that is served there. Raises ChatError where none can be asked."""
        self.base_url = base_url.rstrip("/")
        key = os.environ.get(key_env or "", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS), headers=headers)
        self.name = model or self._only_model()

    def turn(self, messages: list[dict], tools: list[dict] | None, settings: Settings) -> Turn:
        return Turn(self._events(self._body(messages, tools, settings)))

    def close(self) -> None:
        self.client.close()

    def _only_model(self) -> str:
        url = f"{self.base_url}/models"
        try:
            answer = self.client.get(url)
            names = [str(model["id"]) for model in foreign.read(answer.content)["data"]] if answer.is_success else []
        except httpx.HTTPError as error:
            raise ChatError(f"{url} cannot be reached ({type(error).__name__}: {error}); is it running?") from error
        except (ValueError, LookupError, TypeError) as error:
            raise ChatError(f"{url} lists no models that can be read ({error}); name one with --model") from error
        if not answer.is_success:
            raise ChatError(f"{url} answered {answer.status_code}: {foreign.beginning(answer.content)}")
        if len(names) != 1:
            raise ChatError(f"{url} has {', '.join(names) or 'no model'}; name one with --model")
        return names[0]

    def _body(self, messages: list[dict], tools: list[dict] | None, settings: Settings) -> dict:
        """Only vLLM and its kin know how to end a thought and how to leave it out, so both are asked for only where they are wanted."""
        body = {"model": self.name, "messages": [_sent(message) for message in messages], "stream": True}
        body |= {"temperature": settings.temperature, "top_p": settings.top_p, "stream_options": {"include_usage": True}}
        wanted = {
            "max_tokens": settings.max_tokens,
            "seed": settings.seed,
            "tools": tools or None,
            "thinking_token_budget": settings.budget if settings.thinking else None,
            "chat_template_kwargs": None if settings.thinking else {"enable_thinking": False},
        }
        return body | {key: value for key, value in wanted.items() if value is not None}

    def _events(self, body: dict) -> Iterator[Event]:
        url = f"{self.base_url}/chat/completions"
        try:
            with self.client.stream("POST", url, content=foreign.write(body), headers={"Content-Type": "application/json"}) as answer:
                if not answer.is_success:
                    raise ChatError(f"{url} answered {answer.status_code}: {foreign.beginning(answer.read())}")
                yield from events_of(_data(answer.iter_lines()))
        except httpx.HTTPError as error:
            raise ChatError(f"{url}: {type(error).__name__}: {error}; is it running?") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ChatError(f"{url} streams what no chat completion is ({type(error).__name__}: {error})") from error


def events_of(chunks: Iterator[dict]) -> Iterator[Event]:
    """The events of a streamed chat completion. Raises ChatError for an error that is told in the stream, or where its end is missing."""
    calls: dict[int, dict] = {}
    finish, usage, begun = None, {}, False
    for chunk in chunks:
        if "error" in chunk:
            raise ChatError(f"the endpoint broke off: {json.dumps(chunk['error'])[:500]}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                yield Thought(foreign.plain(thought))
            # White space between a thought and an answer is the template's.
            if text := (delta.get("content") or "") if begun else (delta.get("content") or "").lstrip():
                begun = True
                yield Said(foreign.plain(text))
            for part in delta.get("tool_calls") or []:
                _put_together(calls.setdefault(part.get("index", 0), {"id": "", "name": "", "arguments": ""}), part)
            finish = choice.get("finish_reason") or finish
    if finish is None:
        raise ChatError("the endpoint's stream ended in the middle of a turn")
    for place, call in sorted(calls.items()):
        arguments = arguments_of(call["arguments"] or "{}")
        # Tools say what is wrong with arguments that are none.
        yield Called(call["id"] or f"call_{place}", call["name"], {"arguments": call["arguments"]} if arguments is None else arguments)
    yield Ended("tool_calls" if calls and finish != "length" else finish, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _put_together(call: dict, part: dict) -> None:
    function = part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    call["name"] += function.get("name") or ""
    call["arguments"] += function.get("arguments") or ""


def _data(lines: Iterator[str]) -> Iterator[dict]:
    """Of server-sent events, what each says, until the last."""
    for line in lines:
        text = line.removeprefix("data:").strip()
        if not line.startswith("data:") or not text:
            continue
        if text == "[DONE]":
            return
        yield foreign.read(text)


def _sent(message: dict) -> dict:
    sent = {key: message[key] for key in FIELDS if key in message}
    if "tool_calls" in sent:
        sent["tool_calls"] = [_as_text(call) for call in sent["tool_calls"]]
    return sent


def _as_text(call: dict) -> dict:
    """A call as the API wants it, with its arguments as JSON."""
    arguments = call["function"]["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}
