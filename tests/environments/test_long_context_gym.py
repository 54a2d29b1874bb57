"""Long contexts are scored as NeMo Gym scores them: by what was recorded of it, and by its servers where the wheel is at hand.

NEMO_GYM_WHEEL: path of nemo_gym-0.4.0-py3-none-any.whl.

What is known to differ:
- Rows may carry wrong_outputs and answer_characters, by which an answer that lists or copies everything earns less. The
  verdict's `share` is what Gym gives.
- What is too long to be compared (see environments/similarity.py) counts as unlike.
- Thoughts that were left in a message are taken off first; in Gym the model's server has to do that.
"""

import json
import os
import zipfile
from pathlib import Path

import pytest

from nemo_cascade.data.rows import environment_of
from nemo_cascade.environments import response_of, row_problem
from nemo_cascade.environments.long_context import verify
from tests.environments.record_long_context import RECORD, gym, hashed, made_up

WHEEL = os.environ.get("NEMO_GYM_WHEEL", "")


def scores(pairs):
    """What Gym's servers would give, by our verdicts."""
    verdicts = [verify(row, response_of(reply, thinking=False)) for row, reply in pairs]
    assert all(verdict["reward"] <= verdict.get("share", 1.0) for verdict in verdicts)
    return [verdict.get("share", verdict["reward"]) for verdict in verdicts]


@pytest.fixture(scope="module")
def pairs():
    return made_up()


def test_scores_are_gyms_by_the_record(pairs):
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert hashed(pairs) == record["pairs"], "other rows or replies: record them (record_long_context.py)"
    assert scores(pairs) == record["rewards"]
    between = [reward for reward in record["rewards"] if 0 < reward < 1]
    assert len(pairs) > 900 and len(set(between)) > 100 and min(map(record["rewards"].count, (0.0, 1.0))) > 100


@pytest.fixture(scope="module")
def wheel():
    if not Path(WHEEL).is_file():
        pytest.skip("NEMO_GYM_WHEEL names no wheel")
    return WHEEL


def test_scores_are_gyms_now(pairs, wheel):
    assert scores(pairs) == gym(wheel, pairs)


@pytest.mark.parametrize("name", ["mrcr", "ruler"])
def test_gyms_own_rows_can_be_verified_and_are_scored_as_gym_scores_them(name, wheel):
    lines = zipfile.ZipFile(wheel).read(f"resources_servers/{name}/data/example.jsonl").decode().splitlines()
    rows = [{**json.loads(line), "agent_ref": {"name": f"{name}_simple_agent"}} for line in lines]
    assert len(rows) == 5 and {environment_of(row) for row in rows} == {"long_context"}
    assert [row_problem(row) for row in rows] == [None] * 5
    right = [row.get("expected_answer") or ", ".join(row["outputs"]) for row in rows]
    # Each to its own row and to the next, whole and in parts.
    replies = [text[: int(len(text) * share)] for text in right + right[1:] + right[:1] for share in (1, 0.9, 0.5, 0.3)]
    asked = [(row, reply) for number, reply in enumerate(replies) for row in [rows[number // 4 % 5]]]
    found = scores(asked)
    assert found == gym(wheel, asked) and found[:20:4] == [1.0] * 5 and 0.0 in found
