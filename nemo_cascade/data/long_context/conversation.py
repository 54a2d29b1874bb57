"""A long conversation in which the same was asked for several times; one of the replies is to be repeated [MRCR].

The same kind of text about other things and other kinds of text about the same thing stand between, and all replies are made
alike, so that only counting the requests tells which reply is meant.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from nemo_cascade.data.long_context.fit import Draft
from nemo_cascade.data.long_context.place import depths, insert, with_tails
from nemo_cascade.data.long_context.prose import sentence, short_sentences
from nemo_cascade.data.long_context.words import FIRST_NAMES

KINDS = (
    "poem, letter, speech, short story, song, diary entry, review, fairy tale, news item, postcard, toast, travel note, "
    "children's rhyme, advertisement"
).split(", ")
# Written line by line.
VERSES = {"poem", "song", "children's rhyme"}
TOPICS = (
    "lighthouses, old bridges, thunder, walnut trees, night trains, lost gloves, market days, kites, frozen lakes, beekeepers, "
    "clock towers, snails, ferries, attics, harvest, brass bands, chess, dragonflies, street lamps, tea, moss, tides, "
    "carousels, hedgehogs, maps, windmills, puppets, winter coats, barges, comets, sourdough, swings, umbrellas, vineyards, "
    "tunnels, weather vanes, oak chests, mountain huts, sparrows, sundials"
).split(", ")
ORDINALS = "first second third fourth fifth sixth seventh eighth".split()
_ABOUT = (
    "When I think of {topic}, I remember that {rest}",
    "Of all there is to say about {topic}, this comes first: {rest}",
    "Some do not care for {topic}, and yet {rest}",
    "As for {topic}, {rest}",
    "Ask anyone about {topic} and you will hear that {rest}",
)
SENTENCES = (3, 6)
_CHARACTERS = "abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"

Turn = tuple[str, str]


@dataclass(frozen=True)
class Conversation:
    """requests: how often the same is asked for."""

    requests: int

    def __call__(self, rng: random.Random, length: int) -> Draft:
        kind, topic = rng.choice(KINDS), rng.choice(TOPICS)
        replies: list[str] = []
        while len(replies) < self.requests:
            reply = _reply(rng, kind, topic)
            if reply not in replies:
                replies.append(reply)
        needles = [(_request(kind, topic), reply) for reply in replies]
        at = depths(rng, self.requests)
        meant = rng.randrange(self.requests)
        prefix = "".join(rng.choices(_CHARACTERS, k=10))
        fillers = _turns(rng, kind, topic)
        fixed = [next(fillers), next(fillers)]

        def messages(large, small):
            requests, others = zip(*fixed, *large)
            whole = insert(needles, at, list(zip(requests, with_tails(others, small))))
            said = [
                {"role": role, "content": text} for turn in whole for role, text in zip(("user", "assistant"), turn)
            ]
            return [*said, {"role": "user", "content": _question(kind, topic, meant, prefix)}]

        def answers(large, small):
            return {
                "expected_answer": prefix + replies[meant],
                "random_string_to_prepend": prefix,
                "n_needles": self.requests,
                "depths": [at[meant]],
            }

        return Draft(fillers, short_sentences(rng), messages, answers)


def _turns(rng: random.Random, kind: str, topic: str) -> Iterator[Turn]:
    """Endless other requests with their replies: of the same kind, about the same topic, or neither."""
    other_kinds, other_topics = [k for k in KINDS if k != kind], [t for t in TOPICS if t != topic]
    for number in count():
        if number % 4 == 0:
            drawn = kind, rng.choice(other_topics)
        elif number % 4 == 1:
            drawn = rng.choice(other_kinds), topic
        else:
            drawn = rng.choice(other_kinds), rng.choice(other_topics)
        yield _request(*drawn), _reply(rng, *drawn)


def _request(kind: str, topic: str) -> str:
    return f"Write {'an' if kind[0] in 'aeiou' else 'a'} {kind} about {topic}."


def _reply(rng: random.Random, kind: str, topic: str) -> str:
    texts = [sentence(rng) for _ in range(rng.randint(*SENTENCES))]
    for place in rng.sample(range(len(texts)), 2):
        text = texts[place]
        # A name keeps its capital; any other first word of a sentence becomes one inside.
        rest = text if text.split()[0] in FIRST_NAMES else text[0].lower() + text[1:]
        texts[place] = rng.choice(_ABOUT).format(topic=topic, rest=rest)
    return ("\n" if kind in VERSES else " ").join(texts)


def _question(kind: str, topic: str, meant: int, prefix: str) -> str:
    return (
        f"Repeat the {ORDINALS[meant]} {kind} about {topic} that you wrote in this conversation, word for word. Begin your "
        f"answer with {prefix}, let the text follow at once, without a blank, and write nothing else."
    )
