"""Write words under rules that a program checks: how many, which case, no repetition, letters to avoid.

Demonstrations combine one or two rules with 2 to 5 words; the RL level two or three rules, two letters among them, with 3 to 6. Many answers are right, so
a demonstration shows one at random, and what RL can find is which of them the model writes reliably.
"""

import itertools
import random

from nemo_cascade.data.demo.words import WORDS, user

SIZES = {"demo": (2, 5), "rl": (3, 6)}
RULES = {"demo": (1, 1, 2), "rl": (2, 3)}
LETTERS = "aeioulntrsh"


def allowed(avoided) -> list[str]:
    """Words without any of these letters."""
    return [word for word in WORDS if not set(avoided) & set(word)]


# Combinations that leave enough words to fill the longest answer without repetition.
AVOIDABLE = {
    level: [letters for letters in itertools.combinations(LETTERS, size) if len(allowed(letters)) >= SIZES[level][1] + 2]
    for level, size in (("demo", 1), ("rl", 2))
}


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
            letters = rng.choice(AVOIDABLE[level])
            for letter in letters:
                ids.append("keywords:letter_frequency")
                kwargs.append({"letter": letter, "let_frequency": 1, "let_relation": "less than"})
            text.append(f"Avoid the letter {' and '.join(letters)} .")
    return {
        "responses_create_params": user(" ".join(text)),
        "prompt": " ".join(text),
        "instruction_id_list": ids,
        "kwargs": kwargs,
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; words that keep every rule."""
    rules, kwargs = row["instruction_id_list"], row["kwargs"]
    avoided = {arguments["letter"] for arguments in kwargs if "letter" in arguments}
    choice, count = allowed(avoided), kwargs[0]["num_words"]
    chosen = rng.sample(choice, count) if "count:count_unique" in rules else rng.choices(choice, k=count)
    answer = " ".join(chosen)
    return "", answer.upper() if "change_case:english_capital" in rules else answer
