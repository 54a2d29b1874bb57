"""Short answers to long questions are compared as texts."""

import pytest

from nemo_cascade.environments import long_context, response_of


def verdict(reply, expected):
    return long_context.verify({"expected_answer": expected}, response_of(f"</think>{reply}"))


@pytest.mark.parametrize("row, reply, reward", long_context.EXAMPLES)
def test_known_replies_earn_what_they_should(row, reply, reward):
    assert long_context.problem(row) is None
    assert long_context.verify(row, response_of(f"</think>{reply}"))["reward"] == reward
    assert long_context.verify(row, response_of(reply))["reward"] == 0.0


@pytest.mark.parametrize(
    "given, right", [("Green  House.", True), ("green house", True), ("greenhouse", False), ("", False)]
)
def test_form_does_not_matter_and_words_do(given, right):
    assert verdict(f"\\boxed{{{given}}}", "green house") == {"reward": float(right), "extracted_answer": given}


def test_the_last_box_counts():
    assert verdict("\\boxed{7} no, \\boxed{8}", "8")["reward"] == 1.0


@pytest.mark.parametrize("row", [{}, {"expected_answer": ""}, {"expected_answer": " . "}, {"expected_answer": 7}])
def test_a_row_without_an_answer_is_told(row):
    assert "no expected_answer" in long_context.problem(row)
