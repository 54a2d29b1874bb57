"""Filler: sentences of our own about nothing in particular, endless, with no digit and no hyphen in them."""

import random
from collections.abc import Iterator

from nemo_cascade.data.long_context.words import ADJECTIVES, FIRST_NAMES, NOUNS, TRADES

# One sentence in so many begins a paragraph.
PARAGRAPH = 7

_SLOTS = {
    "adj": ADJECTIVES,
    "noun": NOUNS,
    "name": FIRST_NAMES,
    "trade": TRADES,
    "count": "two three four five six seven eight nine ten eleven twelve twenty thirty".split(),
    "when": "in spring, in summer, in autumn, in winter, at dawn, at noon, at dusk, after dark, on Monday, last week".split(", "),
    "did": "found mended painted carried borrowed sold measured forgot admired described hid cleaned drew guarded lost".split(),
    "felt": "glad tired proud hungry puzzled calm worried late early alone sure ready".split(),
    "where": "beside behind below above near opposite".split(),
    "how": "slowly, quietly, gladly, at once, with care, without a word, by hand, in turn".split(", "),
}
_LONG = (
    "{name} {did} the {adj} {noun} {where} the {noun} {when}.",
    "Nobody knew why the {noun} had been left {where} the {adj} {noun}.",
    "{when}, {name} and {name} {did} {count} of the {adj} ones {how}.",
    "There were {count} people at the {noun}, and most of them talked about {trade}.",
    "The {noun} was {adj}, but the {noun} {where} it was more {adj} still.",
    "Before {name} came, the {adj} {noun} had stood {where} the {noun} for {count} years.",
    "It took {count} days to bring the {noun} from the {noun} to the {adj} {noun}.",
    "{name} was {felt}, for the {noun} had been sold and the {noun} {did} nobody's eye.",
    "When {name} asked about the {noun}, {name} spoke of {trade} and of the {adj} {noun}.",
    "Every {noun} in the valley was {adj} {when}, or so {name} said.",
    "What {name} {did} {when} was neither a {noun} nor a {noun}, but it would do.",
    "Some said that {trade} was older than the {noun}, others that it came with the {adj} {noun}.",
    "The path went past a {adj} {noun}, crossed a {noun} and ended {where} the {noun}.",
    "{count} times {name} {did} the {noun}, and {count} times {name} laughed.",
    "If the {noun} is {adj}, then the {noun} must be {adj} as well.",
    "They kept the {adj} {noun} {where} the door, because {name} was {felt} without it.",
)
_SHORT = (
    "{name} was {felt}.",
    "It was {adj}.",
    "The {noun} was {adj}.",
    "{name} {did} the {noun}.",
    "So it was {when}.",
    "{name} left {how}.",
    "They waited.",
    "It rained.",
)


class _Draw(dict):
    """Fills each slot anew, also one that occurs twice in a sentence."""

    def __init__(self, rng: random.Random):
        self.rng = rng

    def __missing__(self, slot: str) -> str:
        return self.rng.choice(_SLOTS[slot])


def sentence(rng: random.Random, templates: tuple[str, ...] = _LONG) -> str:
    """One sentence, its first letter a capital."""
    text = rng.choice(templates).format_map(_Draw(rng))
    return text[0].upper() + text[1:]


def sentences(rng: random.Random) -> Iterator[str]:
    """Endless sentences, each with the blank or the empty line that parts it from the one before."""
    while True:
        yield ("\n\n" if rng.randrange(PARAGRAPH) == 0 else " ") + sentence(rng)


def short_sentences(rng: random.Random) -> Iterator[str]:
    """The same, few tokens each: what closes the gap to a length."""
    while True:
        yield " " + sentence(rng, _SHORT)
