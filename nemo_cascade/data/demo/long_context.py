"""Which colour do most pages name? More than 1,024 tokens, most of them filler, in which colours occur as well.

A long-context task of the aggregating kind: no page answers, all of them together do. Demonstrations are right and short:
few pages with little filler, and one colour leads by far. Every input of the RL level is longer than any of them, its lead
is smaller, and its filler names colours several times as often as its pages do: to overlook that much is what RL can find
and the demonstrations do not need.
"""

import random

from nemo_cascade.data.demo.words import COLORS, HOURS, WORDS, user

# Pages, and words of filler on each. At the RL level together over 1,024 words and signs, each of which is a token at least.
PAGES = {"demo": (3, 14), "rl": (30, 30)}
FILLER = {"demo": (1, 6), "rl": (27, 27)}
# How often a page names the leading colour, beyond its share among all four.
LEAD = {"demo": 0.5, "rl": 0.19}


def draw(rng: random.Random, level: str) -> dict:
    names, filler = rng.sample(WORDS, rng.randint(*PAGES[level])), rng.randint(*FILLER[level])
    leading = rng.choice(COLORS)
    while True:
        colors = [leading if rng.random() < LEAD[level] else rng.choice(COLORS) for _ in names]
        if all(colors.count(leading) > colors.count(other) for other in COLORS if other != leading):
            break
    pages = [f"- {name}: {color}. {' '.join(rng.choices(COLORS + HOURS, k=filler))}." for name, color in zip(names, colors)]
    return {
        "responses_create_params": user("\n".join([*pages, "Which color do most pages name?"])),
        "expected_answer": leading,
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; the boxed colour."""
    return "", f"\\boxed{{{row['expected_answer']}}}"
