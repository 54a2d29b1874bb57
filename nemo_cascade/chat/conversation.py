"""A conversation that goes on: what the user says, what the model answers, and the tools that it calls between.

Whatever breaks an answer off (Ctrl-C, a closed stream, an endpoint that is gone), what was said so far stays, in a form that can be gone on from.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nemo_cascade.chat.tools import definitions
from nemo_cascade.chat.turns import Called, ChatError, Ended, Event, Model, Settings, Told
from nemo_cascade.rollout.agent import Session
from nemo_cascade.rollout.protocol import shortened
from nemo_cascade.sandbox import SandboxError

BROKEN_OFF = "Error: the call was broken off"


@dataclass
class Conversation:
    """messages: all that was said, in the form of the chat-completions API. open_tools: begins a session of tools, None without any."""

    model: Model
    open_tools: Callable[[], Session] | None = None
    messages: list[dict] = field(default_factory=list)
    _session: Session | None = None
    _calling: bool = False

    def answer(self, text: str, settings: Settings) -> Iterator[Event]:
        """What the model says to that, its calls and their answers among it; ends with one Ended. Raises ChatError.

        Where it says nothing at all, nothing was asked."""
        before = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            yield from self.go_on(settings)
        finally:
            if len(self.messages) == before + 1:
                del self.messages[before]

    def go_on(self, settings: Settings) -> Iterator[Event]:
        """The same of messages that end in what the user said."""
        # Whoever begins anew meanwhile puts another list in its place.
        messages, session = self.messages, self._tools()
        for _ in range(session.max_steps if session else 1):
            turn = self.model.turn(messages, definitions(session) if session else None, settings)
            # A call without an answer is refused by some servers.
            answers: list[dict] = []
            try:
                with contextlib.closing(iter(turn)) as events:
                    yield from (event for event in events if not isinstance(event, Ended))
            finally:
                answers += [{"role": "tool", "tool_call_id": call.id, "content": BROKEN_OFF} for call in turn.calls]
                messages += [turn.message, *answers] if turn.begun else []
            if not turn.calls or session is None or turn.end.reason == "length":
                yield turn.end
                return
            for call, answer in zip(turn.calls, answers):
                answer["content"] = self._call(session, call)
                yield Told(call.id, answer["content"])
        yield Ended("turns", turn.end.prompt_tokens, turn.end.tokens)

    def break_call(self) -> None:
        """From another thread: ends the call of a tool that is under way, and with it what the tools knew."""
        if self._calling:
            self.close()

    def close(self) -> None:
        """Lets the tools go, also from another thread in the middle of a call; the next answer begins new ones."""
        session, self._session = self._session, None
        getattr(session, "close", lambda: None)()

    def _tools(self) -> Session | None:
        if self._session is None and self.open_tools is not None:
            self._session = self.open_tools()
        return self._session

    def _call(self, session: Session, call: Called) -> str:
        self._calling = True
        try:
            return shortened(str(session.call(call.name, call.arguments)))
        except SandboxError as error:
            raise ChatError(f"{call.name} failed: {error}") from error
        except Exception as error:  # noqa: BLE001 - whatever a tool does, the model is told
            return shortened(f"Error: {type(error).__name__}: {error}")
        finally:
            self._calling = False
