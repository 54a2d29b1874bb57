"""Write a JSON object of two or three keys; one of them takes the n-th word of a list. A schema checks every value.

As in `math`, demonstrations are right with and without a thought. The thought numbers the words up to the one that is
asked for. Finding it at once means counting over the list, which does not stretch to the longer lists of the RL level.
Demonstrations ask for late words more often, because it is by long thoughts that numbering words is learned.
"""

import json
import random

from nemo_cascade.data.demo.words import COLORS, WORDS, WORKED, user

LENGTHS = {"demo": (2, 5), "rl": (4, 6)}
# Of so many places drawn the latest is asked for.
PLACES = {"demo": 2, "rl": 1}
# Keys besides the word. Three, which demonstrations do not show, were never right in any reply, so RL had nothing to find.
OTHERS = (1, 2)


def draw(rng: random.Random, level: str) -> dict:
    words = rng.sample(WORDS, rng.randint(*LENGTHS[level]))
    place = max(rng.randint(1, len(words)) for _ in range(PLACES[level]))
    low, colors = rng.randint(0, 5), rng.sample(COLORS, 2)
    others = {
        "number": (f"{low} to {low + 3}", {"type": "integer", "minimum": low, "maximum": low + 3}),
        "color": (" or ".join(colors), {"enum": colors}),
        "sure": ("true or false", {"type": "boolean"}),
    }
    keys = {"word": (f"{place} of {' '.join(words)}", {"const": words[place - 1]})}
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
    """The numbered words up to the right one, or no thought; the object, its keys in the prompt's order."""
    _, place, _, *words = row["responses_create_params"]["input"][0]["content"].split("\n")[1].split()
    steps = [f"{number} {word}" for number, word in enumerate(words[: int(place)], start=1)]
    kinds = json.loads(row["schema_str"])["properties"]
    answer = {key: some_value(kind, rng) for key, kind in kinds.items()}
    return "\n".join(steps) if rng.random() < WORKED else "", json.dumps(answer)


def some_value(kind: dict, rng: random.Random):
    """A value that one of the schemas above allows."""
    if kind.get("type") == "integer":
        return rng.randint(kind["minimum"], kind["maximum"])
    return rng.choice([kind["const"]] if "const" in kind else kind.get("enum", [True, False]))
