"""Write a JSON object of two or three keys; one of them names an item of a list, by its word or by its place. A schema checks it.

Demonstrations are right both ways, half and half. A word is copied, but for a place the words before it are counted, which
does not stretch to the longer lists of the RL level: that the word is the surer way is what RL can find.
"""

import json
import random

from nemo_cascade.data.demo.words import COLORS, WORDS, WORKED, user

LENGTHS = {"demo": (2, 5), "rl": (4, 6)}
# Keys besides the item. Three, which demonstrations did not show, were never right in any reply, so RL had nothing to find.
OTHERS = (1, 2)


def draw(rng: random.Random, level: str) -> dict:
    words = rng.sample(WORDS, rng.randint(*LENGTHS[level]))
    place, low, colors = rng.randint(1, len(words)), rng.randint(0, 5), rng.sample(COLORS, 2)
    others = {
        "number": (f"{low} to {low + 3}", {"type": "integer", "minimum": low, "maximum": low + 3}),
        "color": (" or ".join(colors), {"enum": colors}),
        "sure": ("true or false", {"type": "boolean"}),
    }
    word = words[place - 1]
    keys = {"item": (f"{word} or place in {' '.join(words)}", {"enum": [word, place]})}
    keys |= {key: others[key] for key in rng.sample(list(others), rng.randint(*OTHERS))}
    schema = {
        "type": "object",
        "properties": {key: kind for key, (_, kind) in keys.items()},
        "required": list(keys),
        "additionalProperties": False,
    }
    text = "\n".join(["Write JSON", *(f"{key}: {said}" for key, (said, _) in keys.items())])
    return {"responses_create_params": user(text), "schema_str": json.dumps(schema), "schema_type": "json"}


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the object, its keys in the prompt's order."""
    answer = {key: some_value(kind, rng) for key, kind in json.loads(row["schema_str"])["properties"].items()}
    return "", json.dumps(answer)


def some_value(kind: dict, rng: random.Random):
    """A value that one of the schemas above allows; of the item's the word as often as demonstrations take the surer way."""
    if kind.get("type") == "integer":
        return rng.randint(kind["minimum"], kind["maximum"])
    first, *rest = kind.get("enum", [True, False])
    return first if rng.random() < WORKED else rng.choice(rest)
