"""Questions over long inputs with short answers: the last \\boxed{} against the expected answer, as texts.

Row: `expected_answer`. Case, runs of blanks and a full stop at the end do not matter. NeMo Gym and the paper ask a
judge model whether an answer is equivalent to the reference; the demo's answers have one form, so that equality will
do, and a judge is not here yet.
"""

from nemo_cascade.environments.response import answer_of, last_boxed

EXAMPLES = [
    ({"expected_answer": "The lamp"}, "\\boxed{the  lamp.}", 1.0),
    ({"expected_answer": "7"}, "river: 7, so \\boxed{7}", 1.0),
    ({"expected_answer": "7"}, "\\boxed{7} or \\boxed{8}", 0.0),
    ({"expected_answer": "7"}, "7", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    expected = row.get("expected_answer")
    return None if isinstance(expected, str) and normalised(expected) else "no expected_answer (a text)"


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "extracted_answer": text or None}."""
    answer = last_boxed(answer_of(response))
    right = answer is not None and normalised(answer) == normalised(row["expected_answer"])
    return {"reward": float(right), "extracted_answer": answer}


def normalised(text: str) -> str:
    """The text in lower case, with single blanks, without a full stop at the end."""
    return " ".join(text.casefold().split()).removesuffix(".")
