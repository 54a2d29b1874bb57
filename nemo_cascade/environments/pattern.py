"""A regular expression out of a row, refused unless a text of any kind can be searched with it in bounded time."""

import re
from re import Pattern, _constants as code, _parser

__all__ = ["Pattern", "compiled"]

_REPEATS = (code.MAX_REPEAT, code.MIN_REPEAT, code.POSSESSIVE_REPEAT)


def compiled(pattern: str) -> Pattern:
    """The pattern for any case. Raises ValueError with what is wrong with it, worded to follow the name of its key.

    A repetition or a choice inside a repetition can take time exponential in the text's length, and which of them do
    cannot be told cheaply, so all are refused. Without them the time grows with a power of the length, and whoever
    searches bounds that.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"must be a pattern or a list of patterns, not {pattern!r}")
    try:
        parsed = _parser.parse(pattern, re.IGNORECASE)
        found = re.compile(pattern, re.IGNORECASE)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if found.groups > 1:
        raise ValueError(f"{pattern!r} has {found.groups} groups; the answer must be in one, write the others as (?:...)")
    if _is_nested(parsed, inside=False):
        raise ValueError(
            f"{pattern!r} repeats something that has repetitions or choices itself, which some replies would never end"
        )
    return found


def _is_nested(parsed, inside: bool) -> bool:
    """Whether a repetition has another or a choice inside it. parsed: what Python's parser makes of a pattern."""
    for kind, value in parsed:
        if inside and (kind in _REPEATS or kind is code.BRANCH):
            return True
        if any(_is_nested(part, inside or (kind in _REPEATS and value[1] > 1)) for part in _parts(kind, value)):
            return True
    return False


def _parts(kind, value) -> list:
    """The patterns directly inside a part of one."""
    if kind in _REPEATS:
        return [value[2]]
    if kind is code.BRANCH:
        return value[1]
    if kind is code.SUBPATTERN:
        return [value[3]]
    if kind in (code.ASSERT, code.ASSERT_NOT):
        return [value[1]]
    if kind is code.GROUPREF_EXISTS:
        return [part for part in value[1:] if part is not None]
    return [value] if kind is code.ATOMIC_GROUP else []
