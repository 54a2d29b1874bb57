"""Remove a word from a list by one tool call. Longer lists at the RL level.

Demonstrations remove with the tool that takes the word, or with the one that takes its place, which must be found
first. Both leave the same list. That it pays to take the word as the request says it is what RL can find and the
demonstrations do not say.
"""

import random

from nemo_cascade.data.chat import render_tool_call
from nemo_cascade.data.demo.words import WORDS, WORKED, user

LENGTHS = {"demo": (2, 4), "rl": (3, 7)}
PARAMETERS = {"remove": ("item", "string"), "remove_at": ("place", "integer")}


def tool(name: str, parameter: str, kind: str) -> dict:
    """A function tool of one parameter, in as few words as the form allows: every prompt repeats them."""
    schema = {"type": "object", "properties": {parameter: {"type": kind}}, "required": [parameter]}
    return {"type": "function", "name": name, "parameters": schema}


def draw(rng: random.Random, level: str) -> dict:
    items = rng.sample(WORDS, rng.randint(*LENGTHS[level]))
    item = rng.choice(items)
    text = f"List {' '.join(items)}\nRemove {item}"
    return {
        "responses_create_params": user(text) | {"tools": [tool(n, *parameter) for n, parameter in PARAMETERS.items()]},
        "initial_state": {"items": items},
        "expected_calls": [call("remove", item)],
    }


def call(name: str, value) -> dict:
    return {"name": name, "arguments": {PARAMETERS[name][0]: value}}


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the word removed by name, or by its place, counted from 1."""
    (expected,) = row["expected_calls"]
    if rng.random() < WORKED:
        return "", render_tool_call(expected)
    place = row["initial_state"]["items"].index(expected["arguments"]["item"]) + 1
    return "", render_tool_call(call("remove_at", place))
