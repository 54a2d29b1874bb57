"""Documents of all kinds are read as what they say, and none can take a reader's stack, its memory or its time."""

import pytest

from nemo_cascade.environments.documents import KINDS, MAX_DEPTH, MAX_LENGTH, Unreadable, read, typed

PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array"}}}
PEOPLE = {"type": "array", "items": PERSON}


@pytest.mark.parametrize(
    "kind, text, document",
    [
        ("json", ' {"a": [1, null]} ', {"a": [1, None]}),
        ("yaml", "a:\n- 1\n- ~\n", {"a": [1, None]}),
        ("yaml", "a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("xml", '<?xml version="1.0"?><a k="v"><b>1</b><b/> </a>', {"a": {"@k": "v", "b": ["1", None]}}),
        ("toml", "[a]\nb = [1, 2.5]", {"a": {"b": [1, 2.5]}}),
        ("csv", 'a,b\n1,"x,\ny"\n', [{"a": "1", "b": "x,\ny"}]),
    ],
)
def test_documents_are_read(kind, text, document):
    assert read(kind, text) == document


@pytest.mark.parametrize(
    "schema, text, document",
    [
        (PERSON, "<name/>", {"name": ""}),
        (PERSON, "<age>7</age>", {"age": 7}),
        (PERSON, "<age>seven</age>", {"age": "seven"}),
        (PERSON, "<age/>", {"age": None}),
        (PERSON, "<tags><tag>a</tag><tag>b</tag></tags>", {"tags": ["a", "b"]}),
        (PERSON, "<tags><tag>a</tag></tags>", {"tags": ["a"]}),
        (PERSON, "<tags/>", {"tags": []}),
        ({"type": "object", "properties": {"x": {"type": "boolean"}}}, "<x>TRUE</x>", {"x": True}),
        ({"type": "object", "properties": {"x": {"type": ["integer", "null"]}}}, "<x>1</x>", {"x": "1"}),
        (PEOPLE, "<p><q><age>1</age></q><q><age>2</age></q></p>", [{"q": [{"age": "1"}, {"age": "2"}]}]),
    ],
)
def test_texts_of_xml_become_what_the_schema_asks_for(schema, text, document):
    assert typed("xml", read("xml", text), schema) == document


@pytest.mark.parametrize(
    "wanted, cell, value",
    [
        ("integer", "3", 3),
        ("integer", "x", "x"),
        ("number", "2.5", 2.5),
        ("boolean", "False", False),
        ("boolean", "no", "no"),
        ("string", "3", "3"),
        ("integer", "", ""),
        (["integer", "null"], "", None),
        (["null", "number"], "4", 4.0),
        (["string", "integer"], "4", "4"),
    ],
)
def test_cells_of_csv_become_what_the_schema_asks_for(wanted, cell, value):
    schema = {"type": "array", "items": {"properties": {"a": {"type": wanted}}}}
    assert typed("csv", read("csv", f"a,b\n{cell},x"), schema) == [{"a": value, "b": "x"}]


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{y}: &{y} [{','.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi")
)
ENTITIES = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>'
FILE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'


@pytest.mark.parametrize(
    "kind, text",
    [
        *[(kind, "x" * (MAX_LENGTH + 1)) for kind in KINDS],
        *[(kind, "\ud800\x00<{[") for kind in KINDS if kind != "csv"],
        ("json", "[" * 100_000),
        ("yaml", "[" * 100_000),
        ("yaml", "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)),
        ("yaml", "- " * 100_000 + "1"),
        ("yaml", BOMB),
        ("yaml", "&a [*a]"),
        ("yaml", "? [1]\n: 2"),
        ("yaml", "!!python/object/apply:os.getpid []"),
        ("yaml", "!!timestamp never"),
        ("yaml", "a: " + "9" * 5000),
        ("toml", "a = " + "[" * 100_000),
        ("xml", "<a>" * 100_000),
        ("xml", ENTITIES),
        ("xml", FILE),
        ("csv", f'a\n"{"x" * 200_000}"'),
    ],
)
def test_what_no_reader_should_read_is_refused(kind, text):
    with pytest.raises(Unreadable):
        read(kind, text)


def test_documents_as_deep_as_anybody_writes_are_read():
    for kind in ("json", "yaml", "toml"):
        read(kind, {"toml": "a = "}.get(kind, "") + "[" * MAX_DEPTH + "]" * MAX_DEPTH)
