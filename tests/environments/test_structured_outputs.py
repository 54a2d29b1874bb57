"""Structured outputs: the documents that a strictly read schema allows earn the reward, and no answer breaks it."""

import json

import pytest
from hypothesis import given, strategies as st

from nemo_cascade.environments import response_of
from nemo_cascade.environments.json_schema import strict, validator
from nemo_cascade.environments.structured_outputs import EXAMPLES, problem, verify


def row(schema) -> dict:
    return {"schema_str": json.dumps(schema), "schema_type": "json"}


def reward(schema, answer: str) -> float:
    return verify(row(schema), response_of(f"thought</think>{answer}"))["reward"]


ANYTHING = row({})["schema_str"]
FRUIT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "count": {"type": "integer", "minimum": 0, "maximum": 3},
    },
}


@pytest.mark.parametrize("row, answer, earned", EXAMPLES)
def test_known_replies_earn_what_they_should(row, answer, earned):
    assert problem(row) is None
    assert verify(row, response_of(f"thought</think>{answer}"))["reward"] == earned
    assert verify(row, response_of(answer))["reward"] == 0.0, "the thought never ends"


VALUES = st.none() | st.booleans() | st.integers(-2, 5) | st.text(max_size=2)


@given(
    st.fixed_dictionaries({}, optional={"name": VALUES, "count": VALUES, "more": VALUES})
    | st.fixed_dictionaries({"name": st.text(min_size=1), "count": st.integers(0, 3)}),
    st.booleans(),
    st.sampled_from([None, 0, 2]),
)
def test_a_document_earns_the_reward_just_when_it_is_a_fruit(value, ascii_only, indent):
    is_fruit = (
        set(value) == {"name", "count"}
        and isinstance(value["name"], str)
        and value["name"] != ""
        and type(value["count"]) is int
        and 0 <= value["count"] <= 3
    )
    # The answer ends at the last thought, wherever that is.
    if "</think>" not in str(value):
        assert reward(FRUIT, json.dumps(value, ensure_ascii=ascii_only, indent=indent)) == float(is_fruit)


@given(st.text())
def test_no_answer_raises(text):
    assert reward(FRUIT, text) == 0.0


@pytest.mark.parametrize(
    "answer",
    ["NaN", "[-Infinity]", '{"a": 1, "a": 2}', '[{"b": 1, "b": 1}]', "{'a': 1}", "[1,]", "1 2", "```\n1\n```"],
)
def test_what_is_not_one_json_document_earns_nothing_under_any_schema(answer):
    verdict = verify({"schema_str": ANYTHING}, response_of(f"</think>{answer}"))
    assert verdict == {"reward": 0.0, "error_type": "parse_error"}
    assert reward({}, '{"a": {"b": 1}, "c": {"b": 1}}') == 1.0


TREE = {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"const": 0}]}


@pytest.mark.parametrize(
    "schema, answer",
    [
        (TREE, "[" * 100_000),
        (TREE, '{"a":' * 100_000 + "0" + "}" * 100_000),
        (TREE, "[" * 800 + "0" + "]" * 800),
        ({"$ref": "#"}, "0"),
        ({"multipleOf": 0.1}, "1" + "0" * 400),
        ({"multipleOf": 3}, "1e999"),
        ({"type": "integer"}, "1" * 5000),
        ({"$ref": "#/$defs/none"}, "0"),
    ],
    ids=["open", "deep-object", "deep-array", "endless-schema", "huge", "infinite", "digits", "dangling"],
)
def test_deep_huge_and_endless_things_earn_nothing_and_do_not_raise(schema, answer):
    assert reward(schema, answer) == 0.0


def test_a_long_flat_answer_is_still_read():
    assert reward({"type": "array", "items": {"type": "integer"}}, json.dumps(list(range(20_000)))) == 1.0


def test_objects_have_all_of_their_properties_and_no_others_at_any_depth():
    inner = {"properties": {"a": {}}, "required": [], "additionalProperties": True}
    schema = {"properties": {"in": inner}, "required": []}
    assert reward(schema, '{"in": {"a": 1}}') == 1.0
    for answer in ("{}", '{"in": {}}', '{"in": {"a": 1, "b": 2}}', '{"in": {"a": 1}, "b": 2}'):
        assert reward(schema, answer) == 0.0


def test_alternatives_stay_open():
    schema = {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {}}, "required": ["b"]}]}
    assert reward(schema, '{"b": 1}') == reward(schema, '{"a": 1, "b": 1}') == 1.0
    assert reward(schema, '{"a": 1}') == 0.0


def test_only_a_required_that_is_a_keyword_and_no_list_is_dropped():
    schema = {
        "properties": {
            "required": {"type": "boolean"},
            "list": {"type": "array", "required": True, "items": {"anyOf": [{"type": "null", "required": False}]}},
            "data": {"const": {"required": False}},
        }
    }
    assert reward(schema, '{"required": true, "list": [null], "data": {"required": false}}') == 1.0
    for answer in ('{"list": [], "data": {"required": false}}', '{"required": true, "list": [], "data": {}}'):
        assert reward(schema, answer) == 0.0


def test_the_schema_itself_is_not_changed():
    before = json.dumps(FRUIT)
    assert strict(FRUIT)["required"] == ["name", "count"] and json.dumps(FRUIT) == before


def test_a_reference_to_another_document_is_told_and_never_fetched(tmp_path):
    (tmp_path / "any.json").write_text("{}")
    url = (tmp_path / "any.json").as_uri()
    assert "points outside" in problem(row({"properties": {"a": {"$ref": url}}}))
    assert reward({"$dynamicRef": url}, "1") == 0.0, "the file was read"
    assert reward({"$id": url, "$ref": "#/$defs/a", "$defs": {"a": {"const": 1}}}, "1") == 1.0


@pytest.mark.parametrize(
    "row, said",
    [
        ({}, "no schema_str"),
        ({"schema_str": {}}, "no schema_str"),
        ({"schema_str": "{"}, "cannot be used: Expecting"),
        ({"schema_str": "[" * 100_000}, "cannot be used"),
        ({"schema_str": "5"}, "no valid JSON schema"),
        ({"schema_str": '{"type": "sheep"}'}, "'sheep'"),
        ({"schema_str": '{"pattern": "("}'}, "no valid JSON schema"),
        ({"schema_str": "{}", "schema_type": "ini"}, "'ini' cannot be checked, only json, yaml, xml, toml, csv can"),
        ({"schema_str": "{}", "response_mode": "voice"}, "response_mode 'voice' is neither text nor tool_call"),
        (
            {"schema_str": '{"type": "object"}', "schema_type": "csv"},
            "a csv document is always an array: no reply can be right",
        ),
        ({"schema_str": '{"type": ["array", "null"]}', "schema_type": "toml"}, "a toml document is always an object"),
    ],
)
def test_a_row_that_cannot_be_verified_is_told_in_one_line(row, said):
    assert said in problem(row) and "\n" not in problem(row)


def test_a_schema_is_built_once():
    assert validator(ANYTHING) is validator(row({})["schema_str"])


@pytest.mark.parametrize("kind, wanted", [("csv", "array"), ("toml", "object"), ("xml", "array"), ("yaml", "string")])
def test_a_row_is_fine_where_some_document_can_be_right(kind, wanted):
    assert problem(row({"type": wanted}) | {"schema_type": kind}) is None
    assert problem(row({"type": ["null", wanted]}) | {"schema_type": kind}) is None
    assert problem(row({}) | {"schema_type": kind}) is None


def test_an_empty_answer_is_told_from_a_bad_one():
    assert verify(row({}), response_of("</think> \n "))["error_type"] == "empty_response"
    assert verify(row({}), response_of("</think>{"))["error_type"] == "parse_error"
    assert verify(row(FRUIT), response_of("</think>{}"))["error_type"] == "validation_error"


PEAR = {"name": "pear", "count": 2}


def call(name="save", arguments=json.dumps(PEAR)) -> dict:
    return {"type": "function_call", "name": name, "arguments": arguments}


@pytest.mark.parametrize(
    "more, output, said",
    [
        ({}, [call()], None),
        ({}, [{"type": "message", "content": []}, call()], None),
        ({}, [call(arguments=PEAR)], None),
        ({"tool_name": "save"}, [call()], None),
        ({"tool_payload_key": "fruit"}, [call(arguments=json.dumps({"fruit": PEAR, "more": 1}))], None),
        ({"tool_name": "save"}, [call("drop")], "wrong_tool_name"),
        ({}, [], "missing_tool_call"),
        ({}, [call(), call()], "multiple_tool_calls"),
        ({}, [call(arguments="{")], "tool_arguments_parse_error"),
        ({}, [call(arguments=None)], "tool_arguments_parse_error"),
        ({"tool_payload_key": "fruit"}, [call()], "missing_tool_payload_key"),
        ({"tool_payload_key": "fruit"}, [call(arguments="[]")], "missing_tool_payload_key"),
        ({}, [call(arguments="{}")], "validation_error"),
    ],
)
def test_the_arguments_of_the_one_call_are_the_document_where_a_call_is_asked_for(more, output, said):
    verdict = verify(row(FRUIT) | {"response_mode": "tool_call"} | more, {"output": output})
    assert verdict == {"reward": float(said is None), "error_type": said}


def test_infinite_numbers_and_deep_documents_are_left_to_python_as_text_or_call():
    deep = "[" * 64 + "]" * 64
    cases = [("1e999", {"type": "number"}, 1.0), ("[1e999]", {"items": {"type": "null"}}, 0.0), (deep, {"type": "array"}, 1.0)]
    cases += [('{"a": 1.5}', {"properties": {"a": {"type": "null"}}}, 0.0)]
    cases += [('{"a": -1e999}', {"properties": {"a": {"type": "number"}}}, 1.0)]
    for text, schema, earned in cases:
        call = {"output": [{"type": "function_call", "name": "f", "arguments": text}]}
        assert reward(schema, text) == earned, text
        assert verify(row(schema) | {"response_mode": "tool_call"}, call)["reward"] == earned, text


@pytest.mark.parametrize("schema", ["true", "{}", '{"items": true}', '{"items": {"properties": {"a": true}}}'])
@pytest.mark.parametrize("kind, text", [("csv", "a\n1"), ("xml", "<a>1</a>"), ("json", "[]")])
def test_a_schema_that_allows_everything_allows_a_document_of_any_kind(schema, kind, text):
    row = {"schema_str": schema, "schema_type": kind}
    assert problem(row) is None and verify(row, response_of(text, thinking=False)) == {"reward": 1.0, "error_type": None}
