"""RL rows: each goes out with an environment that can verify replies to it, in one split, or is dropped for a reason."""

import json

import pytest
from released_files import choose, follow, gym_row

from nemo_cascade import environments
from nemo_cascade.data.prepare.outcome import Unusable
from nemo_cascade.data.prepare.tasks import split_of, to_task
from nemo_cascade.environments.workplace_assistant.data import VARIABLE


def structured(number: int, schema: object, **keys) -> dict:
    return gym_row(number, schema_str=json.dumps(schema), **keys)


def test_arguments_are_mended_and_the_environment_is_filled_in():
    row = follow(1, kwargs=[{"keywords": "river", "num_words": None, "capital_relation": None}])
    del row["agent_ref"]
    task, mended = to_task(row, 0.0)
    assert task.row["kwargs"] == [{"keywords": ["river"]}]
    assert task.row["agent_ref"] == {"type": "responses_api_agents", "name": "instruction_following_simple_agent"}
    assert (task.domain, task.split, dict(mended)) == ("instruction_following", "train", {"agent_ref": 1, "arguments": 1})
    assert {key: task.row[key] for key in ("id", "responses_create_params")} == {key: row[key] for key in ("id", "responses_create_params")}
    # The paper's own case: the keyword was a list of one word.
    row = follow(2, instruction_id_list=["count:count_increment_word"], kwargs=[{"keyword1": ["a"], "keyword2": ["b"]}])
    assert to_task(row, 0.0)[0].row["kwargs"] == [{"keyword1": "a", "keyword2": "b"}]


def test_domains_are_those_of_the_config(monkeypatch):
    monkeypatch.setenv(VARIABLE, "generated")
    work = environments.get("workplace_assistant").EXAMPLES[0][0]
    work = work | {"responses_create_params": {**work["responses_create_params"], "input": "Tidy up."}}
    rows = [choose(1), structured(2, {"type": "object"}), gym_row(3, expected_answer="7"), work]
    assert [to_task(row, 0.0)[0].domain for row in rows] == ["mcqa", "structured_outputs", "math", "tool_use"]


UNUSABLE = {
    "no_environment": [gym_row(1), gym_row(1, expected_answer=None)],
    "unknown_environment": [gym_row(1, agent_ref={"name": "openhands_simple_agent"})],
    "prompt": [
        follow(1, responses_create_params={"input": []}),
        follow(1, responses_create_params={"input": [{"role": "assistant", "content": "x"}]}),
        follow(1, responses_create_params={"input": [{"role": "user", "content": " "}]}),
    ],
    "left_out": [choose(1)],
    # No signal that could be trusted: what the 615 rows of the released sets have.
    "unverifiable": [
        follow(1, kwargs=[]),
        follow(1, kwargs=[{}]),
        follow(1, instruction_id_list=[]),
        follow(1, instruction_id_list=["no:such_type"]),
        gym_row(1, options=[{"A": "Oslo"}], expected_answer="C"),
        gym_row(1, options=[], expected_answer="A"),
        gym_row(1, expected_answer=" "),
        gym_row(1, schema_str="{half"),
        gym_row(1, schema_str="{}", schema_type="sgml"),
    ],
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_row_that_nothing_can_verify_is_dropped_for_its_reason(reason):
    for row in UNUSABLE[reason]:
        with pytest.raises(Unusable) as told:
            to_task(row, 0.0, without=("mcqa",) if reason == "left_out" else ())
        assert told.value.reason == reason, row


def test_what_a_server_of_gym_verifies_is_left_to_it():
    row = gym_row(1, agent_ref={"name": "openhands_simple_agent"})
    task, _ = to_task(row, 0.0, gym_servers=("openhands",))
    assert (task.row, task.domain) == (row, "openhands")


def test_rows_of_one_prompt_are_on_one_side_and_the_share_is_kept():
    rows = [choose(number) for number in range(1000)]
    sides = [split_of(row, 0.2) for row in rows]
    assert 150 < sides.count("validation") < 250
    assert [split_of(follow(number), 0.2) for number in range(1000)] == sides
    assert {split_of(row, 0.0) for row in rows} == {"train"}
