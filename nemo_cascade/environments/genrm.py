"""How well a generative judge agrees with known preferences.

Row: a conversation as `genrm_compare.judge_messages` builds it and `expected_scores` {"score_1", "score_2", "ranking"}. The
reward is 1 when the judge prefers the same reply; how far its scores are off is told beside it.
"""

from nemo_cascade.environments.genrm_compare import Comparison, parse
from nemo_cascade.environments.response import answer_of

_ROW = {"expected_scores": {"score_1": 4, "score_2": 2, "ranking": 2}}
EXAMPLES = [
    (_ROW, '{"score_1": 4, "score_2": 2, "ranking": 2}', 1.0),
    (_ROW, 'The first. {"score_1": 3, "score_2": 3, "ranking": 3}', 1.0),
    (_ROW, '{"score_1": 2, "score_2": 4, "ranking": 5}', 0.0),
    (_ROW, "The first is better.", 0.0),
    (_ROW, '{"score_1": 9, "score_2": 2, "ranking": 1}', 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps an answer to the row from being checked."""
    expected = row.get("expected_scores")
    try:
        decided = Comparison(**{key: float(value) for key, value in expected.items()}).first_wins != 0.5
    except (AttributeError, TypeError, ValueError):
        return "no expected_scores with score_1, score_2 and ranking (numbers)"
    return None if decided else "expected_scores prefers neither reply, so no judge could agree with it"


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 when the judge prefers the reply that is preferred, else 0.0, "score_error": mean absolute error}."""
    expected, said = Comparison(**row["expected_scores"]), parse(answer_of(response))
    error = (abs(said.score_1 - expected.score_1) + abs(said.score_2 - expected.score_2)) / 2
    agrees = said.readable and said.first_wins == expected.first_wins
    return {"reward": float(agrees), "score_error": error, "readable": said.readable}
