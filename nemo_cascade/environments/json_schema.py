"""JSON schemas out of rows: read strictly, as NeMo Gym reads them, and built once for each text.

jsonschema-rs, in Rust, judges a document two hundred times faster than jsonschema, in Python. Gym has the latter, whose word
it is where the two differ: a schema with one of `AS_PYTHON`, and a document that Rust cannot take, are left to Python.
"""

import json
from functools import lru_cache
from math import isfinite

import jsonschema_rs
from jsonschema import Draft202012Validator
from referencing import Registry

# Under these keywords the keys are the user's names, under those the values are data: neither are keywords of a schema.
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
DATA = ("const", "enum", "default", "examples")
# Regular expressions are Python's there and JavaScript's here; a multiple of 0.1 is one in floating point there and in
# decimals here; `dependencies` is no keyword any more; a $ref that comes back to itself has no end there and means nothing here.
AS_PYTHON = {"$ref", "$dynamicRef", "pattern", "patternProperties", "multipleOf", "dependencies"}
# Deeper documents are Python's to refuse.
DEPTH = 64
TEXT = {str}
JSON = {str, int, float, bool, type(None), dict, list}


class Schema:
    """What a schema (as `strict` gives it) allows. Raises SchemaError for an invalid one."""

    def __init__(self, schema):
        Draft202012Validator.check_schema(schema)
        self.schema = schema
        # Without a registry of its own jsonschema would fetch what a $ref points to, files included.
        self._python = Draft202012Validator(schema, registry=Registry())
        self._rust = None if keywords(schema) & AS_PYTHON else _rust(schema)

    def is_valid(self, document, is_plain: bool = False) -> bool:
        """Whether the document is allowed. Raises what jsonschema does: for too deep a document, a $ref that leads nowhere.

        is_plain: that it is known to be `plain`, which takes longer to find out than what Rust does.
        """
        if self._rust is not None and (is_plain or plain(document)):
            try:
                return self._rust.is_valid(document)
            # Half a character.
            except ValueError:
                pass
        return self._python.is_valid(document)


# More than the released data has, because rows are read again and again in the same order.
@lru_cache(maxsize=16_384)
def validator(schema_str: str) -> Schema:
    """What the schema allows; its `schema` is the strict one.

    Raises SchemaError for an invalid one, ValueError for text that is not JSON or a `$ref` to another document, and
    RecursionError for one nested too deep.
    """
    return Schema(strict(json.loads(schema_str)))


def strict(schema, closed: bool = True):
    """A copy whose objects must have all of their `properties` and no others; those inside `anyOf`, `allOf` stay open.

    A `required` that is not a list, which some released rows have inside a property, is dropped. Raises ValueError for
    a `$ref` to another document.
    """
    if isinstance(schema, list):
        return [strict(part, closed=False) for part in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref", "#")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise ValueError(f"its $ref {reference!r} points outside, and nothing is fetched; define it under $defs")
    copy = {}
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            copy[key] = {name: strict(part, closed) for name, part in value.items()}
        elif key != "required" or isinstance(value, list):
            copy[key] = value if key in DATA else strict(value, closed)
    if closed and "properties" in copy:
        copy |= {"required": list(copy["properties"]), "additionalProperties": False}
    return copy


def keywords(schema) -> set[str]:
    """The keywords of a schema and of those in it."""
    if isinstance(schema, list):
        return set().union(*map(keywords, schema))
    if not isinstance(schema, dict):
        return set()
    found = set(schema)
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            found |= keywords(list(value.values()))
        elif key not in DATA:
            found |= keywords(value)
    return found


def plain(document) -> bool:
    """Whether a document is what JSON has, and no deeper than DEPTH: no dates of YAML, no keys but texts, no endless numbers."""
    level = [document]
    for _ in range(DEPTH):
        kinds = set(map(type, level))
        if not kinds <= JSON or (float in kinds and not all([isfinite(one) for one in level if type(one) is float])):
            return False
        dicts = [one for one in level if type(one) is dict] if dict in kinds else []
        below = [value for one in level if type(one) is list for value in one] if list in kinds else []
        for one in dicts:
            if not set(map(type, one)) <= TEXT:
                return False
            below += one.values()
        if not below:
            return True
        level = below
    return False


def _rust(schema) -> jsonschema_rs.Draft202012Validator | None:
    try:
        return jsonschema_rs.Draft202012Validator(schema, validate_formats=False, retriever=_fetch_nothing)
    # What is a schema for Python and none for Rust, as one whose $ref leads nowhere.
    except (ValueError, jsonschema_rs.ReferencingError):
        return None


def _fetch_nothing(uri: str):
    raise ValueError(f"{uri} is another document, and nothing is fetched")
