"""Whether what a program printed or returned is what was expected, by the rules of programming contests.

A number is one by its value, however it is written: 2, 2.0 and True are equal. Whole numbers are exact, however long; only where a
decimal is expected is one that is close enough.
"""

import json
import math
import re
from decimal import Decimal

# Absolute or relative, whichever is larger.
TOLERANCE = 1e-6

_WHOLE = re.compile(r"[+-]?\d++", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:\d++\.\d*+|\.\d++|\d++(?=[eE]))(?:[eE][+-]?\d{1,3})?", re.ASCII)


def same_output(expected: str, printed: str) -> bool:
    """Line by line and word by word: blanks within and around lines do not count, nor do empty lines at either end."""
    wanted, found = _lines(expected), _lines(printed)
    return len(wanted) == len(found) and all(
        len(words) == len(others) and all(map(same_word, words, others)) for words, others in zip(wanted, found)
    )


def same_word(expected: str, printed: str) -> bool:
    """The same text, or numbers of the same value, or two decimals that are close."""
    if expected == printed:
        return True
    decimals = [_DECIMAL.fullmatch(word) is not None for word in (expected, printed)]
    if not all(decimal or _WHOLE.fullmatch(word) for decimal, word in zip(decimals, (expected, printed))):
        return False
    return Decimal(expected) == Decimal(printed) or all(decimals) and close(float(expected), float(printed))


def same_value(expected, value) -> bool:
    """Of a value read from JSON and one that a function returned, which JSON could not tell apart from it.

    Numbers are compared by value, of whichever type they are, and may be close where the expected one is a decimal.
    """
    if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
        if expected == value:
            return True
        return isinstance(expected, float) and isinstance(value, float) and close(expected, value)
    if isinstance(expected, list) and isinstance(value, (list, tuple)):
        return len(expected) == len(value) and all(map(same_value, expected, value))
    if isinstance(expected, dict) and isinstance(value, dict):
        # As JSON writes keys: 1 and "1" are one.
        if not all(key is None or isinstance(key, (str, int, float, bool)) for key in value):
            return False
        named = {key if isinstance(key, str) else json.dumps(key): item for key, item in value.items()}
        return len(named) == len(value) and expected.keys() == named.keys() and all(
            same_value(expected[key], named[key]) for key in expected
        )
    return type(expected) is type(value) and expected == value


def close(expected: float, value: float) -> bool:
    """Within the tolerance. Infinities are close to nothing, and what is not a number to its like."""
    if not (math.isfinite(expected) and math.isfinite(value)):
        return math.isnan(expected) and math.isnan(value)
    return math.isclose(expected, value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]
