"""JSON from others and for others: judges, servers, callers of ours. Whatever they send is read, or is a ValueError."""

import json
import math

# A row, a response or an answer is a few levels deep. What is nested thousands deep cannot be read, and what is nearly so
# could be read but not written again.
DEEPEST = 100


def read(text: str | bytes):
    """The value of a JSON text. Raises ValueError for anything else, also for NaN, infinities and what is nested deeper."""
    try:
        value = json.loads(text, parse_constant=number, parse_float=number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [part for one in level if isinstance(one, dict | list) for part in _parts(one)]
        if not level:
            return value
    raise ValueError(f"nested more than {DEEPEST} deep")


def number(value) -> float:
    """A finite number, or the text of one. Raises ValueError or TypeError for anything else."""
    try:
        found = float(value)
    except OverflowError:
        raise ValueError("a whole number too large for a float") from None
    if not math.isfinite(found):
        raise ValueError(f"{value} is no finite number")
    return found


def write(value) -> bytes:
    """The JSON text of a value, in UTF-8. A lone surrogate, which a reply may have and UTF-8 has not, becomes "?".

    Raises ValueError for NaN and infinities, TypeError for what JSON does not have.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
    except RecursionError:
        raise ValueError("nested too deep") from None


def plain(text: str) -> str:
    """The text with "?" for a lone surrogate."""
    return text.encode(errors="replace").decode()


def beginning(content: bytes) -> str:
    """The first characters of an answer, to be shown in a message; by no charset that the answer claims."""
    return content[:500].decode(errors="replace")


def _parts(value: dict | list):
    return value.values() if isinstance(value, dict) else value
