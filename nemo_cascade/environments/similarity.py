"""How alike two texts are, as difflib's SequenceMatcher has it, in bounded time.

difflib takes time that grows with the square of the lengths, and worse on texts made for it. Where a comparison exceeds WORK
steps, what was not compared by then counts as unlike: the ratio is never above difflib's, and the same every time, as no clock
is asked.
"""

from difflib import Match, SequenceMatcher
from itertools import accumulate

# Pairs of characters looked at, about a second of them.
WORK = 10_000_000
# A text so many times longer than the other is not compared: difflib would find 2 / (1 + TOO_LONG) at most. Nor is one of more
# characters than LONGEST, of which one search takes as many steps.
TOO_LONG, LONGEST = 20, 500_000


def ratio(given: str, expected: str, autojunk: bool = True, work: int | None = None) -> float:
    """SequenceMatcher(None, given, expected, autojunk).ratio(), in [0, 1]; less where it takes more than `work` (WORK) steps."""
    if given == expected:
        return 1.0
    if len(given) > min(TOO_LONG * len(expected), LONGEST):
        return 0.0
    return _Bounded(given, expected, autojunk, WORK if work is None else work).ratio()


class _Bounded(SequenceMatcher):
    def __init__(self, given: str, expected: str, autojunk: bool, work: int):
        super().__init__(None, given, expected, autojunk)
        # A search within a[i:j] looks at every place of each of its characters in b.
        self._steps = [0, *accumulate(1 + len(self.b2j.get(character, ())) for character in given)]
        self._left = work

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        self._left -= self._steps[ahi] - self._steps[alo]
        if self._left < 0:
            return Match(alo, blo, 0)
        return super().find_longest_match(alo, ahi, blo, bhi)
