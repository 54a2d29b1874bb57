"""Where needles go: spread over the whole context, each as likely to stand anywhere as elsewhere."""

import random


def depths(rng: random.Random, n: int) -> list[float]:
    """n rising depths between 0 (the beginning) and 1, one in each of n equal parts: no two contexts' needles stand alike."""
    return [(part + rng.random()) / n for part in range(n)]


def insert(needles: list, at: list[float], filler: list) -> list:
    """The filler with needles, in their order, at these rising depths below 1."""
    whole, begun = [], 0
    for needle, depth in zip(needles, at, strict=True):
        place = int(depth * (len(filler) + 1))
        whole += [*filler[begun:place], needle]
        begun = place
    return [*whole, *filler[begun:]]


def mixed(large: list, small: list) -> list:
    """Both, the small pieces evenly among the large, or they would all stand at one end."""
    return insert(small, [(place + 0.5) / len(small) for place in range(len(small))], large)


def with_tails(texts: list[str], tails: list[str]) -> list[str]:
    """The texts, each tail at the end of one of them, in turn."""
    grown = [[text] for text in texts]
    for number, tail in enumerate(tails):
        grown[number % len(texts)].append(tail)
    return ["".join(parts) for parts in grown]


def user(text: str) -> list[dict]:
    """A prompt of one user message."""
    return [{"role": "user", "content": text}]


def joined(pieces: list[str]) -> str:
    """Pieces as one text; each begins with what parts it from the one before."""
    return "".join(pieces).lstrip()


def longest(outputs: list[str]) -> int:
    """Characters that an answer may have: these with a few words around, too few to list everything."""
    return 100 + 2 * sum(map(len, outputs))
