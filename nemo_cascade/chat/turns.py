"""What a model says, while it says it: events, and the turn that they come to.

A message is a dict of the chat-completions API. One that an embedded model wrote has its `tokens` too, so that what is said later follows on
what was sampled and not on what its text would be encoded to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol


class ChatError(RuntimeError):
    """A turn that cannot be said; why, and what to do."""


@dataclass(frozen=True)
class Thought:
    """A piece of what it thinks."""

    text: str


@dataclass(frozen=True)
class Said:
    """A piece of its answer."""

    text: str


@dataclass(frozen=True)
class Called:
    """A call of a tool, whole."""

    id: str
    name: str
    arguments: dict


@dataclass(frozen=True)
class Told:
    """What the tool answered to the call of this id."""

    id: str
    text: str


@dataclass(frozen=True)
class Ended:
    """The end of a turn. reason: "stop", "length", "tool_calls" or "turns", of a conversation that may make no more calls.

    prompt_tokens, tokens: how many it read and wrote, None where that is not told.
    """

    reason: str
    prompt_tokens: int | None = None
    tokens: int | None = None


Event = Thought | Said | Called | Told | Ended


@dataclass(frozen=True)
class Settings:
    """How a turn is said. budget: tokens of thought after which the answer follows, None without a bound; max_tokens: of a turn, thought
    included, None for as many as there is room for. seed None: another reply each time."""

    thinking: bool = True
    budget: int | None = None
    temperature: float = 1.0
    top_p: float = 0.95
    max_tokens: int | None = None
    seed: int | None = None


@dataclass
class Turn:
    """One turn: iterate it once for its events. `message` is, at any time, what has been said, also when it was broken off.

    tokens: what an embedded model has written, filled by `events` while it goes.
    """

    events: Iterator[Event]
    tokens: list[int] | None = None
    thought: str | None = None
    text: str = ""
    calls: list[Called] = field(default_factory=list)
    end: Ended | None = None

    def __iter__(self) -> Iterator[Event]:
        try:
            for event in self.events:
                self._take(event)
                yield event
        finally:
            self.events.close()

    def _take(self, event: Event) -> None:
        match event:
            case Thought(text):
                self.thought = (self.thought or "") + text
            case Said(text):
                self.text += text
            case Called():
                self.calls.append(event)
            case Ended():
                self.end = event

    @property
    def begun(self) -> bool:
        """Whether anything has been said."""
        return bool(self.end or self.thought or self.text or self.calls or self.tokens)

    @property
    def message(self) -> dict:
        message: dict = {"role": "assistant", "content": self.text}
        if self.thought is not None:
            message["reasoning_content"] = self.thought
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in self.calls
            ]
        if self.tokens is not None:
            message["tokens"] = [*self.tokens]
        return message


class Model(Protocol):
    """Whoever says turns, one at a time from each thread."""

    name: str

    def turn(self, messages: list[dict], tools: list[dict] | None, settings: Settings) -> Turn:
        """The turn after these messages; nothing happens before it is iterated. That raises ChatError."""

    def close(self) -> None:
        """Lets go of what it holds."""
