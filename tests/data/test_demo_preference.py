"""Letters and what is right to say about them: points for right parts, no place favoured, a preference to learn."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade import environments
from nemo_cascade.data.demo import DOMAINS, LEVELS, preference
from nemo_cascade.data.demo.preference import HOURS, NAMES, helpfulness, letter, ranking
from nemo_cascade.data.demo.words import WORDS
from nemo_cascade.environments import genrm, genrm_compare
from nemo_cascade.environments.genrm_compare import Comparison

EVERY_LEVEL = pytest.mark.parametrize("level", LEVELS)
SAID = st.tuples(st.sampled_from(NAMES), st.sampled_from(WORDS), st.sampled_from(HOURS))
PARTS = st.tuples(*[st.booleans()] * 4)


def pairs(level, n=300, split="train"):
    """[(row, first letter, second letter, what is right to say)]"""
    rows = DOMAINS["preference_pairs"].rows(n, split, level=level)
    letters = [[m["content"] for m in row["responses_create_params"]["input"][1:]] for row in rows]
    return [(row, *two, Comparison(**row["expected_scores"])) for row, two in zip(rows, letters)]


def asked_by(row) -> tuple[str, str, str]:
    """Name, place and hour, read from the request alone."""
    words = row["responses_create_params"]["input"][0]["content"].removesuffix(".").split()
    return words[1], words[4], words[6]


@given(SAID, SAID, PARTS)
def test_helpfulness_counts_the_parts_that_are_there_and_right(asked, said, parts):
    name, please, place, hour = parts
    right = [there and mine == theirs for there, mine, theirs in zip((name, place, hour), said, asked)]
    assert helpfulness(asked, letter(said, parts)) == 1 + sum(right) + please
    assert helpfulness(asked, letter(asked, (True,) * 4)) == 5


@given(st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_a_ranking_prefers_what_the_scores_prefer_and_is_sure_from_two_points_on(first, second, shorter):
    place = ranking(first, second, shorter)
    by_score = Comparison(first, second, 7 - place).first_wins
    assert (place <= 3) == (by_score == 1.0 if first != second else shorter)
    assert (place in (1, 6)) == (abs(first - second) > 1) and (place in (3, 4)) == (first == second)


@EVERY_LEVEL
def test_what_is_said_of_a_pair_follows_from_the_two_letters_alone(level):
    for row, first, second, right in pairs(level):
        scores = [helpfulness(asked_by(row), text) for text in (first, second)]
        assert [right.score_1, right.score_2] == scores
        assert right.ranking == ranking(*scores, len(first) <= len(second))
        roles = [message["role"] for message in row["responses_create_params"]["input"]]
        assert roles == ["user", "response_1", "response_2"] and set(row["asked"]) == set(asked_by(row))


@EVERY_LEVEL
def test_no_place_is_favoured(level):
    won = [right.first_wins for *_, right in pairs(level, 400) if right.score_1 != right.score_2]
    assert len(won) > 200 and 0.4 < sum(won) / len(won) < 0.6


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_judge_is_asked_only_where_there_is_a_preference_and_learns_of_ties_too(split):
    for row, *_, right in pairs("rl", split=split):
        assert genrm.problem(row) is None and right.score_1 != right.score_2
    assert any(right.score_1 == right.score_2 for *_, right in pairs("demo"))


def test_a_pair_has_any_parts_some_of_them_wrong():
    shown = pairs("demo")
    assert {score for *_, right in shown for score in (right.score_1, right.score_2)} == {1, 2, 3, 4, 5}
    kinds = [set(kind) for kind in (NAMES, WORDS, HOURS)]
    wrong = [
        any((words & kind) - {right} for right, kind in zip(asked_by(row), kinds))
        for row, first, second, _ in shown
        for words in (words_of(first), words_of(second))
    ]
    assert 0.1 < sum(wrong) / len(wrong) < 0.5


def words_of(text) -> set[str]:
    return set(text.replace(",", " ").replace(".", " ").split())


@EVERY_LEVEL
def test_a_demonstration_and_a_reference_have_no_wrong_part_and_lack_some(level):
    domain, lacking = DOMAINS["preference"], {"demonstration": 0, "reference": 0}
    rows = domain.rows(300, "train", level=level)
    for number, row in enumerate(rows):
        demonstrated = domain.demonstration(row, number)["messages"][-1]["content"]
        for kind, text in (("demonstration", demonstrated), ("reference", row["reference_reply"])):
            said = words_of(text) & {*NAMES, *WORDS, *HOURS}
            assert said <= set(asked_by(row)) == set(row["asked"])
            points = helpfulness(row["asked"], text)
            assert points == 1 + len(said) + ("please" in text) > 1, "at least one part"
            lacking[kind] += 5 - points
    # What is compared with is better than what is demonstrated, and not the best there is.
    assert lacking["demonstration"] > lacking["reference"] > len(rows) / 2


def test_a_judge_is_shown_to_find_the_right_parts_of_each_letter_before_it_scores_them():
    domain = DOMAINS["preference_pairs"]
    for row, first, second, right in pairs("rl", 50):
        message = domain.demonstration(row)["messages"][-1]
        said = json.loads(message["content"])
        assert genrm_compare.parse(message["content"]) == right and said == row["expected_scores"]
        name, place, hour = asked_by(row)
        words = {"name": name, "please": "please", "place": place, "hour": hour}
        for line, number, text, score in zip(
            message["reasoning_content"].split("\n"), "12", (first, second), (right.score_1, right.score_2), strict=True
        ):
            assert line.split() == [number, *(part for part, word in words.items() if word in words_of(text))]
            assert len(line.split()) == score


def test_letters_have_no_verifier_but_something_to_be_compared_with():
    for row in DOMAINS["preference"].rows(20, "train"):
        assert environments.row_problem(row) is None
    assert not hasattr(environments.get("genrm_compare"), "verify")


def test_pairs_are_drawn_by_the_rng_alone():
    draws = [preference.draw_pair(random.Random(seed), "rl") for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
