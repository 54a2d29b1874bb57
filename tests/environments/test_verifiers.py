"""Every environment scores its known-good replies and refuses its known-bad ones."""

import pytest

from nemo_cascade import environments
from nemo_cascade.environments import genrm, swe_repair
from nemo_cascade.environments.response import answer_of, last_boxed, response_of

# All but the one whose replies a judge compares (tests/environments/test_genrm.py).
VERIFIERS = [name for name in environments.OURS if name != "genrm_compare"]
CASES = [
    pytest.param(name, *example, id=f"{name}-{number}")
    for name in VERIFIERS
    for number, example in enumerate(environments.get(name).EXAMPLES)
]


@pytest.mark.parametrize("name, row, reply, reward", CASES)
def test_known_replies_earn_what_they_should(name, row, reply, reward):
    assert environments.get(name).verify(row, response_of(f"thought</think>{reply}"))["reward"] == reward


@pytest.mark.parametrize("name, row, reply, reward", CASES)
def test_a_thought_that_never_ends_earns_nothing(name, row, reply, reward):
    unreadable = {"distance": genrm.UNREADABLE, "similarity": swe_repair.UNREADABLE}
    nothing = unreadable.get(row.get("grading_mode") or row.get("reward_mode"), 0.0)
    assert environments.get(name).verify(row, response_of(reply))["reward"] == nothing


@pytest.mark.parametrize("name", VERIFIERS)
def test_every_environment_knows_good_and_bad(name):
    rewards = {reward for _, _, reward in environments.get(name).EXAMPLES}
    assert 1.0 in rewards and 0.0 in rewards


def test_without_thinking_the_whole_reply_is_the_answer():
    assert answer_of(response_of("\\boxed{A}", thinking=False)) == "\\boxed{A}"


def test_only_what_follows_the_last_thought_is_the_answer():
    assert answer_of(response_of("a</think>\\boxed{A}</think> \\boxed{B} ")) == "\\boxed{B}"
    raw = {"output": [{"type": "message", "content": [{"type": "output_text", "text": "x</think>y"}]}]}
    assert answer_of(raw) == "y"


@pytest.mark.parametrize(
    "text, inside",
    [("\\boxed{1} or \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{1", None), ("none", None), ("\\boxed{ 7 }.", "7")],
)
def test_the_last_box_is_read_with_its_braces(text, inside):
    assert last_boxed(text) == inside


def test_examples_are_rows_that_can_be_verified():
    for name in VERIFIERS:
        for row, *_ in environments.get(name).EXAMPLES:
            assert environments.get(name).problem(row) is None


@pytest.mark.parametrize(
    "row, said",
    [
        ({"agent_ref": {"name": "math"}}, "no expected_answer"),
        ({"agent_ref": {"name": "mcqa"}, "expected_answer": "A"}, "no options"),
        ({"agent_ref": {"name": "mcqa"}, "options": [{"A": "x"}], "expected_answer": "B"}, "'B' is none of"),
        ({"agent_ref": {"name": "instruction_following"}}, "no instruction_id_list"),
        ({"instruction_id_list": ["count:count_unique"]}, "kwargs must be a list of 1"),
        ({"instruction_id_list": ["count:sheep"], "kwargs": [{}]}, "'count:sheep' has no rule"),
    ],
)
def test_a_row_without_what_its_verifier_needs_is_told(row, said):
    assert said in environments.row_problem(row)


def test_an_unknown_instruction_or_environment_is_named():
    row = {"instruction_id_list": ["poetry:rhyme"], "kwargs": [{}]}
    with pytest.raises(KeyError, match="poetry:rhyme"):
        environments.get("instruction_following").verify(row, response_of("</think>x"))
    with pytest.raises(KeyError, match="chess"):
        environments.get("chess")
