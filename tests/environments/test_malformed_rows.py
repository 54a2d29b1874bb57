"""A row that is not as it should be is told in one line, and one of which nothing is told can be verified."""

import copy
import json

import pytest
from hypothesis import given, settings, strategies as st

from nemo_cascade import environments
from nemo_cascade.environments import needs_judge, reference, repaired, response_of, row_problem

NAMES = environments.verifying()
ODD = [None, True, 0, -1, 7, 1.5, float("inf"), float("nan"), 10**30, "", "x", "[", "\ud800", [], ["x"], [1.5], [None], {}, {"a": 1}]
values = st.sampled_from(ODD) | st.recursive(
    st.sampled_from(ODD), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
)
DELETED = object()


def paths(value, at=()):
    """Where the parts of a row are; of long lists the first few."""
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, part in items:
        yield from paths(part, (*at, key))


def changed(row: dict, at: tuple, value) -> dict:
    row = copy.deepcopy(row)
    inner = row
    for key in at[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return row


def survives(name: str, row: dict, reply: str) -> None:
    row = {**row, "agent_ref": {"name": f"{name}_simple_agent"}}
    told = row_problem(row)
    if told is not None:
        assert isinstance(told, str) and told
        return
    row = repaired(row)
    verdict = environments.get(name).verify(row, response_of(reply, thinking=False))
    least, most = environments.reward_range(name)
    assert least <= verdict["reward"] <= most and verdict["reward"] >= environments.least(name, row)
    json.dumps(verdict)
    needs_judge(row), reference(row)


@pytest.mark.parametrize("name", NAMES)
def test_any_part_of_a_good_row_may_be_anything(name):
    examples = {json.dumps(row): (row, reply) for row, reply, _ in reversed(environments.get(name).EXAMPLES)}
    examples = list(examples.values())

    @settings(max_examples=20 if environments.in_threads(name) else 60)
    @given(st.data())
    def look(data):
        row, reply = data.draw(st.sampled_from(examples))
        at = data.draw(st.sampled_from(list(paths(row))))
        survives(name, changed(row, at, data.draw(st.just(DELETED) | values)), reply)

    look()


@pytest.mark.parametrize(
    "name, key, odd",
    [
        ("mcqa", "grading_mode", ["x"]),
        ("mcqa", "template_metadata", 1.5),
        ("mcqa", "template_metadata", {"output_regex": {}}),
        ("structured_outputs", "schema_type", []),
        ("swe_repair", "test_patch", 1.5),
        ("swe_repair", "test_patch", ["x"]),
        ("swe_repair", "tests", {"test_sums.py": 1.5}),
        ("swe_repair", "files", {"../sums.py": ""}),
        ("reasoning_gym", "metadata", {"source_dataset": []}),
        ("tool_use", "initial_state", 1.5),
        ("tool_use", "responses_create_params", {"tools": [environments.get("tool_use").EXAMPLES[0][0], None]}),
        ("tool_use", "responses_create_params", {"tools": 1.5}),
        ("tool_use", "responses_create_params", None),
        ("workplace_assistant", "responses_create_params", None),
        ("workplace_assistant", "workplace_data", 1.5),
        ("genrm", "expected_scores", {"score_1": "4", "score_2": 2, "ranking": 2}),
        ("genrm", "expected_scores", {"score_1": 9, "score_2": 2, "ranking": 2}),
        ("code_gen", "verifier_metadata", {**environments.get("code_gen").EXAMPLES[0][0]["verifier_metadata"], "language": []}),
    ],
)
def test_what_is_not_as_it_should_be_is_told(name, key, odd):
    row = environments.get(name).EXAMPLES[0][0]
    told = row_problem({**row, key: odd, "agent_ref": {"name": f"{name}_simple_agent"}})
    assert isinstance(told, str) and "\n" not in told


def test_a_tool_that_is_missing_something_is_told_by_the_key():
    row = environments.get("tool_use").EXAMPLES[0][0] | {"agent_ref": {"name": "tool_use"}}
    tools = row["responses_create_params"]["tools"]
    for wrong in (1.5, [*tools, None], [{}], [{"name": "add", "parameters": {"properties": []}}], [{"function": "add"}]):
        assert row_problem({**row, "responses_create_params": {"tools": wrong}}).startswith("tools must be a list of objects")
