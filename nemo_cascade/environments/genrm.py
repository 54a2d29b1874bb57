"""How well a generative judge agrees with known preferences, and the reward that trains one.

Row: a conversation as `genrm_compare.judge_messages` builds it, `expected_scores` {"score_1", "score_2", "ranking"} and,
optionally, `grading_mode`: "agreement" (default) earns 1 when the judge prefers the same reply, else 0; "distance" earns
-10 [unreadable] - |score_1 off| - |score_2 off| - |ranking off|, which is how Nemotron 3 Nano's GenRM was trained by GRPO
(section 3.3, with both weights 1), each pair in either order.
"""

import json

from nemo_cascade.environments.genrm_compare import FIELDS, Comparison, parse
from nemo_cascade.environments.response import answer_of

UNREADABLE = -10.0
# An answer that can be read is farthest off where every value is at the other end.
REWARD_RANGE = (-float(sum(max(allowed) - min(allowed) for allowed in FIELDS.values())), 1.0)

_ROW = {"expected_scores": {"score_1": 4, "score_2": 2, "ranking": 2}}
_DISTANCE = {**_ROW, "grading_mode": "distance"}
EXAMPLES = [
    (_ROW, '{"score_1": 4, "score_2": 2, "ranking": 2}', 1.0),
    (_ROW, 'The first. {"score_1": 3, "score_2": 3, "ranking": 3}', 1.0),
    (_ROW, '{"score_1": 2, "score_2": 4, "ranking": 5}', 0.0),
    (_ROW, "The first is better.", 0.0),
    (_ROW, '{"score_1": 9, "score_2": 2, "ranking": 1}', 0.0),
    (_DISTANCE, '{"score_1": 4, "score_2": 2, "ranking": 2}', 0.0),
    (_DISTANCE, '{"score_1": 2, "score_2": 4, "ranking": 5}', -7.0),
    (_DISTANCE, "The first is better.", UNREADABLE),
]


def least(row: dict) -> float:
    """What an answer to the row earns that says nothing, or what is farthest off."""
    if row.get("grading_mode") != "distance":
        return 0.0
    expected = row["expected_scores"]
    farthest = sum(max(expected[key] - min(allowed), max(allowed) - expected[key]) for key, allowed in FIELDS.items())
    return min(UNREADABLE, -float(farthest))


def problem(row: dict) -> str | None:
    """What keeps an answer to the row from being checked."""
    expected = row.get("expected_scores")
    if not isinstance(expected, dict) or expected.keys() != FIELDS.keys() or not all(map(_is_number, expected.values())):
        return "no expected_scores with score_1, score_2 and ranking (numbers)"
    if not all(min(allowed) <= expected[key] <= max(allowed) for key, allowed in FIELDS.items()):
        return "expected_scores are not from 1 to 5, or their ranking not from 1 to 6"
    decided = Comparison(**expected).first_wins != 0.5
    if row.get("grading_mode", "agreement") not in ("agreement", "distance"):
        return f"grading_mode is agreement or distance, not {row['grading_mode']!r}"
    return None if decided else "expected_scores prefers neither reply, so no judge could agree with it"


def reference(row: dict) -> str:
    """The expected scores, as a judge gives them."""
    return json.dumps(row["expected_scores"])


def verify(row: dict, response: dict) -> dict:
    """{"reward", "score_error": mean absolute error of the scores, "readable": bool, "agrees": bool}."""
    expected, said = Comparison(**row["expected_scores"]), parse(answer_of(response))
    off = abs(said.score_1 - expected.score_1) + abs(said.score_2 - expected.score_2)
    agrees = said.readable and said.first_wins == expected.first_wins
    if row.get("grading_mode") == "distance":
        reward = -(off + abs(said.ranking - expected.ranking)) if said.readable else UNREADABLE
    else:
        reward = float(agrees)
    return {"reward": reward, "score_error": off / 2, "readable": said.readable, "agrees": agrees}


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
