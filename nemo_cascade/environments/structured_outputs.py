"""Structured outputs: the whole answer is one JSON document that a schema allows; what it says is not judged.

Row: `schema_str` (a JSON schema as text), optional `schema_type`, of which only "json" is here (not YAML, XML, TOML or
CSV). The schema is read strictly, as in Gym (`strict`). `format` is not checked, and a `$ref` never fetches anything.
"""

import json
from functools import lru_cache

from jsonschema import Draft202012Validator, SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from nemo_cascade.environments.response import answer_of

# Under these keywords the keys are the user's names, under those the values are data: neither are keywords of a schema.
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
DATA = ("const", "enum", "default", "examples")

_PET = {
    "schema_str": json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string", "required": False}, "legs": {"enum": [2, 4]}},
            "required": ["name"],
        }
    )
}
EXAMPLES = [
    (_PET, '{"name": "Rex", "legs": 4}', 1.0),
    (_PET, ' {"legs": 2,\n "name": ""}\n', 1.0),
    (_PET, '{"name": "Rex"}', 0.0),
    (_PET, '{"name": "Rex", "legs": 4, "tail": true}', 0.0),
    (_PET, '```json\n{"name": "Rex", "legs": 4}\n```', 0.0),
    (_PET, 'Here it is: {"name": "Rex", "legs": 4}', 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    if row.get("schema_type", "json") != "json":
        return f"schema_type {row['schema_type']!r} cannot be checked, only 'json' can"
    if not isinstance(row.get("schema_str"), str):
        return "no schema_str (a JSON schema as text)"
    try:
        validator(row["schema_str"])
    except SchemaError as error:
        return f"schema_str is no valid JSON schema: {error.message}"
    except (ValueError, RecursionError) as error:
        return f"schema_str cannot be used: {error}"
    return None


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "error_type": None, "parse_error" or "validation_error"}.

    Raises what `validator` does for a row that has a `problem`.
    """
    allowed = validator(row["schema_str"])
    try:
        document = read_json(answer_of(response))
    except (ValueError, RecursionError):
        return {"reward": 0.0, "error_type": "parse_error"}
    try:
        valid = allowed.is_valid(document)
    # Documents nested too deep, numbers too large for a float, and a $ref that leads nowhere.
    except (RecursionError, OverflowError, Unresolvable):
        valid = False
    return {"reward": float(valid), "error_type": None if valid else "validation_error"}


def read_json(text: str):
    """One JSON document. Raises ValueError for all else, keys given twice and NaN too, RecursionError when too deep."""
    return json.loads(text, object_pairs_hook=_object, parse_constant=_not_json)


# More than the released data has, because rows are read again and again in the same order.
@lru_cache(maxsize=16_384)
def validator(schema_str: str) -> Draft202012Validator:
    """What the schema allows.

    Raises SchemaError for an invalid one, ValueError for text that is not JSON or a `$ref` to another document, and
    RecursionError for one nested too deep.
    """
    schema = strict(json.loads(schema_str))
    Draft202012Validator.check_schema(schema)
    # Without a registry of its own jsonschema would fetch what a $ref points to, files included.
    return Draft202012Validator(schema, registry=Registry())


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


def _object(pairs: list[tuple]) -> dict:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a key is given twice")
    return read


def _not_json(constant: str):
    raise ValueError(f"{constant} is not JSON")
