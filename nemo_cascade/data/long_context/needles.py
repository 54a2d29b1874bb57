"""Needles in a haystack: which values belong to which keys, said somewhere in a long text [RULER, section 3]."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

from nemo_cascade.data.long_context.fit import Draft
from nemo_cascade.data.long_context.place import depths, insert, joined, mixed, longest, user
from nemo_cascade.data.long_context.prose import sentences, short_sentences
from nemo_cascade.data.long_context.words import Distinct

# The same over and over, as a haystack in which everything else stands out.
_NOISE = (
    " The tide comes in. The tide goes out. The gulls go with it.",
    " A boat comes by and is gone. The sand is as it was before.",
    " Then the tide comes in again.",
)
_DRAWS = {"word": Distinct.pair, "number": lambda words: words.digits(7), "identifier": Distinct.identifier}


@dataclass(frozen=True)
class Needles:
    """key, value: "word", "number" or "identifier". keys: how many; values: of each; asked: keys that are asked about.

    haystack: "noise" (one passage over and over), "prose" or "needles" (nothing but other keys).
    """

    key: str = "word"
    value: str = "number"
    keys: int = 1
    values: int = 1
    asked: int = 1
    haystack: str = "prose"

    def __call__(self, rng: random.Random, length: int) -> Draft:
        words = Distinct(rng)
        keys = [self._key(words) for _ in range(self.keys)]
        values = {key: [self._value(words) for _ in range(self.values)] for key in keys}
        said = [(key, value) for key in keys for value in values[key]]
        rng.shuffle(said)
        at = depths(rng, len(said))
        asked = keys[: self.asked]
        outputs = [value for key in asked for value in values[key]]
        wrong = [value for key in keys[self.asked :] for value in values[key]]
        parting = "\n" if self.haystack == "needles" else " "
        needles = [parting + self._said(key, value) for key, value in said]
        own = [depth for (key, _), depth in zip(said, at) if key in asked]

        def messages(large, small):
            text = joined(insert(needles, at, mixed(large, small)))
            head = f"Certain {self.value}s are named in the text below. Remember them."
            return user(f"{head}\n\n{text}\n\n{self._question(asked)}")

        def answers(large, small):
            found = {"outputs": outputs, "answer_characters": longest(outputs), "depths": own}
            return {**found, "wrong_outputs": wrong} if wrong else found

        return Draft(self._haystack(rng, words), short_sentences(rng), messages, answers)

    def _haystack(self, rng: random.Random, words: Distinct) -> Iterator[str]:
        if self.haystack == "noise":
            return cycle(_NOISE)
        if self.haystack == "prose":
            return sentences(rng)
        return (f"\n{self._said(self._key(words), self._value(words))}" for _ in cycle([None]))

    def _key(self, words: Distinct) -> str:
        return _DRAWS[self.key](words)

    def _value(self, words: Distinct) -> str:
        return _DRAWS[self.value](words)

    def _said(self, key: str, value: str) -> str:
        return f"The {self.value} of {key} is {value}."

    def _question(self, asked: list[str]) -> str:
        of = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])} and {asked[-1]}"
        if self.values * len(asked) == 1:
            return f"According to the text above, what is the {self.value} of {of}? Answer with it alone."
        which = f"what are all {self.values} {self.value}s" if self.values > 1 else f"what are the {self.value}s"
        return f"According to the text above, {which} of {of}? Answer with them alone, separated by commas."

