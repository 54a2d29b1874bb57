"""Reading a reply as one document: JSON, YAML, XML, TOML or CSV, as plain Python values that a JSON schema can judge.

XML and CSV know texts only. `typed` turns those into what the schema asks for where they can be, as NeMo Gym does, so that
`<age>3</age>` is an integer where an integer must be.
"""

import csv
import io
import json
import tomllib
from collections.abc import Callable
from functools import partial
from math import isinf

import xmltodict
import yaml

# Characters of a reply, YAML's depth, and the values in it when each alias is written out: more is no answer to any
# question, and would take memory and time without end.
MAX_LENGTH = 1_000_000
MAX_DEPTH = 100
MAX_VALUES = 100_000
# In C where PyYAML was built with libyaml: twenty times faster.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Unreadable(ValueError):
    """The text is no such document."""


class _Endless(Exception):
    """A number is too large for a float."""


def read(kind: str, text: str):
    """The document of a kind out of KINDS that a text is. Raises Unreadable."""
    return _read(KINDS[kind], text)


def read_json(text: str) -> tuple[object, bool]:
    """The document that JSON is, and whether all its numbers have an end: 1e999 is infinite. Raises Unreadable."""
    try:
        return _read(_FINITE.decode, text), True
    except _Endless:
        return _read(_JSON.decode, text), False


def _read(reader: Callable, text: str):
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"longer than {MAX_LENGTH} characters")
    try:
        return reader(text)
    except _Endless:
        raise
    # Readers fail in many ways at what nobody would write: dates that are none, too many digits, recursion.
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None


def typed(kind: str, document, schema):
    """The document with its texts as the types that the schema names, where they can be read so."""
    if kind == "xml":
        return _typed_xml(document, schema)
    if kind == "csv":
        columns = _said(_said(schema, "items", schema), "properties", {})
        wanted = {name: _said(column, "type", "string") for name, column in columns.items()}
        return [{name: _typed_cell(cell, wanted.get(name, "string")) for name, cell in row.items()} for row in document]
    return document


def _said(schema, keyword: str, otherwise):
    """What a schema says under a keyword; true and false, which are schemas too, say nothing."""
    return schema.get(keyword, otherwise) if isinstance(schema, dict) else otherwise


def _object(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _not_json(constant: str):
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    found = float(number)
    if isinf(found):
        raise _Endless
    return found


# Keys given twice and NaN are errors: what they mean differs from reader to reader. Built once: each would take as long to
# build as to read a short document.
_FINITE = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_not_json, parse_float=_finite)
_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_not_json)


def _yaml(text: str):
    depth = aliases = 0
    # Events first, because they are read without recursion: the C reader would overflow its stack.
    for event in yaml.parse(text, Loader=_YAML):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError("nested too deep")
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        aliases += isinstance(event, yaml.AliasEvent)
    document = yaml.load(text, Loader=_YAML)
    if aliases:
        _bounded(document)
    return document


def _bounded(document) -> None:
    """Raises ValueError when a few aliases stand for very many values, or for themselves."""
    left, waiting = MAX_VALUES, [document]
    while waiting:
        value = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError("its aliases stand for too many values")
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)


def _csv(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def _typed_xml(value, schema):
    wanted = schema.get("type") if isinstance(schema, dict) else None
    if wanted == "object" and isinstance(value, dict):
        properties = schema.get("properties", {})
        return {name: _typed_xml(part, properties.get(name)) for name, part in value.items()}
    if wanted == "array":
        # <names><name>a</name><name>b</name></names> is read as {"name": ["a", "b"]}: the inner tag names no property.
        if isinstance(value, dict) and len(value) == 1:
            (value,) = value.values()
        parts = value if isinstance(value, list) else [] if value is None else [value]
        return [_typed_xml(part, schema.get("items", {})) for part in parts]
    if wanted == "string" and value is None:
        return ""
    return _typed_text(value, wanted)


def _typed_cell(cell, wanted):
    """Of several types the first that the cell can be read as; an empty one is null where null is allowed."""
    if not isinstance(wanted, list):
        return _typed_text(cell, wanted)
    if not cell and "null" in wanted:
        return None
    for one in wanted:
        found = cell if one == "null" else _typed_cell(cell, one)
        if one == "string" or not isinstance(found, str):
            return found
    return cell


_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def _typed_text(text, wanted):
    if not text or not isinstance(text, str) or not isinstance(wanted, str):
        return text
    if wanted == "boolean":
        return _TRUTH.get(text.lower(), text)
    try:
        return {"integer": int, "number": float}.get(wanted, str)(text)
    except ValueError:
        return text


KINDS: dict[str, Callable] = {
    "json": _JSON.decode,
    "yaml": _yaml,
    # External and internal entities are refused, as a document that grows when it is read needs them.
    "xml": partial(xmltodict.parse, disable_entities=True),
    "toml": tomllib.loads,
    "csv": _csv,
}
