"""Tool use: calls are judged by what they do to the list, and nothing that a model writes breaks the judge."""

import copy

import pytest
from hypothesis import given, strategies as st

from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.environments import response_of
from nemo_cascade.environments.tool_use import EXAMPLES, PARAMETERS, problem, replay, verify

ROW = EXAMPLES[0][0]


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


def verdict(*calls, row=ROW, between="\n"):
    return verify(row, response_of("thought</think>" + between.join(map(render_tool_call, calls))))


@pytest.mark.parametrize("row, answer, earned", EXAMPLES)
def test_known_replies_earn_what_they_should(row, answer, earned):
    assert problem(row) is None
    assert verify(row, response_of(f"thought</think>{answer}"))["reward"] == earned
    assert verify(row, response_of(answer))["reward"] == 0.0, "the thought never ends"


def test_another_way_to_the_same_list_is_as_good_and_order_matters():
    row = {**ROW, "expected_calls": [call("remove", item="7"), call("add", item="oil")]}
    assert verdict(call("remove_at", place=2), call("add", item="oil"), row=row)["reward"] == 1.0
    assert verdict(call("add", item="oil"), call("remove_at", place=2), row=row)["reward"] == 1.0
    assert verdict(call("add", item="oil"), call("remove_at", place=4), row=row)["reward"] == 0.0
    row = {**ROW, "expected_calls": [call("add", item="a"), call("add", item="b")]}
    assert verdict(call("add", item="b"), call("add", item="a"), row=row)["reward"] == 0.0


BAD = [
    call("destroy", item="7"),
    call("remove"),
    call("remove", place=2),
    call("remove", item="7", place=2),
    call("remove", item="oil"),
    call("remove_at", place=True),
    call("remove_at", place=2.0),
    call("remove_at", place="two"),
    call("remove_at", place=0),
    call("remove_at", place=-2),
    call("remove_at", place=4),
    call("remove_at", place=[2]),
    call("remove_at", place=None),
    call("remove_at", place="1" * 5000),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: str(bad)[:60])
def test_a_bad_call_is_told_and_does_nothing(bad):
    alone = verdict(bad)
    assert alone["reward"] == 0.0 and len(alone["results"]) == 1 and alone["results"][0] != "done"
    assert verdict(bad, call("remove", item="7")) == {"reward": 1.0, "results": [*alone["results"], "done"]}


def test_a_tool_that_is_not_offered_does_nothing():
    offered = [tool for tool in ROW["responses_create_params"]["tools"] if tool["name"] != "remove_at"]
    row = {**ROW, "responses_create_params": {"tools": offered}}
    assert verdict(call("remove_at", place=2), row=row)["reward"] == 0.0


def test_words_around_the_calls_do_not_count_but_a_call_that_cannot_be_read_does():
    right = render_tool_call(call("remove", item="7"))
    unread = f"{right}<tool_call>remove</tool_call>"
    for answer, earned in [(f"Of course.\n{right}\nDone.", 1.0), (unread, 0.0), (right[:-20], 0.0)]:
        assert verify(ROW, response_of(f"</think>{answer}"))["reward"] == earned


def test_a_call_inside_the_thought_is_not_made():
    assert verify(ROW, response_of(render_tool_call(call("remove", item="7")) + "</think>"))["reward"] == 0.0


def test_every_verdict_starts_from_the_fresh_state():
    before = copy.deepcopy(ROW)
    assert [verdict(call("remove", item="7"))["reward"] for _ in range(3)] == [1.0] * 3 and ROW == before


PIECES = "<tool_call> </tool_call> <function= remove> </function> <parameter=item> </parameter> 7".split()
PIECES += ["\n", "[" * 9999]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=20).map("".join))
def test_no_answer_raises(text):
    assert verify(ROW, response_of(f"</think>{text}"))["reward"] in (0.0, 1.0)


def calls_of(name):
    value = st.sampled_from("abc") if PARAMETERS[name][1] is str else st.integers(-1, 4)
    return value.map(lambda chosen: call(name, **{PARAMETERS[name][0]: chosen}))


CALLS = st.lists(st.sampled_from(list(PARAMETERS)).flatmap(calls_of), max_size=4)


@given(st.lists(st.sampled_from("abc"), max_size=3), CALLS)
def test_any_calls_do_what_their_names_say(items, calls):
    expected = list(items)
    for made in calls:
        (value,) = made["arguments"].values()
        if made["name"] == "add":
            expected = [*expected, value]
        else:
            place = value - 1 if made["name"] == "remove_at" else "".join(expected).find(value)
            expected = [item for number, item in enumerate(expected) if number != place]
    assert replay({**ROW, "initial_state": {"items": items}}, calls)[0] == {"items": expected}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"responses_create_params": {}}, "not none"),
        ({"responses_create_params": {"tools": [{"type": "function", "name": "email"}]}}, "not 'email'"),
        ({"initial_state": None}, "no initial_state"),
        ({"initial_state": {"items": [1]}}, "no initial_state"),
        ({"expected_calls": None}, "no expected_calls"),
        ({"expected_calls": [{"name": "add", "arguments": '{"item": "a"}'}]}, "no expected_calls"),
        ({"expected_calls": [call("remove", item="oil")]}, "an expected call fails: the list has no item 'oil'"),
        ({"expected_calls": [call("email")]}, "no tool 'email'"),
        ({"expected_calls": []}, "change nothing"),
        ({"expected_calls": [call("add", item="a"), call("remove_at", place=4)]}, "change nothing"),
    ],
)
def test_a_row_that_cannot_be_verified_is_told(change, said):
    assert said in problem({**ROW, **change})
