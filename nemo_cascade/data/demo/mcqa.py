"""Which colour is most common? Four options, one right letter. Longer lists and narrower majorities at the RL level."""

import random

from nemo_cascade.data.demo.words import COLORS, user

LENGTHS = {"demo": (3, 8), "rl": (6, 14)}


def draw(rng: random.Random, level: str) -> dict:
    while True:
        seen = rng.choices(COLORS, k=rng.randint(*LENGTHS[level]))
        counts = sorted(((seen.count(color), color) for color in COLORS), reverse=True)
        if counts[0][0] > counts[1][0]:
            break
    letters = "ABCD"
    options = " ".join(f"{letter} {color}" for letter, color in zip(letters, COLORS))
    question = f"Which is most common? {' '.join(seen)}\n{options}"
    return {
        "responses_create_params": user(question),
        "question": question,
        "options": [{letter: color} for letter, color in zip(letters, COLORS)],
        "expected_answer": letters[COLORS.index(counts[0][1])],
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the boxed letter."""
    return "", f"\\boxed{{{row['expected_answer']}}}"
