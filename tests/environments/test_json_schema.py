"""The fast reading of a schema allows what jsonschema's allows."""

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry

from nemo_cascade.environments.json_schema import Schema, keywords

NAMES = st.sampled_from(["a", "b", "c"])
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 1.0, 1.5, 2**53 + 1, float(2**53), 10**40, 1e40, 1e308])
LEAVES = st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "a", "é", "e\u0301", "😀", "\ud800", "1"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
SIZES = st.integers(0, 3)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])


def keyword_sets(inner):
    parts = st.lists(inner, min_size=1, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
            "enum": st.lists(VALUES, min_size=1, max_size=3),
            "const": VALUES,
            "minimum": NUMBERS,
            "exclusiveMaximum": NUMBERS,
            "minLength": SIZES,
            "maxLength": SIZES,
            "minItems": SIZES,
            "maxItems": SIZES,
            "uniqueItems": st.booleans(),
            "items": inner,
            "prefixItems": parts,
            "contains": inner,
            "minContains": SIZES,
            "properties": st.dictionaries(NAMES, inner, max_size=2),
            "additionalProperties": inner,
            "propertyNames": inner,
            "required": st.lists(NAMES, max_size=2, unique=True),
            "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=1),
            "dependencies": st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=1),
            "maxProperties": SIZES,
            "anyOf": parts,
            "oneOf": parts,
            "not": inner,
            "if": inner,
            "then": inner,
            "unevaluatedProperties": st.booleans(),
            "multipleOf": st.sampled_from([0.1, 1, 3]),
            "pattern": st.sampled_from(["^a$", r"^\d*$", r"\w"]),
            "format": st.sampled_from(["date", "email"]),
        },
    )


SCHEMAS = st.recursive(st.booleans() | keyword_sets(st.booleans()), keyword_sets, max_leaves=4)


@settings(max_examples=400)  # other ones every time
@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=4))
def test_both_readers_allow_the_same_documents(schema, documents):
    for document in documents:
        slow = Draft202012Validator(schema, registry=Registry()).is_valid(document)
        assert Schema(schema).is_valid(document) == slow


DEEP = []
for _ in range(90):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "schema, document, allowed",
    [
        ({"type": "number"}, float("inf"), True),
        ({"type": "null"}, float("nan"), False),
        ({"type": "object"}, {1: 2}, True),
        ({"items": {"type": "string"}}, [datetime.date(2020, 1, 1)], False),
        ({"$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"}, DEEP, True),
        ({"pattern": r"^\d$"}, "\u0663", True),
        ({"minLength": 1.0}, "", False),
    ],
)
def test_what_json_does_not_have_is_judged_as_in_python(schema, document, allowed):
    assert Schema(schema).is_valid(document) == allowed


def test_an_ordinary_schema_is_read_the_fast_way_and_one_with_a_pattern_is_not():
    schema = {"type": "object", "properties": {"pattern": {"enum": [{"multipleOf": 1}]}}}
    assert keywords(schema) == {"type", "properties", "enum"} and Schema(schema)._rust is not None
    assert Schema({"items": {"pattern": "a"}})._rust is None
