"""Math: the last \\boxed{} against the expected answer; integers directly, everything else by math-verify.

Row: `question`, `expected_answer`. math-verify runs without its own time limit, which uses signals and fails outside the main thread; a
worker with a hard kill is not here yet, so answers longer than MAX_LENGTH are not parsed.
"""

import logging
import re

from nemo_cascade.environments.response import answer_of, last_boxed

# It warns at every call that its time limit is off, which is meant.
logging.getLogger("math_verify").setLevel(logging.ERROR)
# Longer answers are not what a question asks for, and some make sympy run for minutes.
MAX_LENGTH = 200

EXAMPLES = [
    ({"expected_answer": "42"}, "\\boxed{42}", 1.0),
    ({"expected_answer": "0.5"}, "so it is \\boxed{\\frac{1}{2}}", 1.0),
    ({"expected_answer": "42"}, "\\boxed{24}", 0.0),
    ({"expected_answer": "42"}, "42", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    expected = row.get("expected_answer")
    return None if isinstance(expected, (str, int, float)) and str(expected) else "no expected_answer (a text or a number)"


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "extracted_answer": text or None}."""
    answer, expected = last_boxed(answer_of(response)), str(row["expected_answer"])
    return {"reward": float(answer is not None and equal(answer, expected)), "extracted_answer": answer}


def warm_up() -> None:
    """Imports what takes a second."""
    import math_verify  # noqa: F401


def equal(answer: str, expected: str) -> bool:
    """Whether two answers are the same number or expression."""
    if _integer(answer) and _integer(expected):
        return int(answer) == int(expected)
    if len(answer) > MAX_LENGTH:
        return False
    from math_verify import parse, verify as same

    gold, given = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (expected, answer))
    return same(gold, given, timeout_seconds=None)


def _integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d{1,18}", text) is not None
