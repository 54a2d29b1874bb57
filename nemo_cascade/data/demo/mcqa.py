"""Go round four colours; where does it end? Four options, one right letter. Longer ways at the RL level.

As in `math`, demonstrations are right with and without a thought, and only the thought stretches to longer ways.
"""

import itertools
import random

from nemo_cascade.data.demo.words import COLORS, WORKED, user

LENGTHS = {"demo": (2, 6), "rl": (4, 7)}
LETTERS = "ABCD"


def draw(rng: random.Random, level: str) -> dict:
    start, moves = rng.randrange(4), [rng.randint(1, 3) for _ in range(rng.randint(*LENGTHS[level]))]
    options = " ".join(f"{letter} {color}" for letter, color in zip(LETTERS, COLORS))
    question = f"From {COLORS[start]} go {' '.join(map(str, moves))}\n{options}"
    return {
        "responses_create_params": user(question),
        "question": question,
        "options": [{letter: color} for letter, color in zip(LETTERS, COLORS)],
        "expected_answer": LETTERS[(start + sum(moves)) % 4],
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """The colour after every move, or no thought; the boxed letter."""
    words = row["question"].split("\n")[0].split()
    start, moves = COLORS.index(words[1]), [int(word) for word in words[3:]]
    places = itertools.accumulate(moves, initial=start)
    steps = [f"{move} {COLORS[place % 4]}" for move, place in zip(moves, itertools.islice(places, 1, None))]
    return "\n".join(steps) if rng.random() < WORKED else "", f"\\boxed{{{row['expected_answer']}}}"
