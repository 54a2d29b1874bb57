"""How many times does a word occur? Demonstrations count in short lists; the RL level goes on to longer ones."""

import random

from nemo_cascade.data.demo.words import WORDS, user

LENGTHS = {"demo": (2, 8), "rl": (6, 14)}
KINDS = WORDS[:6]


def draw(rng: random.Random, level: str) -> dict:
    word = rng.choice(KINDS)
    seen = [word if rng.random() < 0.5 else rng.choice(KINDS) for _ in range(rng.randint(*LENGTHS[level]))]
    question = f"How many {word} ? {' '.join(seen)}"
    return {"responses_create_params": user(question), "question": question, "expected_answer": str(seen.count(word))}


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the boxed number."""
    return "", f"\\boxed{{{row['expected_answer']}}}"
