"""Filler for a context until its prompt, as the tokenizer and its chat template make it, has the length asked for.

Pieces are counted one by one and added up; where they join, a tokenizer may merge across or put a token between. So the whole
prompt is counted too, a few times only: what it has more or less than its pieces is taken into account from then on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nemo_cascade.data.chat import encode, render_prompt

# A prompt may be shorter than asked for by this share, and is never longer.
TOLERANCE = 0.02
_ROUNDS = 20
# Small pieces tried in a row that do not fit any more.
_TRIES = 60
# Longer texts do not come again, and are not worth keeping the count of.
_REMEMBERED = 24

# A piece of filler: a text, or texts that belong together.
Piece = str | tuple[str, ...]


class LengthError(ValueError):
    """A length that cannot be had; the message says from which length on it can."""


class Measure:
    """Counts tokens as the model will get them."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._known: dict[str, int] = {}

    def piece(self, piece: Piece) -> int:
        """Tokens of a piece by itself."""
        text = "".join(piece)
        if len(text) > _REMEMBERED:
            return len(encode(self.tokenizer, text))
        if text not in self._known:
            self._known[text] = len(encode(self.tokenizer, text))
        return self._known[text]

    def prompt(self, messages: list[dict]) -> int:
        """Tokens of a conversation with its chat template, up to where the model begins to write."""
        return len(render_prompt(self.tokenizer, messages))


@dataclass
class Draft:
    """A row whose length is still open.

    large: endless pieces of filler; small: endless ones of few tokens, which close the last gap. messages(large, small)
    gives the conversation with the filler in it, answers(large, small) the row's keys for the verifier, None when this
    filler does not allow a single right answer.
    """

    large: Iterator[Piece]
    small: Iterator[str]
    messages: Callable[[list[Piece], list[str]], list[dict]]
    answers: Callable[[list[Piece], list[str]], dict | None]


def fit(draft: Draft, measure: Measure, length: int) -> tuple[list[Piece], list[str], int]:
    """(large pieces, small pieces, tokens of the prompt with them), 0.98 * length <= tokens <= length.

    Raises LengthError when the draft without filler is longer, or when so short a length cannot be hit so closely.
    """
    large, small = _Pieces(measure), _Pieces(measure)
    bare = tokens = measure.prompt(draft.messages([], []))
    if bare > length:
        raise LengthError(f"needs at least {bare} tokens, not {length}")
    for _ in range(_ROUNDS):
        room = length - tokens
        if tokens + length * TOLERANCE >= length >= tokens:
            return large.taken, small.taken, tokens
        for pieces in (small, large):
            while room < 0 and pieces.taken:
                room += pieces.drop()
        room -= large.take(draft.large, room, tries=1)
        small.take(draft.small, room, tries=_TRIES)
        tokens = measure.prompt(draft.messages(large.taken, small.taken))
        count = len(large.taken) + len(small.taken)
        if count:
            large.joint = small.joint = (tokens - bare - sum(large.counts) - sum(small.counts)) / count
    raise LengthError(f"cannot be brought to between {length * (1 - TOLERANCE):.0f} and {length} tokens; ask for more")


class _Pieces:
    """Pieces taken so far, with their tokens. joint: what each costs more (or less) than by itself."""

    def __init__(self, measure: Measure):
        self.measure = measure
        self.taken: list = []
        self.counts: list[int] = []
        self.joint = 0.0

    def take(self, source: Iterator, room: float, tries: int) -> float:
        """Takes what fits into the room, until so many in a row do not; returns the tokens taken."""
        taken, missed = 0.0, 0
        while missed < tries and taken < room:
            piece = next(source)
            count = self.measure.piece(piece)
            cost = max(count + self.joint, 1.0)
            if taken + cost > room:
                missed += 1
                continue
            self.taken.append(piece)
            self.counts.append(count)
            taken, missed = taken + cost, 0
        return taken

    def drop(self) -> float:
        """Gives the last one back; returns its tokens."""
        self.taken.pop()
        return max(self.counts.pop() + self.joint, 1.0)
