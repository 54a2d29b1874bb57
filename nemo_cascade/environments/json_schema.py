"""JSON schemas out of rows: read strictly, as NeMo Gym reads them, and built once for each text."""

import json
from functools import lru_cache

from jsonschema import Draft202012Validator
from referencing import Registry

# Under these keywords the keys are the user's names, under those the values are data: neither are keywords of a schema.
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
DATA = ("const", "enum", "default", "examples")


# More than the released data has, because rows are read again and again in the same order.
@lru_cache(maxsize=16_384)
def validator(schema_str: str) -> Draft202012Validator:
    """What the schema allows; its `schema` is the strict one.

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
