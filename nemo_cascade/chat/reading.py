"""From the ids that a model samples to events: its thought, its answer and its calls, by the special tokens between them.

Only special tokens count: a tag that a model spells in ordinary tokens is text, as it was when it was trained.
"""

import secrets
from collections.abc import Iterator

from tokenizers.decoders import DecodeStream

from nemo_cascade.chat.turns import Called, Event, Said, Thought
from nemo_cascade.data.chat import parse_tool_call
from nemo_cascade.data.tokenizer import REQUIRED, STOP_IDS

END_OF_THOUGHT, CALL, END_OF_CALL = REQUIRED["</think>"], REQUIRED["<tool_call>"], REQUIRED["</tool_call>"]


class Reader:
    """`read` each id as it comes, and `end` at the end. thinking: whether the next one is of a thought; called: whether there was a call.

    White space around a thought and around an answer is the template's, and no part of what is said.
    """

    def __init__(self, tokenizer, tools: list[dict] | None, thinking: bool):
        self.backend, self.tools = tokenizer.backend_tokenizer, tools
        self.thinking, self.called = thinking, False
        self._begin(Thought if thinking else Said)
        self._call: str | None = None

    def read(self, token: int) -> Iterator[Event]:
        if token in STOP_IDS:
            return
        if self.thinking and token == END_OF_THOUGHT:
            self.thinking = False
            self._begin(Said)
            return
        piece = self._decode.step(self.backend, token)
        if piece is None:
            return
        if self._call is not None:
            self._call += piece
            if token == END_OF_CALL:
                yield from self._called()
        elif token == CALL and not self.thinking and self.tools:
            self._call = piece
        else:
            yield from self._text(piece)

    def end(self) -> Iterator[Event]:
        """What was begun and never came to its end is text."""
        if self._call is not None:
            yield from self._text(self._call)
            self._call = None

    def _begin(self, kind: type) -> None:
        self._kind, self._space, self._first = kind, "", True
        self._decode = DecodeStream(skip_special_tokens=False)

    def _text(self, piece: str) -> Iterator[Event]:
        """All but the white space at its end, which comes before the next piece if there is one."""
        text = piece if not self._first else piece.lstrip()
        body = text.rstrip()
        if not body:
            self._space += text
            return
        yield self._kind(self._space + body)
        self._first, self._space = False, text[len(body) :]

    def _called(self) -> Iterator[Event]:
        """A call, or its text where it is none that can be read."""
        text, self._call = self._call, None
        call = parse_tool_call(text, self.tools)
        if call is None:
            yield from self._text(text)
        else:
            self.called = True
            yield Called(f"call_{secrets.token_hex(8)}", call["name"], call["arguments"])
