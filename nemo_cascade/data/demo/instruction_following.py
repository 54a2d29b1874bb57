"""Write so many words in a given case, without a given word and without given letters; a program checks every rule.

Demonstrations write different words or one word again and again. Both keep the rules, but different words must all be
free of the letters, and one word only once: the form that is more surely right is what RL can find and the
demonstrations do not say. They forbid one letter; the RL level asks for more words on average and goes on to two letters.
"""

import random

from nemo_cascade.data.demo.words import WORDS, WORKED, user

COUNTS = {"demo": (1, 5), "rl": (2, 5)}
LETTERS = "aeiornstlhdump"
NUMBER_OF_LETTERS = {"demo": (1, 1), "rl": (1, 2)}
# Every answer has a choice of at least so many words.
CHOICE = 5


def draw(rng: random.Random, level: str) -> dict:
    count, case, avoided = rng.randint(*COUNTS[level]), rng.choice(["upper", "lower"]), rng.choice(WORDS)
    letters: list[str] = []
    while not letters or len(allowed(letters, avoided)) < CHOICE:
        letters = sorted(rng.sample(LETTERS, rng.randint(*NUMBER_OF_LETTERS[level])))
    text = f"Write {count} words in {case} case. Avoid {avoided}. No letter {' or '.join(letters)}."
    return {
        "responses_create_params": user(text),
        "prompt": text,
        "instruction_id_list": [
            "length_constraints:number_words",
            f"change_case:english_{'capital' if case == 'upper' else 'lowercase'}",
            "keywords:forbidden_words",
            *["keywords:letter_frequency"] * len(letters),
        ],
        "kwargs": [
            {"num_words": count, "relation": "exactly"},
            {},
            {"forbidden_words": [avoided]},
            *({"letter": letter, "let_frequency": 1, "let_relation": "less than"} for letter in letters),
        ],
    }


def allowed(letters: list[str], avoided: str) -> list[str]:
    """Words that have none of the letters."""
    return [word for word in WORDS if word != avoided and not set(word) & set(letters)]


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; words that keep every rule, all different or all the same."""
    count, (avoided,) = row["kwargs"][0]["num_words"], row["kwargs"][2]["forbidden_words"]
    choice = allowed([arguments["letter"] for arguments in row["kwargs"][3:]], avoided)
    words = [rng.choice(choice)] * count if rng.random() < WORKED else rng.sample(choice, count)
    answer = " ".join(words)
    return "", answer.upper() if "change_case:english_capital" in row["instruction_id_list"] else answer
