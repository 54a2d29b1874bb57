"""Mends what is known to be wrong with the arguments of released rows. A row that is right comes back as it is.

The paper repaired "keyword-argument formatting errors" of Nano 3's IF-RL prompts (Nemotron-Cascade 2, section 4.2) and
says which only of count:count_increment_word: its keywords were lists of one word, which NeMo Gym cannot check (its
issue 215), so that such prompts never earned anything. The others here come from tables and JSON on the way: every
type's arguments in each object, most of them null; whole numbers as 3.0; objects as JSON text; "at_least".
"""

import json

from nemo_cascade.environments.instruction_following.rules import (
    COUNT,
    LANGUAGE,
    LETTER,
    PLACE,
    RELATION,
    RELATIONS,
    RULES,
    TEXT,
    TEXTS,
    Kind,
    Rule,
)


def repair(row: dict) -> dict:
    """The row with its kwargs mended; the same object when nothing is to be mended. What cannot be mended stays."""
    names, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list) or not isinstance(kwargs, list) or len(names) != len(kwargs):
        return row
    mended = [arguments_of(name, given) for name, given in zip(names, kwargs)]
    return row if mended == kwargs else {**row, "kwargs": mended}


def arguments_of(name: str, given: object) -> object:
    """The arguments of one instruction: those its type takes, mended; others and nulls are left out."""
    rule = RULES.get(name) if isinstance(name, str) else None
    given = _object(given)
    if rule is None or not isinstance(given, dict):
        return given
    return {
        argument: _mended(value, rule.arguments[argument])
        for key, value in given.items()
        if value is not None and (argument := _argument(key, rule, given)) in rule.arguments
    }


def _object(given: object) -> object:
    if given is None:
        return {}
    if isinstance(given, str):
        try:
            return _object(json.loads(given))
        except (ValueError, RecursionError):
            return given
    return given


def _argument(key: str, rule: Rule, given: dict) -> str:
    """The argument that a key means: "Keyword_1" is keyword1, "n" is N, unless the type or the object has both."""
    if key in rule.arguments:
        return key
    meant = [name for name in rule.arguments if _letters(name) == _letters(key) and given.get(name) is None]
    return meant[0] if len(meant) == 1 else key


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def _mended(value: object, kind: Kind) -> object:
    if kind is TEXTS:
        return [value] if isinstance(value, str) else value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if kind in (COUNT, PLACE):
        return _whole(value)
    if kind is RELATION and isinstance(value, str):
        plain = " ".join(value.replace("_", " ").lower().split())
        return plain if plain in RELATIONS else value
    if kind is LANGUAGE and isinstance(value, str):
        return value.strip().lower()
    if kind is LETTER and isinstance(value, str):
        return value.strip()
    if kind is TEXT and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value


def _whole(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) < 10:
        return int(value)
    return value
