"""Structured outputs: the whole answer is one document that a schema allows; what it says is not judged.

Row: `schema_str` (a JSON schema as text, read strictly: `json_schema.strict`), `schema_type` (json unless given, or yaml,
xml, toml, csv). With `response_mode` "tool_call" the document is the arguments of the reply's one call instead, of the tool
`tool_name` if given, or what these have under `tool_payload_key`. `format` is not checked, and a `$ref` never fetches
anything.
"""

import json

from jsonschema import SchemaError

from nemo_cascade.environments import documents
from nemo_cascade.environments.json_schema import DEPTH, validator
from nemo_cascade.environments.response import text_of

# What the root of a document of these types always is.
ROOTS = {"csv": "array", "toml": "object"}

_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "required": False}, "legs": {"enum": [2, 4]}},
    "required": ["name"],
}
_PET = {"schema_str": json.dumps(_SCHEMA)}
_HERD = {"schema_str": json.dumps({"type": "array", "items": {"properties": {"name": {}, "legs": {"type": "integer"}}}})}
_TAGGED = {"type": "object", "properties": {"pet": {"type": "object", "properties": {"legs": {"type": "integer"}}}}}
REWARD_RANGE = (0.0, 1.0)
EXAMPLES = [
    (_PET, '{"name": "Rex", "legs": 4}', 1.0),
    (_PET, ' {"legs": 2,\n "name": ""}\n', 1.0),
    (_PET, '{"name": "Rex"}', 0.0),
    (_PET, '{"name": "Rex", "legs": 4, "tail": true}', 0.0),
    (_PET, '```json\n{"name": "Rex", "legs": 4}\n```', 0.0),
    (_PET, 'Here it is: {"name": "Rex", "legs": 4}', 0.0),
    (_PET | {"schema_type": "yaml"}, "name: Rex\nlegs: 4", 1.0),
    (_PET | {"schema_type": "yaml"}, "```yaml\nname: Rex\nlegs: 4\n```", 0.0),
    (_PET | {"schema_type": "toml"}, 'name = "Rex"\nlegs = 4', 1.0),
    (_PET | {"schema_type": "toml"}, "name = Rex", 0.0),
    (_HERD | {"schema_type": "csv"}, "name,legs\nRex,4\nPip,2", 1.0),
    (_HERD | {"schema_type": "csv"}, "name,legs\nRex,four", 0.0),
    ({"schema_str": json.dumps(_TAGGED), "schema_type": "xml"}, "<pet><legs>4</legs></pet>", 1.0),
    ({"schema_str": json.dumps(_TAGGED), "schema_type": "xml"}, "<pet><legs>4</legs>", 0.0),
    (_PET | {"response_mode": "tool_call"}, '{"name": "Rex", "legs": 4}', 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified, or every reply to it from being right."""
    kind, mode = row.get("schema_type", "json"), row.get("response_mode") or "text"
    if kind not in documents.KINDS:
        return f"schema_type {kind!r} cannot be checked, only {', '.join(documents.KINDS)} can"
    if mode not in ("text", "tool_call"):
        return f"response_mode {mode!r} is neither text nor tool_call"
    if not isinstance(row.get("schema_str"), str):
        return "no schema_str (a JSON schema as text)"
    try:
        schema = validator(row["schema_str"]).schema
    except SchemaError as error:
        return f"schema_str is no valid JSON schema: {error.message}"
    except (ValueError, RecursionError) as error:
        return f"schema_str cannot be used: {error}"
    wanted = schema.get("type") if isinstance(schema, dict) else None
    root = ROOTS.get(kind) if mode == "text" else None
    if root and wanted and root not in ([wanted] if isinstance(wanted, str) else wanted):
        return f"schema_str wants type {wanted!r}, and a {kind} document is always an {root}: no reply can be right"
    return None


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "error_type": None or Gym's name for what is wrong}.

    Raises what `validator` does for a row that has a `problem`.
    """
    allowed = validator(row["schema_str"])
    kind = row.get("schema_type", "json")
    called = row.get("response_mode") == "tool_call"
    error, document, is_plain = _called(row, response) if called else _written(kind, response)
    if error is None:
        try:
            if not called:
                document = documents.typed(kind, document, allowed.schema)
            error = None if allowed.is_valid(document, is_plain) else "validation_error"
        # Documents nested too deep, numbers too large for a float, keys that are no texts, a $ref that leads nowhere.
        except Exception:
            error = "validation_error"
    return {"reward": float(error is None), "error_type": error}


def _written(kind: str, response: dict) -> tuple[str | None, object, bool]:
    """(error, document, whether it is known to be plain) of the text. Line breaks after a thought are no part of the answer."""
    text = text_of(response).lstrip("\r\n")
    if not text.strip():
        return "empty_response", None, False
    try:
        return None, *(_json(text) if kind == "json" else (documents.read(kind, text), False))
    except documents.Unreadable:
        return "parse_error", None, False


def _called(row: dict, response: dict) -> tuple[str | None, object, bool]:
    """(error, document, whether it is known to be plain) of the reply's call."""
    if response.get("error") is not None:
        return "api_error", None, False
    calls = [item for item in response.get("output", []) if item.get("type") == "function_call"]
    if len(calls) != 1:
        return "multiple_tool_calls" if calls else "missing_tool_call", None, False
    if row.get("tool_name") and calls[0].get("name") != row["tool_name"]:
        return "wrong_tool_name", None, False
    document, key, is_plain = calls[0].get("arguments"), row.get("tool_payload_key"), False
    if not isinstance(document, dict):
        try:
            document, is_plain = _json(document)
        except (TypeError, documents.Unreadable):
            return "tool_arguments_parse_error", None, False
    if not key:
        return None, document, is_plain
    if not isinstance(document, dict) or key not in document:
        return "missing_tool_payload_key", None, False
    return None, document[key], is_plain


def _json(text: str) -> tuple[object, bool]:
    """The document, and whether it is known to be plain: its numbers end, and few brackets are no deep ones."""
    document, finite = documents.read_json(text)
    return document, finite and text.count("[") + text.count("{") < DEPTH
