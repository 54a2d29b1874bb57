"""Follow links through many pages of filler, more than 1,024 tokens, until one names a number.

Demonstrations answer at once, or quote as their thought the fact of every page on the way. Both are right, but an
answer at once must make all hops in one go, and each line quoted needs one look-up: that is surer where the RL level
has more hops and more pages. How long the way is, only following it tells. Demonstrations are short (about 100 to 500
tokens); every input of the RL level is longer than any of them.
"""

import random

from nemo_cascade.data.demo.words import COLORS, HOURS, WORDS, WORKED, user

# Pages on the way, pages in all, words of filler on each. At the RL level together over 1,024 words and signs, each of
# which is a token at least.
HOPS = {"demo": (1, 3), "rl": (1, 4)}
PAGES = {"demo": (4, 16), "rl": (30, 30)}
FILLER = {"demo": (10, 31), "rl": (31, 31)}


def draw(rng: random.Random, level: str) -> dict:
    names, hops = rng.sample(WORDS, rng.randint(*PAGES[level])), rng.randint(*HOPS[level])
    filler = rng.randint(*FILLER[level])
    facts = {name: fact(rng, names, place, hops) for place, name in enumerate(names)}
    pages = [f"{name}: {facts[name]}. {' '.join(rng.choices(COLORS + HOURS, k=filler))}." for name in names]
    rng.shuffle(pages)
    way = names[:hops]
    text = "\n".join([*pages, f"Follow the pages from {way[0]}."])
    return {
        "responses_create_params": user(text),
        "way": [f"{name}: {facts[name]}" for name in way],
        "expected_answer": facts[way[-1]],
    }


def fact(rng: random.Random, names: list[str], place: int, hops: int) -> str:
    """What the page at a place says: another page's name, or a number. The way asked for is the first `hops` pages.

    Links lead to later places only, so that every way ends.
    """
    if place < hops - 1:
        return names[place + 1]
    if place == hops - 1 or place == len(names) - 1 or rng.random() < 0.5:
        return str(rng.randint(1, 9))
    return rng.choice(names[place + 1 :])


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """The facts on the way, one a line, or no thought; the boxed number."""
    return "\n".join(row["way"]) if rng.random() < WORKED else "", f"\\boxed{{{row['expected_answer']}}}"
