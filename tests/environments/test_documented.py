"""The rows that docs/environments.md shows are rows, and the replies beside them earn the most there is."""

import json
from pathlib import Path

import pytest

from nemo_cascade import environments
from nemo_cascade.data.rows import environment_of, rl_problem

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"
SHOWN = [json.loads(line) for line in PAGE.read_text().splitlines() if line.startswith('{"row"')]


def test_every_environment_with_rows_of_ones_own_is_shown():
    # The others' rows are written by a generator, or are the demo's.
    made = {"reasoning_gym", "tool_use", "genrm"}
    assert {environment_of(shown["row"]) for shown in SHOWN} == set(environments.verifying()) - made


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: environment_of(shown["row"]))
def test_a_shown_row_is_whole_and_its_reply_right(shown):
    name = environment_of(shown["row"])
    assert rl_problem(shown["row"], {name}) is None and environments.row_problem(shown["row"]) is None
    for reply, reward in ((shown["reply"], 1.0), ("I do not know.", 0.0)):
        assert environments.get(name).verify(shown["row"], environments.response_of(reply, False))["reward"] == reward


@pytest.mark.parametrize(
    "row, problem",
    [
        ({}, "no environment: neither agent_ref.name nor"),
        ({"agent_ref": {"name": "nobody"}}, "no environment 'nobody' is registered; known are code_gen"),
        ({"ground_truth": []}, "offers no tool; it must offer some of the 27 tools"),
    ],
)
def test_a_row_that_is_none_is_told_in_words(row, problem):
    assert problem in environments.row_problem(row)
