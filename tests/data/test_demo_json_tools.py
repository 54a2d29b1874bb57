"""The demo's JSON and tool tasks: two right ways, one of them surer; tools reach the prompt and come back as calls."""

import json
import random

import pytest

from nemo_cascade.data.chat import conversation_to_samples, parse_reply, render_prompt
from nemo_cascade.data.demo import LEVELS, structured_output, tool_use
from nemo_cascade.data.rows import messages_of, rl_problem, tools_of
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments import response_of, structured_outputs
from nemo_cascade.environments import tool_use as todo

TASKS = {"structured_outputs": (structured_output, structured_outputs), "tool_use": (tool_use, todo)}
EVERY_TASK = pytest.mark.parametrize("name", TASKS)
EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)


def rows(name, level, n=300, seed=0):
    rng = random.Random(seed)
    return [TASKS[name][0].draw(rng, level) for _ in range(n)]


def demonstrations(name, level, n=300):
    rng = random.Random(1)
    return [(row, *TASKS[name][0].demonstrate(row, rng)) for row in rows(name, level, n)]


def question(row):
    return messages_of(row)[-1]["content"]


@EVERY_TASK
@EVERY_LEVEL
def test_every_demonstration_is_right_by_its_own_environment(name, level):
    environment = TASKS[name][1]
    for row, thought, answer in demonstrations(name, level):
        assert environment.problem(row) is None
        assert environment.verify(row, response_of(f"{thought}\n</think>\n{answer}"))["reward"] == 1.0
        assert rl_problem({**row, "agent_ref": {"name": f"{name}_simple_agent"}}, {name}) is None


@EVERY_TASK
def test_another_rows_demonstration_seldom_is(name):
    shown = demonstrations(name, "rl")
    answers = [answer for *_, answer in shown[1:] + shown[:1]]
    verify = TASKS[name][1].verify
    earned = [verify(row, response_of(f"</think>{answer}"))["reward"] for (row, *_), answer in zip(shown, answers)]
    assert sum(earned) / len(earned) < 0.2


@EVERY_TASK
@EVERY_LEVEL
def test_draws_and_demonstrations_are_the_same_for_the_same_rng(name, level):
    assert rows(name, level) == rows(name, level) != rows(name, level, seed=2)
    assert demonstrations(name, level) == demonstrations(name, level)


@EVERY_TASK
def test_the_rl_level_asks_about_longer_lists(name):
    longest = {level: max(len(question(row).split()) for row in rows(name, level)) for level in LEVELS}
    assert longest["rl"] > longest["demo"]


@EVERY_LEVEL
def test_half_of_the_objects_are_thought_out_and_the_thought_ends_at_the_answers_word(level):
    shown = demonstrations("structured_outputs", level)
    thoughts = [(thought.split("\n")[-1], row, answer) for row, thought, answer in shown if thought]
    assert 0.4 < len(thoughts) / len(shown) < 0.6
    for last, row, answer in thoughts:
        place = question(row).split("\n")[1].split()[1]
        assert last == f"{place} {json.loads(answer)['word']}"


def test_all_keys_kinds_and_values_of_an_object_are_seen():
    objects = [json.loads(answer) for *_, answer in demonstrations("structured_outputs", "rl")]
    assert {len(value) for value in objects} == {2, 3, 4}
    assert {value["sure"] for value in objects if "sure" in value} == {True, False}
    assert {value["number"] for value in objects if "number" in value} == set(range(9))


@EVERY_LEVEL
def test_half_of_the_removals_use_the_tool_that_fits_the_request(level):
    fits = {"remove": [], "remove_at": []}
    for row, _, answer in demonstrations("tool_use", level):
        (made,), (expected,) = parse_reply(answer, tools_of(row))["tool_calls"], row["expected_calls"]
        assert str(*expected["arguments"].values()) == question(row).split()[-1]
        if expected["name"] == "add":
            assert made == expected
        else:
            fits[expected["name"]].append(made == expected)
    for shares in fits.values():
        assert len(shares) > 60 and 0.3 < sum(shares) / len(shares) < 0.7


def test_the_offered_tools_are_those_that_can_be_executed():
    (row,) = rows("tool_use", "demo", 1)
    types = {"string": str, "integer": int}
    offered = {}
    for tool in row["responses_create_params"]["tools"]:
        ((parameter, schema),) = tool["parameters"]["properties"].items()
        offered[tool["name"]] = (parameter, types[schema["type"]])
    assert offered == todo.PARAMETERS


@EVERY_TASK
def test_a_demonstration_is_trained_behind_the_rows_own_prompt_and_reads_back(name):
    tokenizer = load_tokenizer("tiny")
    for row, thought, answer in demonstrations(name, "rl", 20):
        reply = {"role": "assistant", "content": answer, "reasoning_content": thought}
        (sample,) = conversation_to_samples(tokenizer, {"messages": [*messages_of(row), reply], "tools": tools_of(row)})
        prompt = render_prompt(tokenizer, messages_of(row), tools_of(row))
        assert sample.tokens[: len(prompt)] == prompt
        assert sample.loss_mask == [0] * len(prompt) + [1] * (len(sample.tokens) - len(prompt))
        written = tokenizer.decode(sample.tokens[len(prompt) :], skip_special_tokens=False).removesuffix("<|im_end|>")
        assert written == f"{thought}\n</think>\n{answer}"
        again = parse_reply(written, tools_of(row))
        assert "malformed_tool_calls" not in again and again["reasoning_content"] == thought
        assert again.get("tool_calls") == parse_reply(answer, tools_of(row)).get("tool_calls")
        assert ("tool_calls" in again) == (name == "tool_use") and (again["content"] == "") == (name == "tool_use")
