"""How alike two changes of the same files are: their unified diffs, file by file, by difflib's ratio.

The mean over all files that either changes; one that only one of them changes counts 0 [SWE-RL, arXiv 2502.18449, section 2;
Nemotron-Cascade, section 4.7.2]. As SWE-RL does, without difflib's notion of junk, which would pass over every common letter of a
text of 200 or more, and without the lines that name the file, which are equal.
"""

import difflib

from nemo_cascade.environments import similarity as bounded
from nemo_cascade.environments.swe_repair.patches import Files

CONTEXT = 3
# Pairs of lines that difflib may have to look at, at worst.
WORK = 4_000_000


def similarity(before: Files, given: Files, expected: Files) -> float:
    """In [0, 1], 1 for equal changes. expected must change something."""
    pairs = [
        (diff(before, given, path), diff(before, expected, path))
        for path in sorted({*changed(before, given), *changed(before, expected)})
    ]
    both = [(_hunks(one), _hunks(other)) for one, other in pairs if one and other]
    return sum(bounded.ratio(*texts, autojunk=False, work=bounded.WORK // len(both)) for texts in both) / len(pairs)


def _hunks(text: str) -> str:
    """A file's diff from its first hunk on."""
    head, mark, hunks = text.partition("\n@@")
    return mark + hunks if mark else head


def changed(before: Files, after: Files) -> list[str]:
    """Paths of the files that differ, in their order."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def diff(before: Files, after: Files, path: str) -> str:
    """The unified diff of one file, "" where nothing changed; of a very large change all lines, without a search for common ones."""
    old, new = before.get(path, "").splitlines(True), after.get(path, "").splitlines(True)
    if len(old) * len(new) <= WORK or before.get(path) == after.get(path):
        return "".join(difflib.unified_diff(old, new, path, path, n=CONTEXT))
    same = _common(old, new)
    old, new = old[same:], new[same:]
    rest = _common(old[::-1], new[::-1])
    old, new = old[: len(old) - rest], new[: len(new) - rest]
    if len(old) * len(new) <= WORK:
        return "".join(difflib.unified_diff(old, new, path, path, n=CONTEXT))
    return "".join([*(f"-{line}" for line in old), *(f"+{line}" for line in new)])


def _common(one: list[str], other: list[str]) -> int:
    """How many lines two lists begin with together."""
    return next((n for n, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
