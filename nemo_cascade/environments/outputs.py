"""Whether what a program printed or returned is what was expected, by the rules of programming contests."""

import json
import math
import re

# Absolute or relative, whichever is larger.
TOLERANCE = 1e-6

_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d{1,3})?", re.ASCII)


def same_output(expected: str, printed: str) -> bool:
    """Line by line and word by word: blanks within and around lines do not count, nor do empty lines at either end."""
    wanted, found = _lines(expected), _lines(printed)
    return len(wanted) == len(found) and all(
        len(words) == len(others) and all(map(same_word, words, others)) for words, others in zip(wanted, found)
    )


def same_word(expected: str, printed: str) -> bool:
    """The same text, or two decimals that are close. Whole numbers, however long, have to be the same text."""
    if expected == printed:
        return True
    if not (_DECIMAL.fullmatch(expected) and _DECIMAL.fullmatch(printed)):
        return False
    return close(float(expected), float(printed))


def same_value(expected, value) -> bool:
    """Of a value read from JSON and one that a function returned, which JSON could not tell apart from it; decimals may be close."""
    if isinstance(expected, float) and isinstance(value, float):
        return close(expected, value)
    if isinstance(expected, list) and isinstance(value, (list, tuple)):
        return len(expected) == len(value) and all(map(same_value, expected, value))
    if isinstance(expected, dict) and isinstance(value, dict):
        # As JSON writes keys: 1 and "1" are one.
        if not all(key is None or isinstance(key, (str, int, float, bool)) for key in value):
            return False
        named = {key if isinstance(key, str) else json.dumps(key): item for key, item in value.items()}
        return expected.keys() == named.keys() and all(same_value(expected[key], named[key]) for key in expected)
    return type(expected) is type(value) and expected == value


def close(expected: float, value: float) -> bool:
    """Within the tolerance; infinities are close to themselves, and what is not a number to nothing."""
    return math.isclose(expected, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]
