"""Preference by comparison: a generative judge reads a request and two replies, and scores both.

The conversation that a judge is shown and the JSON it answers with are those of NeMo Gym's server of this name: the request,
then the replies under the roles response_1 and response_2; two helpfulness scores from 1 to 5 and a ranking from 1 (the
first is much better) to 6. There is no `verify`: a reply alone has no reward. In training every reply of a group is
compared with every other one (`nemo_cascade.algorithms.genrm_rewards`), in validation with the row's `reference_reply`.
"""

import re
from dataclasses import dataclass

from nemo_cascade.data.rows import messages_of
from nemo_cascade.environments import foreign
from nemo_cascade.environments.response import END_OF_THOUGHT

# What a judge says, and the values that it may have.
FIELDS = {"score_1": range(1, 6), "score_2": range(1, 6), "ranking": range(1, 7)}
_OBJECT = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Comparison:
    """What a judge said about two replies; readable is False where it stands for an answer that could not be read."""

    score_1: float = 3.0
    score_2: float = 3.0
    ranking: float = 3.5
    readable: bool = True

    @property
    def first_wins(self) -> float:
        """1 when the first reply is better by its score or, at equal scores, by the ranking; 0.5 for a draw; else 0."""
        order = (self.score_1 - self.score_2) or (3.5 - self.ranking)
        return 1.0 if order > 0 else 0.0 if order < 0 else 0.5


def problem(row: dict) -> str | None:
    """What keeps replies to the row from being compared."""
    reference = row.get("reference_reply")
    return None if isinstance(reference, str) and reference.strip() else "no reference_reply (a text to compare replies with)"


def judge_messages(row: dict, first: str, second: str) -> list[dict]:
    """The conversation after which a judge answers. Replies without their thoughts."""
    replies = [{"role": "response_1", "content": first}, {"role": "response_2", "content": second}]
    return [*messages_of(row), *replies]


def readable(text: str) -> bool:
    """Whether a judge's answer can be read."""
    return parse(text).readable


def parse(text: str) -> Comparison:
    """The last JSON object of a judge's answer, without a thought that was left in it.

    One that cannot be read counts as undecided: 3, 3 and 3.5, as in NeMo Gym.
    """
    for found in reversed(_OBJECT.findall(text.rpartition(END_OF_THOUGHT)[2])):
        try:
            values = foreign.read(found)
            scores = [foreign.number(values[key]) for key in FIELDS]
        except (ValueError, KeyError, TypeError):
            continue
        if all(min(allowed) <= score <= max(allowed) for score, allowed in zip(scores, FIELDS.values())):
            return Comparison(*scores)
    return Comparison(readable=False)
