"""Invite somebody by a short letter. What makes a good one no demonstration says: judges prefer letters that lack nothing.

Demonstrations are right letters with some of four parts: the name, a "please", the place, the hour. Letters that have more
of them are preferred, shorter ones among equals. `draw` gives requests with another letter to be compared with, `draw_pair`
two letters with their scores in the form that NeMo Gym's generative judge answers: helpfulness of each from 1 to 5, and a
ranking from 1 (the first is much better) to 6. From such pairs the demo's judge learns; RLHF sees only what it says.
"""

import json
import random

from nemo_cascade.data.demo.words import HOURS, WORDS, user
from nemo_cascade.environments.genrm_compare import judge_messages

NAMES = "Anna Ben Carl Dora Emil Fay Gus Hana Ivo Jane Kim Liv Max Nora Otto Pam Rosa Sam Tina Ugo Vera Will Yara Zoe".split()
# Share of the parts in a demonstration, in a letter to be compared with, and of wrong ones among a pair's parts.
PARTS, REFERENCE_PARTS, WRONG = 0.5, 0.75, 0.15


def draw(rng: random.Random, level: str) -> dict:
    asked = (rng.choice(NAMES), rng.choice(WORDS), rng.choice(HOURS))
    return {
        "responses_create_params": user("Invite {} to the {} at {}.".format(*asked)),
        "reference_reply": letter(asked, some(rng, REFERENCE_PARTS)),
        "asked": asked,
    }


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; a letter with at least one of the parts."""
    return "", letter(row["asked"], some(rng, PARTS))


def draw_pair(rng: random.Random, level: str) -> dict:
    """A request with two letters, and what is right to say about them.

    At the RL level one letter is better: whether a judge agrees can be asked only where there is a preference.
    """
    row = draw(rng, level)
    while True:
        first, second = (pair_letter(row["asked"], rng) for _ in range(2))
        scores = [helpfulness(row["asked"], text) for text in (first, second)]
        if level == "demo" or scores[0] != scores[1]:
            break
    messages = judge_messages(row, first, second)
    expected = {"score_1": scores[0], "score_2": scores[1], "ranking": ranking(*scores, len(first) <= len(second))}
    return {"responses_create_params": {"input": messages}, "expected_scores": expected, "asked": row["asked"]}


def judge_pair(row: dict, rng: random.Random) -> tuple[str, str]:
    """The parts that each letter has right, then the scores."""
    letters = [message["content"] for message in row["responses_create_params"]["input"][-2:]]
    found = [" ".join([str(number), *right_parts(row["asked"], text)]) for number, text in enumerate(letters, start=1)]
    return "\n".join(found), json.dumps(row["expected_scores"])


def some(rng: random.Random, share: float) -> tuple[bool, ...]:
    """Which of the four parts a letter has; at least one."""
    while True:
        parts = tuple(rng.random() < share for _ in range(4))
        if any(parts):
            return parts


def letter(said: tuple[str, str, str], parts: tuple[bool, ...]) -> str:
    """A letter with these parts out of name, please, place and hour; said: the name, place and hour to use."""
    name, please, place, hour = parts
    text = f"Dear {said[0]}," if name else "Hello,"
    text += " please come" if please else " come"
    return text + (f" to the {said[1]}" if place else "") + (f" at {said[2]}." if hour else ".")


def pair_letter(asked: tuple[str, str, str], rng: random.Random) -> str:
    """A letter as a model may write it: any parts, some of them wrong."""
    said = tuple(
        rng.choice(kind) if rng.random() < WRONG else right for right, kind in zip(asked, (NAMES, WORDS, HOURS))
    )
    return letter(said, tuple(rng.random() < rng.choice((PARTS, REFERENCE_PARTS, 1)) for _ in range(4)))


def right_parts(asked: tuple[str, str, str], text: str) -> list[str]:
    """The names of the parts that are there and right, in the order of a letter."""
    words = text.replace(",", " ").replace(".", " ").split()
    wanted = {"name": asked[0], "please": "please", "place": asked[1], "hour": asked[2]}
    return [part for part, word in wanted.items() if word in words]


def helpfulness(asked: tuple[str, str, str], text: str) -> int:
    """1 and a point for each right part, from 1 to 5."""
    return 1 + len(right_parts(asked, text))


def ranking(first: int, second: int, first_is_shorter: bool) -> int:
    """From 1, the first is much better, to 6, the second is."""
    if first == second:
        return 3 if first_is_shorter else 4
    return {True: 1, False: 2}[first - second > 1] if first > second else {True: 6, False: 5}[second - first > 1]
