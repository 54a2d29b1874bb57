"""The demo's JSON and tool tasks: two right ways, one of them surer; tools reach the prompt and come back as calls."""

import json
import random

import pytest

from nemo_cascade.data.chat import conversation_to_samples, parse_reply
from nemo_cascade.data.demo import LEVELS, structured_output, tool_use
from nemo_cascade.data.rows import messages_of, tools_of
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments import structured_outputs
from nemo_cascade.environments import tool_use as todo
from nemo_cascade.environments.response import response_of

TASKS = {"structured_outputs": structured_output, "tool_use": tool_use}
EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)


def rows(name, level, n=300, seed=0):
    rng = random.Random(seed)
    return [TASKS[name].draw(rng, level) for _ in range(n)]


def demonstrations(name, level, n=300):
    rng = random.Random(1)
    return [(row, *TASKS[name].demonstrate(row, rng)) for row in rows(name, level, n)]


def question(row):
    return messages_of(row)[-1]["content"]


@EVERY_LEVEL
def test_half_of_the_objects_name_the_item_by_its_word_and_the_others_by_its_place(level):
    by_word = []
    for row, thought, answer in demonstrations("structured_outputs", level):
        word, *_, items = question(row).split("\n")[1].removeprefix("item: ").partition(" or place in ")
        given = json.loads(answer)["item"]
        assert given in (word, items.split().index(word) + 1) and not thought
        by_word.append(given == word)
    assert 0.4 < sum(by_word) / len(by_word) < 0.6


@EVERY_LEVEL
def test_the_item_may_be_its_word_or_its_place_and_nothing_else(level):
    for row in rows("structured_outputs", level, 20):
        word, _, items = question(row).split("\n")[1].removeprefix("item: ").partition(" or place in ")
        place = items.split().index(word) + 1
        kinds = json.loads(row["schema_str"])["properties"]
        other = {key: structured_output.some_value(kind, random.Random(0)) for key, kind in kinds.items()}
        rewards = [
            structured_outputs.verify(row, response_of(json.dumps(other | {"item": item}), thinking=False))["reward"]
            for item in (word, place, place + 1, str(place), word.upper())
        ]
        assert rewards == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_all_keys_kinds_and_values_of_an_object_are_seen():
    objects = [json.loads(answer) for *_, answer in demonstrations("structured_outputs", "rl")]
    assert {len(value) for value in objects} == {2, 3}
    assert {value["sure"] for value in objects if "sure" in value} == {True, False}
    assert {value["number"] for value in objects if "number" in value} == set(range(9))


@EVERY_LEVEL
def test_half_of_the_removals_take_the_word_and_the_others_its_place(level):
    by_word = []
    for row, _, answer in demonstrations("tool_use", level):
        (made,), items, item = parse_reply(answer, tools_of(row))["tool_calls"], row["initial_state"]["items"], question(row).split()[-1]
        assert row["expected_calls"] == [{"name": "remove", "arguments": {"item": item}}]
        by_place = {"name": "remove_at", "arguments": {"place": items.index(item) + 1}}
        assert made in (*row["expected_calls"], by_place)
        by_word.append(made != by_place)
    assert 0.4 < sum(by_word) / len(by_word) < 0.6


def test_the_offered_tools_are_those_that_can_be_executed():
    (row,) = rows("tool_use", "demo", 1)
    types = {"string": str, "integer": int}
    offered = {}
    for tool in row["responses_create_params"]["tools"]:
        ((parameter, schema),) = tool["parameters"]["properties"].items()
        offered[tool["name"]] = (parameter, types[schema["type"]])
    assert len(offered) == 2 and offered.items() <= todo.PARAMETERS.items()


@pytest.mark.parametrize("name", TASKS)
def test_a_demonstration_reads_back_as_the_thought_and_the_call_that_it_shows(name):
    tokenizer = load_tokenizer("tiny")
    for row, thought, answer in demonstrations(name, "rl", 20):
        reply = {"role": "assistant", "content": answer, "reasoning_content": thought}
        (sample,) = conversation_to_samples(tokenizer, {"messages": [*messages_of(row), reply], "tools": tools_of(row)})
        trained = [token for token, mask in zip(sample.tokens, sample.loss_mask) if mask]
        written = tokenizer.decode(trained, skip_special_tokens=False).removesuffix("<|im_end|>")
        assert written == f"{thought}\n</think>\n{answer}"
        again = parse_reply(written, tools_of(row))
        assert "malformed_tool_calls" not in again and again["reasoning_content"] == thought
        assert again.get("tool_calls") == parse_reply(answer, tools_of(row)).get("tool_calls")
        assert ("tool_calls" in again) == (name == "tool_use") and (again["content"] == "") == (name == "tool_use")
