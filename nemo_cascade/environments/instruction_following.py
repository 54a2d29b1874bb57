"""Instruction following: every instruction of the row is checked by a rule; the names are IFEval's and IF-RLVR's.

Row: `instruction_id_list`, `kwargs` (aligned, one dict each), optional `grading_mode`: "binary" (all must hold, Gym's default) or
"fraction". The types here are those of the demo data; the rest of the benchmark's come later.
"""

import operator

from nemo_cascade.environments.response import answer_of

RELATIONS = {"at least": operator.ge, "at most": operator.le, "less than": operator.lt, "exactly": operator.eq}


def words(text: str) -> list[str]:
    return text.split()


def number_words(text: str, num_words: int, relation: str) -> bool:
    return RELATIONS[relation](len(words(text)), num_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return RELATIONS[let_relation](text.lower().count(letter.lower()), let_frequency)


def existence(text: str, keywords: list[str]) -> bool:
    spoken = {word.lower() for word in words(text)}
    return all(keyword.lower() in spoken for keyword in keywords)


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    spoken = {word.lower() for word in words(text)}
    return not any(word.lower() in spoken for word in forbidden_words)


def unique_words(text: str) -> bool:
    spoken = [word.lower() for word in words(text)]
    return len(set(spoken)) == len(spoken)


def english_capital(text: str) -> bool:
    return text.isupper()


def english_lowercase(text: str) -> bool:
    return text.islower()


def end_checker(text: str, end_phrase: str) -> bool:
    return text.rstrip().lower().endswith(end_phrase.lower())


CHECKS = {
    "length_constraints:number_words": number_words,
    "keywords:letter_frequency": letter_frequency,
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "count:count_unique": unique_words,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "startend:end_checker": end_checker,
}

_THREE = {
    "instruction_id_list": ["length_constraints:number_words", "change_case:english_capital"],
    "kwargs": [{"num_words": 3, "relation": "exactly"}, {}],
}
EXAMPLES = [
    (_THREE, "ONE TWO THREE", 1.0),
    (_THREE, "one two three", 0.0),
    (_THREE, "", 0.0),
    ({**_THREE, "grading_mode": "fraction"}, "one two three", 0.5),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    names, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list) or not names:
        return "no instruction_id_list (a list of instruction types)"
    if not isinstance(kwargs, list) or len(kwargs) != len(names):
        return f"kwargs must be a list of {len(names)} objects, one for each of instruction_id_list"
    unknown = [name for name in names if name not in CHECKS]
    return f"instruction type {unknown[0]!r} has no rule; known are {', '.join(CHECKS)}" if unknown else None


def verify(row: dict, response: dict) -> dict:
    """{"reward": in [0, 1], "follow_instruction_list": [bool, ...]}. An empty answer follows nothing.

    Raises KeyError naming an instruction type that has no rule.
    """
    text = answer_of(response)
    followed = [bool(text) and check(name, text, kwargs) for name, kwargs in zip(row["instruction_id_list"], row["kwargs"])]
    fraction = sum(followed) / len(followed)
    reward = fraction if row.get("grading_mode") == "fraction" else float(all(followed))
    return {"reward": reward, "follow_instruction_list": followed}


def check(name: str, text: str, kwargs: dict | None) -> bool:
    """One instruction. Gym's rows fill unused arguments with null, which are dropped."""
    if name not in CHECKS:
        raise KeyError(f"instruction type {name!r} has no rule; known are {', '.join(CHECKS)}")
    return CHECKS[name](text, **{key: value for key, value in (kwargs or {}).items() if value is not None})
