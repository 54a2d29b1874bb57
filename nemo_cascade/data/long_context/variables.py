"""Variable tracking: who holds a value that was handed on from variable to variable [RULER, section 3].

Other values are handed on as well, or to list all variables would be an answer.
"""

import random

from nemo_cascade.data.long_context.fit import Draft
from nemo_cascade.data.long_context.place import depths, insert, joined, mixed, longest, user
from nemo_cascade.data.long_context.prose import sentences, short_sentences
from nemo_cascade.data.long_context.words import Distinct

CHAINS, HOPS = 3, 4


def tracking(rng: random.Random, length: int) -> Draft:
    words = Distinct(rng)
    chains = [[words.letters(5) for _ in range(HOPS + 1)] for _ in range(CHAINS)]
    values = [words.digits(5) for _ in chains]
    # Whose turn it is; a chain's own assignments stay in their order, or nobody could follow them.
    turns = [chain for chain in range(CHAINS) for _ in range(HOPS + 1)]
    rng.shuffle(turns)
    reached, needles = [0] * CHAINS, []
    for chain in turns:
        step = reached[chain]
        needles.append(f" LET {chains[chain][step]} = {chains[chain][step - 1] if step else values[chain]}.")
        reached[chain] += 1
    at = depths(rng, len(needles))
    outputs, wrong = chains[0], [name for chain in chains[1:] for name in chain]
    own = [depth for chain, depth in zip(turns, at) if chain == 0]

    def messages(large, small):
        text = joined(insert(needles, at, mixed(large, small)))
        return user(
            "Variables are assigned in the text below, each a number or what another one holds. Keep track of them.\n\n"
            f"{text}\n\nWhich variables hold {values[0]}? Answer with all {HOPS + 1} names alone, separated by commas."
        )

    def answers(large, small):
        return {"outputs": outputs, "wrong_outputs": wrong, "answer_characters": longest(outputs), "depths": own}

    return Draft(sentences(rng), short_sentences(rng), messages, answers)
