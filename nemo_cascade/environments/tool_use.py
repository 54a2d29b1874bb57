"""Tool use: the reply's calls must leave a list of items as the expected calls would. One turn, no results shown.

Row: `responses_create_params.tools` (what is offered, out of PARAMETERS), `initial_state` {"items": [text, ...]},
`expected_calls` [{"name", "arguments"}, ...]. Calls are compared by what they do, so another way to the same list is as
good, and a call that fails does nothing.
"""

import copy

from nemo_cascade.data.chat import parse_reply, render_tool_call
from nemo_cascade.data.rows import tools_of
from nemo_cascade.environments.response import answer_of

# Each tool's one parameter and its type. Places count from 1.
PARAMETERS = {"add": ("item", str), "remove": ("item", str), "remove_at": ("place", int)}


def _call(name: str, **arguments) -> str:
    return render_tool_call({"name": name, "arguments": arguments})


_TOOLS = [
    {
        "type": "function",
        "name": name,
        "parameters": {"type": "object", "properties": {parameter: {"type": "string" if kind is str else "integer"}}},
    }
    for name, (parameter, kind) in PARAMETERS.items()
]
_ROW = {
    "responses_create_params": {"tools": _TOOLS},
    "initial_state": {"items": ["milk", "7", "tea"]},
    "expected_calls": [{"name": "remove", "arguments": {"item": "7"}}],
}
EXAMPLES = [
    (_ROW, _call("remove", item="7"), 1.0),
    (_ROW, _call("remove_at", place=2), 1.0),
    (_ROW, _call("add", item="oil") + _call("remove", item="7") + _call("remove_at", place=3), 1.0),
    (_ROW, _call("remove_at", place=3), 0.0),
    (_ROW, _call("remove", place=2), 0.0),
    (_ROW, _call("remove", item="7") + "\n<tool_call>\n", 0.0),
    (_ROW, "7 is removed.", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    unknown = [name for name in offered(row) if name not in PARAMETERS]
    if unknown or not offered(row):
        return f"tools must be some of {', '.join(PARAMETERS)}, not {', '.join(map(repr, unknown)) or 'none'}"
    state = row.get("initial_state")
    items = state.get("items") if isinstance(state, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return "no initial_state (an object with items, a list of texts)"
    calls = row.get("expected_calls")
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        return "no expected_calls (a list of {name, arguments})"
    state, results = replay(row, calls)
    failed = [result for result in results if result != "done"]
    if failed:
        return f"an expected call fails: {failed[0]}"
    return "expected_calls change nothing, so that silence would be right" if state == row["initial_state"] else None


def reference(row: dict) -> str | None:
    """The expected calls, unless one has a text in it that the model's protocol cannot say."""
    try:
        return "\n".join(map(render_tool_call, row["expected_calls"]))
    except ValueError:
        return None


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 or 0.0, "results": [what came of each readable call]}. An unreadable one earns 0."""
    reply = parse_reply(answer_of(response), tools_of(row))
    state, results = replay(row, reply.get("tool_calls", []))
    right = state == replay(row, row["expected_calls"])[0] and not reply.get("malformed_tool_calls")
    return {"reward": float(right), "results": results}


def offered(row: dict) -> list:
    """Names of the row's tools."""
    return [tool["function"].get("name") for tool in tools_of(row) or []]


def replay(row: dict, calls: list[dict]) -> tuple[dict, list[str]]:
    """The state after calls ({"name", "arguments"}) from the row's fresh start, and what each of them says."""
    state, names = copy.deepcopy(row["initial_state"]), offered(row)
    return state, [execute(state["items"], call, names) for call in calls]


def execute(items: list[str], call: dict, names: list[str]) -> str:
    """One call on the items: "done", or what is wrong with it. Never raises, because a model may call anything."""
    name = call.get("name")
    if name not in names:
        return f"there is no tool {name!r}"
    parameter, kind = PARAMETERS[name]
    # Not isinstance: true would pass as the place 1.
    if set(call["arguments"]) != {parameter} or type(call["arguments"][parameter]) is not kind:
        return f"{name} takes one {parameter}, of type {kind.__name__}"
    value = call["arguments"][parameter]
    if name == "add":
        items.append(value)
    elif name == "remove" and value in items:
        items.remove(value)
    elif name == "remove_at" and 1 <= value <= len(items):
        del items[value - 1]
    else:
        return f"the list has no {parameter} {value!r}"
    return "done"


def _is_call(value) -> bool:
    return isinstance(value, dict) and isinstance(value.get("arguments"), dict)
