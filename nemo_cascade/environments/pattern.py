"""A regular expression out of a row, refused unless a text of any kind can be searched with it in bounded time."""

import re
from itertools import takewhile
from re import Pattern, _constants as code, _parser

__all__ = ["Pattern", "beginning", "compiled", "last_captured"]

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


def beginning(pattern: Pattern) -> str:
    """The characters, of ASCII and in small letters, that all it finds begins with; empty where that is not plain to see."""
    parts = takewhile(lambda part: part[0] is code.LITERAL and part[1] < 128, _parser.parse(pattern.pattern, re.IGNORECASE))
    return "".join(chr(value) for _, value in parts).lower()


def last_captured(pattern: Pattern, begins: str, text: str, start: int) -> str | None:
    """The last of pattern.findall(text, start), None where that is empty. begins: its `beginning`.

    Python tries a pattern that is for any case at every character, where it finds a text in a moment.
    """
    # The dotted capital and the dotless small "i" and the long "s", which are an "i" and an "s" in any case.
    if not begins or not text.isascii() and any(odd in text for odd in "\u0130\u0131\u017f"):
        return (pattern.findall(text, start) or [None])[-1]
    lowered, found, place = text[start:].lower(), None, 0
    while (place := lowered.find(begins, place)) >= 0:
        match = pattern.match(text, start + place)
        found, place = match or found, match.end() - start if match else place + 1
    return found and ((found[1] or "") if pattern.groups else found[0])


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
