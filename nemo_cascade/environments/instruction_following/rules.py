"""The table of rules: an instruction type's id, its arguments, and the function that tells whether a text follows it.

A rule is a pure function `(text, **arguments) -> bool` under `@rule(id, argument=kind, ...)`. The kinds check the
arguments once, so that no rule has to, and `problem` says in words what a row's arguments lack.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import eq, ge, gt, le, lt

# "at least" and "less than" are all that IFEval knows; the others are ours, for rows of our own.
RELATIONS = {"at least": ge, "less than": lt, "at most": le, "more than": gt, "exactly": eq}


@dataclass(frozen=True)
class Kind:
    """What an argument may be: its description, and a test for it."""

    said: str
    fits: Callable[[object], bool]


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


COUNT = Kind("a whole number that is not negative", lambda value: _whole(value, 0))
PLACE = Kind("a whole number from 1", lambda value: _whole(value, 1))
TEXT = Kind("a text that is not empty", _text)
TEXTS = Kind("a list of texts, none empty", lambda value: isinstance(value, list) and value and all(map(_text, value)))
LETTER = Kind("a single character", lambda value: _text(value) and len(value) == 1)
RELATION = Kind(
    f"one of {', '.join(map(repr, RELATIONS))}", lambda value: isinstance(value, str) and value in RELATIONS
)
LANGUAGE = Kind("a language code that langdetect knows", lambda value: isinstance(value, str) and value in languages())


@dataclass(frozen=True)
class Rule:
    """An instruction type. `consistent` finds fault with arguments that only together are wrong."""

    name: str
    check: Callable[..., bool]
    arguments: dict[str, Kind]
    evaluation_only: bool = False
    consistent: Callable[..., str | None] | None = None
    missing: Callable[[], str | None] = lambda: None

    def problem(self, arguments: object) -> str | None:
        """What keeps a text from being checked with these arguments."""
        lacking = self.missing()
        if lacking:
            return f"instruction type {self.name!r} {lacking}"
        if not isinstance(arguments, dict):
            return f"kwargs of instruction type {self.name!r} must be an object, not {_short(arguments)}"
        for name, kind in self.arguments.items():
            if name not in arguments:
                return f"instruction type {self.name!r} needs {name!r} in its kwargs, {kind.said}"
            if not kind.fits(arguments[name]):
                found = _short(arguments[name])
                return f"kwargs {name!r} of instruction type {self.name!r} must be {kind.said}, not {found}"
        return self.consistent(**arguments) if self.consistent else None


RULES: dict[str, Rule] = {}


def rule(name: str, *, consistent=None, missing=lambda: None, evaluation_only: bool = False, **arguments: Kind):
    """Enters the decorated function as the rule of an instruction type; more than one may be laid upon a function."""

    def enter(check: Callable[..., bool]) -> Callable[..., bool]:
        RULES[name] = Rule(name, check, arguments, evaluation_only, consistent, missing)
        return check

    return enter


@cache
def languages() -> frozenset[str]:
    """Codes of the languages that langdetect tells apart. Read from its files' names: loading them takes 0.3 s."""
    from langdetect.detector_factory import PROFILES_DIRECTORY

    return frozenset(os.listdir(PROFILES_DIRECTORY))


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
