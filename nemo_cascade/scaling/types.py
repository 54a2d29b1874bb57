"""What the loops and those who answer and grade say to each other."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class ScalingRefused(ValueError):
    """A run that cannot begin or go on; the message has a line for each reason, with what to do."""


@dataclass(frozen=True)
class Ask:
    """One reply to be generated. key: unique in a run, such as "p1/r2/c7". max_tokens: where the reply is cut, set by `Work`."""

    key: str
    messages: list[dict]
    max_tokens: int = 0


@dataclass(frozen=True)
class Reply:
    """What was generated: the answer without its thought, the tokens of both, and finish, "length" where it was cut.

    fault: why there is none, after all tries.
    """

    text: str
    tokens: int
    finish: str = "stop"
    thought: str = ""
    fault: str | None = None


@dataclass(frozen=True)
class Case:
    """One text to be graded by a row's environment."""

    key: str
    row: dict
    text: str


class Proposer(Protocol):
    """Answers. max_tokens: of one reply, at most."""

    max_tokens: int

    def propose(self, asks: list[Ask], told: Callable[[Ask, Reply], None], seconds: float | None) -> None:
        """Calls `told` with each reply as it comes, in this thread; gives up what has not come after `seconds`.

        Raises ScalingRefused where nothing can be asked at all.
        """


class Grader(Protocol):
    """Grades."""

    def grade(self, cases: list[Case], told: Callable[[Case, dict], None]) -> None:
        """Calls `told` with each verdict ({"reward", ...}, as of an environment's `verify`) as it comes, in this thread."""


_encode = json.JSONEncoder(sort_keys=True).encode


def digest(value) -> str:
    """16 hex digits that tell one JSON value from another."""
    return hashlib.sha256(_encode(value).encode()).hexdigest()[:16]
