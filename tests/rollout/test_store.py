"""Rollouts come back from disk bit for bit, or not at all."""

import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.rollout.types import Group, Rollout


def groups(logprobs=(-0.1, -1e-300, -0.30000000000000004)):
    rollouts = [
        Rollout("ab" * 32, k, [10, 11], [5, 6, 11], list(logprobs), "stop", reward=k / 3, info={"seen": [True, None]})
        for k in range(3)
    ]
    return [Group({"question": "2 + 2 — à\u2028"}, "math", rollouts)]


def test_what_was_saved_comes_back_equal(tmp_path):
    store = RolloutStore(tmp_path / "rollouts")
    store.save("3", groups())
    assert store.load("3") == groups()
    assert store.load("4") is None


@given(st.lists(st.floats(max_value=0, allow_nan=False, allow_infinity=False), min_size=1))
def test_log_probs_come_back_to_the_same_bits(tmp_path_factory, logprobs):
    store = RolloutStore(tmp_path_factory.mktemp("rollouts"))
    store.save("1", groups(logprobs))
    assert [x.hex() for x in store.load("1")[0].rollouts[0].logprobs] == [x.hex() for x in logprobs]


def test_log_probs_that_are_written_as_numbers_are_read_as_well(tmp_path):
    body = json.dumps(dataclasses.asdict(groups()[0]))
    (tmp_path / "step_1.jsonl").write_text(f"{body}\n" + json.dumps({"sha256": hashlib.sha256(f"{body}\n".encode()).hexdigest()}) + "\n")
    assert RolloutStore(tmp_path).load("1") == groups()


@pytest.mark.parametrize("damage", ["cut", "flipped", "unsealed", "empty", "swapped"])
def test_a_damaged_file_counts_as_absent(damage, tmp_path, caplog):
    store = RolloutStore(tmp_path)
    store.save("1", groups() + groups())
    path = store.path("1")
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    changed = {
        "cut": text[: len(text) // 2],
        "flipped": text.replace("0.3333333333333333", "0.3333333333333334"),
        "unsealed": "".join(lines[:-1]),
        "empty": "",
        "swapped": "".join(lines[:1] + lines[2:]),
    }
    path.write_text(changed[damage])
    assert store.load("1") is None
    assert str(path) in caplog.text


def test_a_kill_before_the_rename_leaves_nothing_to_train_on(tmp_path):
    store = RolloutStore(tmp_path)
    store.save("1", groups())
    store.path("1").rename(tmp_path / "tmp_step_1.jsonl")
    assert store.load("1") is None
    store.save("1", groups())
    assert store.load("1") == groups() and [p.name for p in tmp_path.iterdir()] == ["step_1.jsonl"]


def test_the_file_is_lines_that_people_can_read(tmp_path):
    store = RolloutStore(tmp_path)
    store.save("1", groups())
    first, seal = store.path("1").read_text().splitlines()
    assert json.loads(first)["rollouts"][1]["reward"] == 1 / 3 and "sha256" in json.loads(seal)
