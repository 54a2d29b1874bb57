"""Math: whether a reply's answer equals the expected one, as NeMo Gym's math_with_judge tells it by math-verify.

Row: `question`, `expected_answer`. math-verify takes the answer from a box if there is one, else from "the final answer is
...", from what follows "answer", and last from the last number or formula of the text. What is not equal is shown to the
model of env.judges.math, where there is one, as Gym shows it to its judge (`equivalence`).

Its own time limits are off, because they use signals and fail outside of the main thread. What sympy would never end is
left out by `too_hard`, and what that does not know ends with the worker (`workers.py`).
"""

import logging
import re
from decimal import Decimal
from functools import lru_cache
from itertools import groupby

from nemo_cascade.environments import equivalence
from nemo_cascade.environments.endpoint import Said
from nemo_cascade.environments.equivalence import usable
from nemo_cascade.environments.formula import too_hard
from nemo_cascade.environments.response import answer_of, last_boxed, text_of

# It warns that its time limits are off, which is meant, and of every answer that it cannot read.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
# Of a reply so many characters at its end are searched for an answer, or after its last box: in texts without end, as a
# model out of bounds repeats "1 1 1", the time grows with the square of their length.
MAX_TEXT = 10_000
# Digits after the point that math-verify compares.
ROUNDING = 6

_HALF = {"question": "How much is 1 - 1/2?", "expected_answer": "0.5"}
_ANSWER = {"question": "How much is 6 times 7?", "expected_answer": "42"}
_SURD = {"question": "Simplify it", "expected_answer": "$\\frac{1}{\\sqrt{2}}$"}
REWARD_RANGE = (0.0, 1.0)
EXAMPLES = [
    (_ANSWER, "\\boxed{42}", 1.0),
    (_ANSWER, "6 times 7 is 42", 1.0),
    (_ANSWER, "The final answer is $42.0$. I hope it is correct.", 1.0),
    (_HALF, "so it is \\boxed{\\frac{1}{2}}", 1.0),
    (_SURD, "\\[\\boxed{\\dfrac{\\sqrt2}{2}}\\]", 1.0),
    (_ANSWER, "\\boxed{24}", 0.0),
    (_ANSWER, "42 is wrong, \\boxed{24}", 0.0),
    (_ANSWER, "I do not know", 0.0),
    (_ANSWER, "\\boxed{9^{9^{9^{9}}}}", 0.0),
    (_ANSWER, "\\boxed{100000000!}", 0.0),
]

_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,8})(?:\.\d{1,3})?")
# Beside these math-verify may read another answer than the box, or another than what stands in it.
_SPECIAL = re.compile(r"final\s+answer|\\fbox", re.IGNORECASE)
_PERCENT = re.compile(r"%|percent|pct", re.IGNORECASE)
# Numbers further apart are not equal, however they are rounded.
_APART = 1e-4


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    expected = row.get("expected_answer")
    if isinstance(expected, bool) or not isinstance(expected, (str, int, float)) or not bare(expected):
        return "no expected_answer (a text or a number)"
    reason = too_hard(bare(expected))
    return f"expected_answer {str(expected)[:50]!r} cannot be compared: {reason}" if reason else None


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "extracted_answer": text or None, "library_reward": the reward, "judge_evaluations": None}."""
    expected, text = bare(row["expected_answer"]), near_the_end(text_of(response))
    box = only_box(text)
    reward, extracted = by_math_verify(expected, text) if box is None else boxed(expected, box)
    return {"reward": reward, "extracted_answer": extracted, "library_reward": reward, "judge_evaluations": None}


def question(row: dict, response: dict, verdict: dict, answers: list[Said]) -> list[dict] | None:
    """What to ask the judge next about an answer that math-verify does not find equal."""
    if verdict["library_reward"] == 1.0:
        return None
    given = verdict["extracted_answer"] or answer_of(response)
    return equivalence.question(equivalence.asked_in(row), str(row["expected_answer"]), given, answers)


def judged(row: dict, response: dict, verdict: dict, answers: list[Said | None]) -> dict:
    """The verdict by the judge's word, with what it said as `judge_evaluations`."""
    right = equivalence.both_equal(answers)
    return {**verdict, "reward": float(right), "judge_evaluations": equivalence.said_by(answers)}


def warm_up() -> None:
    """Imports math-verify and builds its patterns and its grammar, which takes seconds."""
    by_math_verify("\\frac{1}{2}", "\\boxed{\\frac{2}{4}}")


def reference(row: dict) -> str:
    """The expected answer in a box."""
    return f"\\boxed{{{bare(row['expected_answer'])}}}"


def bare(expected) -> str:
    """An expected answer without the signs of mathematics around it."""
    text = str(expected).strip()
    if text.startswith("\\(") and text.endswith("\\)"):
        text = text[2:-2].strip()
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    return text


def near_the_end(text: str) -> str:
    """The part of a text that is searched: from its last box if that is further from the end."""
    if len(text) <= MAX_TEXT:
        return text
    end = text[-MAX_TEXT:]
    box = -1 if "\\boxed" in end else text.rfind("\\boxed")
    return text[box : box + MAX_TEXT] if box >= 0 else end


def only_box(text: str) -> str | None:
    """What stands in the one box of a text, where nothing else in the text changes what math-verify reads; None elsewhere."""
    if text.count("\\boxed") != 1 or _SPECIAL.search(text) or _PERCENT.search(text, text.find("\\boxed")):
        return None
    return last_boxed(text)


# Many of a prompt's replies give the same answer.
@lru_cache(maxsize=16_384)
def boxed(expected: str, box: str) -> tuple[float, str | None]:
    """(reward, answer) of what stands in a reply's one box: what math-verify says, without it where that is plain."""
    if _NUMBER.fullmatch(expected) and _NUMBER.fullmatch(box):
        return float(Decimal(box) == Decimal(expected)), box
    if box == expected:
        return 1.0, box
    return by_math_verify(expected, f"\\boxed{{{box}}}")


def by_math_verify(expected: str, text: str) -> tuple[float, str | None]:
    """(reward, answer) of a reply."""
    from math_verify import grader

    wanted, found = _expected(expected), _read(text, _targets())
    if not wanted or not found:
        return 0.0, None
    pairs = [(one, other) for one in wanted for other in found]
    equal = any(
        not far_apart(one, other) and grader.verify(one, other, float_rounding=ROUNDING, timeout_seconds=None)
        for one, other in pairs
    )
    # The answer as it is told: as sympy writes it, or as the reply does if only that equals the expected one.
    wanted_texts, texts = [str(one) for one in wanted], [str(one) for one in found]
    return float(equal), next((one for one in texts if one in wanted_texts), texts[0])


def far_apart(one, other) -> bool:
    """Whether two expressions have values that differ, at the same places of their variables.

    math-verify would simplify their difference to find that it is not zero, a hundred times slower.
    """
    from sympy import Expr, Symbol, UnevaluatedExpr

    if not all(isinstance(side, Expr) and not isinstance(side, Symbol) for side in (one, other)):
        return False
    # Percentages equal more than their value.
    if one.has(UnevaluatedExpr) or other.has(UnevaluatedExpr):
        return False
    try:
        variables = sorted(one.free_symbols | other.free_symbols, key=str)
        places = {variable: 0.7310585 + 0.2689414 * place for place, variable in enumerate(variables)}
        left, right = (complex(side.subs(places).evalf(15)) for side in (one, other))
        return abs(left - right) > _APART * max(1.0, abs(left), abs(right))
    # What has no value is left to math-verify.
    except Exception:
        return False


@lru_cache(maxsize=16_384)
def _expected(expected: str) -> list:
    return _read(f"\\boxed{{{expected}}}", _expected_targets())


def _read(text: str, targets: list) -> list:
    """The answer in a text, as sympy reads it if it can, and as it is written; none if it is too hard.

    targets: patterns by falling priority. The last place in the text comes first among those of one priority.
    """
    from math_verify.parser import extract_match

    written = None
    try:
        for patterns in targets:
            places = [(match, target) for pattern, target in patterns for match in pattern.finditer(text)]
            for match, target in sorted(places, key=lambda place: (-place[0].end(), place[0].start())):
                if any(too_hard(formula) for formula in _formulas(match.group())):
                    return []
                answer, as_written = extract_match(match, target)
                written = written or as_written
                if answer is not None:
                    return [answer, written] if written else [answer]
    # As math-verify does: what it cannot read is no answer.
    except Exception:
        return []
    return [written] if written else []


def _formulas(text: str) -> list[str]:
    """What sympy may get to see of a match: the boxes in it, or all of it where there are none."""
    parts = text.split("\\boxed")
    return [last_boxed("\\boxed" + part) or part for part in parts[1:]] or parts


@lru_cache(maxsize=1)
def _targets() -> list:
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    return _by_priority((ExprExtractionConfig(), LatexExtractionConfig()))


@lru_cache(maxsize=1)
def _expected_targets() -> list:
    from math_verify.parser import LatexExtractionConfig

    return _by_priority((LatexExtractionConfig(),))


def _by_priority(kinds: tuple) -> list:
    from math_verify.parser import get_extraction_regexes

    ranked = [(rank, (pattern, kind)) for patterns, kind in get_extraction_regexes(kinds) for pattern, rank in patterns]
    ranked.sort(key=lambda one: one[0])
    return [[pattern for _, pattern in same] for _, same in groupby(ranked, key=lambda one: one[0])]
