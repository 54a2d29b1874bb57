"""Write words in parts ("Write 2 words, then 3."), in a given case and without a given one; a program counts and checks.

Demonstrations put all words on one line, or each part on a line of its own. Both are right. Counting along one line goes
wrong when parts are many, a line a part does not: which form to write in is what RL can find and the demonstrations
do not say. They show 1 to 3 parts, the RL level goes on to 4.
"""

import random

from nemo_cascade.data.demo.words import WORDS, WORKED, user

PARTS = {"demo": (1, 3), "rl": (2, 4)}
LARGEST_PART = 3


def draw(rng: random.Random, level: str) -> dict:
    parts = [rng.randint(1, LARGEST_PART) for _ in range(rng.randint(*PARTS[level]))]
    case = rng.choice(["upper", "lower"])
    avoided = rng.choice(WORDS)
    text = f"Write {', then '.join(map(str, parts))} words in {case} case. Avoid {avoided}."
    return {
        "responses_create_params": user(text),
        "prompt": text,
        "parts": parts,
        "instruction_id_list": [
            "length_constraints:number_words",
            f"change_case:english_{'capital' if case == 'upper' else 'lowercase'}",
            "keywords:forbidden_words",
        ],
        "kwargs": [{"num_words": sum(parts), "relation": "exactly"}, {}, {"forbidden_words": [avoided]}],
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; random words that keep every rule, on one line or a line a part."""
    (avoided,) = row["kwargs"][2]["forbidden_words"]
    allowed = [word for word in WORDS if word != avoided]
    lines = [" ".join(rng.choices(allowed, k=part)) for part in row["parts"]]
    answer = ("\n" if rng.random() < WORKED else " ").join(lines)
    return "", answer.upper() if "change_case:english_capital" in row["instruction_id_list"] else answer
