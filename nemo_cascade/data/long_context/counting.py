"""Aggregation: which words occur most often in a long list; no part of it says [RULER, section 3].

`common`: ten words far more often than all others, which occur equally often. `frequent`: three words to be told from others
whose frequencies fall as the square of their rank, which begins at 2, because a first would be most of the text.
"""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

from nemo_cascade.data.long_context.fit import Draft
from nemo_cascade.data.long_context.place import joined, mixed, longest, user
from nemo_cascade.data.long_context.words import Distinct

COMMON, FREQUENT = 10, 3
# How often a common word occurs and an uncommon one, in contexts long enough.
COMMON_TIMES, UNCOMMON_TIMES = 30, 3
# Common words take no more of the context than this.
COMMON_SHARE = 0.4
# Tokens of a coined word, about.
_WORD = 4
VOCABULARY = 2000
# So many other words take away from an answer that lists them too: enough for a copied part of the text to earn nothing.
OTHERS = 500


def common(rng: random.Random, length: int) -> Draft:
    words = Distinct(rng)
    outputs = [words.coined() for _ in range(COMMON)]
    times = max(4, min(COMMON_TIMES, int(COMMON_SHARE * length / (COMMON * _WORD))))
    uncommon = max(1, times * UNCOMMON_TIMES // COMMON_TIMES)
    order = rng.random()

    def messages(large, small):
        listed = [f" {word}" for word in outputs] * times + [word for group in large for word in group] + small
        random.Random(order).shuffle(listed)
        return user(
            f"Below is a long list of words. Some occur in it far more often than others.\n\n{joined(listed)}\n\n"
            f"Which {COMMON} words occur most often in the list above? Answer with them alone, separated by commas."
        )

    def answers(large, small):
        wrong = [group[0].strip() for group in large[:OTHERS]]
        return {"outputs": outputs, "wrong_outputs": wrong, "answer_characters": longest(outputs)}

    return Draft(((f" {words.coined()}",) * uncommon for _ in _ever()), _words(words), messages, answers)


def frequent(rng: random.Random, length: int) -> Draft:
    words = Distinct(rng)
    ranked = [f" {words.coined()}" for _ in range(VOCABULARY)]
    shares = list(accumulate(1 / rank**2 for rank in range(2, VOCABULARY + 2)))

    def messages(large, small):
        return user(
            f"Below is a long text in a secret language.\n\n{joined(mixed(large, small))}\n\nWhich {FREQUENT} words occur "
            "most often in the text above? Answer with them alone, separated by commas."
        )

    def answers(large, small):
        counted = Counter(word.strip() for word in large + small).most_common(FREQUENT + OTHERS)
        if len(counted) <= FREQUENT or counted[FREQUENT - 1][1] == counted[FREQUENT][1]:
            return None
        found = [word for word, _ in counted]
        outputs, wrong = found[:FREQUENT], found[FREQUENT:]
        return {"outputs": outputs, "wrong_outputs": wrong, "answer_characters": longest(outputs)}

    drawn = (word for _ in _ever() for word in rng.choices(ranked, cum_weights=shares, k=256))
    return Draft(drawn, _words(words), messages, answers)


def _words(words: Distinct) -> Iterator[str]:
    """Words that occur once."""
    return (f" {words.coined()}" for _ in _ever())


def _ever() -> Iterator[None]:
    while True:
        yield None
