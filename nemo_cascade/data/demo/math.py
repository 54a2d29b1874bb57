"""Add a list of small numbers. Demonstrations answer short lists, some at once, some with a running total as their thought.

Both kinds are right. Adding at once does not stretch to the longer lists of the RL level, keeping a total does: that
it pays to think first is what RL can find and the demonstrations do not say.
"""

import itertools
import random

from nemo_cascade.data.demo.words import WORKED, user

LENGTHS = {"demo": (2, 6), "rl": (4, 7)}


def draw(rng: random.Random, level: str) -> dict:
    numbers = [rng.randint(1, 9) for _ in range(rng.randint(*LENGTHS[level]))]
    question = f"Add {' '.join(map(str, numbers))}"
    return {"responses_create_params": user(question), "question": question, "expected_answer": str(sum(numbers))}


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """The running total after every number, or no thought; the boxed sum."""
    numbers = [int(word) for word in row["question"].split()[1:]]
    steps = [f"{number} {total}" for number, total in zip(numbers, itertools.accumulate(numbers))]
    return "\n".join(steps) if rng.random() < WORKED else "", f"\\boxed{{{row['expected_answer']}}}"
