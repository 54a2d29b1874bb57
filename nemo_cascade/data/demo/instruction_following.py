"""Write words under rules that a program checks: how many, which case, no repetition, how often a letter may stand.

Demonstrations combine one or two rules with 2 to 5 words; the RL level two or three with 3 to 6. Many answers are right, so
a demonstration shows one at random, and what RL can find is which of them the model writes reliably.
"""

import random

from nemo_cascade.data.demo.words import WORDS, user

SIZES = {"demo": (2, 5), "rl": (3, 6)}
RULES = {"demo": (1, 2), "rl": (2, 3)}
LETTERS = "aeiorntslhdump"


def draw(rng: random.Random, level: str) -> dict:
    count = rng.randint(*SIZES[level])
    ids, kwargs, text = ["length_constraints:number_words"], [{"num_words": count, "relation": "exactly"}], []
    text.append(f"Write {count} words.")
    for rule in rng.sample(["case", "unique", "letter"], rng.choice(RULES[level])):
        if rule == "case":
            upper = rng.random() < 0.5
            ids.append(f"change_case:english_{'capital' if upper else 'lowercase'}")
            kwargs.append({})
            text.append(f"Use {'upper' if upper else 'lower'} case.")
        elif rule == "unique":
            ids.append("count:count_unique")
            kwargs.append({})
            text.append("No word twice.")
        else:
            letter, times = rng.choice(LETTERS), rng.randint(1, 3)
            ids.append("keywords:letter_frequency")
            kwargs.append({"letter": letter, "let_frequency": times, "let_relation": "less than"})
            text.append(f"Use the letter {letter} less than {times} times.")
    return {
        "responses_create_params": user(" ".join(text)),
        "prompt": " ".join(text),
        "instruction_id_list": ids,
        "kwargs": kwargs,
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; random words, drawn again until they keep every rule."""
    rules, kwargs = row["instruction_id_list"], row["kwargs"]
    bounds = [(arguments["letter"], arguments["let_frequency"]) for arguments in kwargs if "letter" in arguments]
    count, draw_words = kwargs[0]["num_words"], rng.sample if "count:count_unique" in rules else rng.choices
    while True:
        answer = " ".join(draw_words(WORDS, k=count))
        if all(answer.count(letter) < times for letter, times in bounds):
            return "", answer.upper() if "change_case:english_capital" in rules else answer
