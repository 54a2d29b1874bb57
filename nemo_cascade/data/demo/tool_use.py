"""Remove a word from a list by one tool call, by name or by place. Longer lists at the RL level.

Demonstrations remove with the tool that takes what the request says, or with the other one, for which the place of a
word or the word at a place must be found first. Both leave the same list. That it pays to take the tool that fits the
request is what RL can find and the demonstrations do not say.
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
    place, name = rng.randint(1, len(items)), rng.choice(list(PARAMETERS))
    value = {"remove": items[place - 1], "remove_at": place}[name]
    text = f"List {' '.join(items)}\nRemove {value}"
    return {
        "responses_create_params": user(text) | {"tools": [tool(n, *parameter) for n, parameter in PARAMETERS.items()]},
        "initial_state": {"items": items},
        "expected_calls": [call(name, value)],
    }


def call(name: str, value) -> dict:
    return {"name": name, "arguments": {PARAMETERS[name][0]: value}}


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the expected call, or the other tool's call for the same item."""
    items, (expected,) = row["initial_state"]["items"], row["expected_calls"]
    (value,) = expected["arguments"].values()
    if rng.random() < WORKED:
        return "", render_tool_call(expected)
    if expected["name"] == "remove":
        return "", render_tool_call(call("remove_at", items.index(value) + 1))
    return "", render_tool_call(call("remove", items[value - 1]))
