"""What a judge is asked, and what its answer means."""

import pytest

from nemo_cascade.environments import genrm, genrm_compare, response_of
from nemo_cascade.environments.genrm_compare import Comparison, judge_messages, parse


def test_a_judge_is_shown_the_request_and_both_replies():
    row = {"responses_create_params": {"input": [{"role": "user", "content": "Hi?"}]}}
    roles = [(message["role"], message["content"]) for message in judge_messages(row, "a", "b")]
    assert roles == [("user", "Hi?"), ("response_1", "a"), ("response_2", "b")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score_1": 4, "score_2": 2, "ranking": 2}', Comparison(4, 2, 2)),
        ('Both are short.\n{"score_1": 4.5, "score_2": 2, "ranking": 1}\nDone.', Comparison(4.5, 2, 1)),
        ('{"score_1": 1, "score_2": 1, "ranking": 1} {"score_1": 2, "score_2": 3, "ranking": 5}', Comparison(2, 3, 5)),
        ('{"score_1": 6, "score_2": 2, "ranking": 2}', Comparison(readable=False)),
        ('{"score_1": 4, "score_2": 2, "ranking": 0}', Comparison(readable=False)),
        ('{"score_1": 4, "score_2": 2}', Comparison(readable=False)),
        ('{"score_1": NaN, "score_2": 2, "ranking": 3}', Comparison(readable=False)),
        ('{"score_1": [4], "score_2": 2, "ranking": 3}', Comparison(readable=False)),
        ('{"score_1": ' + "[" * 5000 + "4" + "]" * 5000 + ', "score_2": 2, "ranking": 3}', Comparison(readable=False)),
        ('{"score_1": 1' + "0" * 400 + ', "score_2": 2, "ranking": 3}', Comparison(readable=False)),
        ('{"score_1": 1' + "0" * 5000 + ', "score_2": 2, "ranking": 3}', Comparison(readable=False)),
        ('{"score_1": 1e999, "score_2": 2, "ranking": 3}', Comparison(readable=False)),
        ("", Comparison(readable=False)),
    ],
)
def test_answers_are_read_or_count_as_undecided(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("comparison", "wins"),
    [
        (Comparison(4, 2, 6), 1.0),
        (Comparison(2, 4, 1), 0.0),
        (Comparison(3, 3, 3), 1.0),
        (Comparison(3, 3, 4), 0.0),
        (Comparison(), 0.5),
    ],
    ids=["by score", "by score, whatever the ranking", "tie, first ranked", "tie, second ranked", "undecided"],
)
def test_scores_decide_and_a_ranking_breaks_ties(comparison, wins):
    assert comparison.first_wins == wins


@pytest.mark.parametrize("row, text, reward", genrm.EXAMPLES)
def test_a_judge_agrees_when_it_prefers_the_same_reply(row, text, reward):
    assert genrm.problem(row) is None
    assert genrm.verify(row, response_of(text, thinking=False))["reward"] == reward


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"expected_scores": [1, 2]},
        {"expected_scores": {"score_1": "x", "score_2": 2, "ranking": 3}},
        {"expected_scores": {"score_1": 2, "score_2": 2, "ranking": 3.5}},
    ],
)
def test_a_row_without_a_preference_cannot_measure_a_judge(row):
    assert genrm.problem(row) is not None


def test_a_preference_row_needs_a_reply_to_compare_with():
    assert genrm_compare.problem({"reference_reply": "Hello"}) is None
    assert "reference_reply" in genrm_compare.problem({"reference_reply": " "})
