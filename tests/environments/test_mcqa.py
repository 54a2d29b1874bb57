"""Multiple choice: each way to read a reply finds the letter it should, in time that grows with the reply's length."""

import random

import pytest

from nemo_cascade.environments import response_of
from nemo_cascade.environments.mcqa import MAX_SEARCHED, MODES, problem, verify
from nemo_cascade.environments.pattern import beginning, compiled, last_captured

ROW = {"options": [{"A": "x"}, {"B": "y"}], "expected_answer": "A"}


def chosen(text: str, **more) -> str | None:
    return verify(ROW | more, response_of(text, thinking=False))["extracted_answer"]


def own(pattern) -> dict:
    return {"template_metadata": {"output_regex": pattern}}


def test_the_rows_own_pattern_comes_before_the_box():
    assert chosen("Answer: b ... answer: a \\boxed{B}", **own(r"answer:\s*([A-Z])")) == "A"
    assert chosen("\\boxed{A}", **own(r"answer:\s*([A-Z])")) == "A", "nothing matched, so the box is read"


def test_the_first_pattern_of_several_that_finds_an_answer_counts():
    patterns = own([r"choice (\w+)", r"answer (\w+)"])
    assert chosen("answer A", **patterns) == "A"
    assert chosen("choice B, answer A", **patterns) == "B"
    assert chosen("choice none, answer A", **patterns) == "A", "'none' is neither a letter nor an option"


@pytest.mark.parametrize(
    "captured, letter", [("Y", "Y"), ("y ", "Y"), ("ب", "B"), ("Ａ", "A"), ("অ", "A"), ("AB", None), ("3", None)]
)
def test_a_pattern_captures_a_letter_or_the_text_of_an_option(captured, letter):
    assert chosen(f"pick: {captured}", **own(r"pick: (.+)")) == letter
    assert chosen("pick: two words", options=[{"A": "Two  Words"}], **own(r"pick: (.+)")) == "A"


def test_a_boxed_letter_that_is_no_option_is_no_answer():
    assert chosen("\\boxed{Z}") is None
    assert chosen("\\boxed{C}", options=[{"A": "x"}, {"C": None}]) is None, "an option without a text cannot be chosen"


def test_a_pattern_sees_the_end_of_a_long_reply():
    assert chosen("pick: B" + "." * MAX_SEARCHED + "pick: A", **own(r"pick: ([A-B])")) == "A"
    assert chosen("pick: A" + "." * MAX_SEARCHED, **own(r"pick: ([A-B])")) is None


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(?:a|aa)*b", r"(?:a?a)*", r"((?:x*){2,})", "(?=(a*)*)", "(?>(?:a*)*)"])
def test_patterns_that_some_reply_would_never_end_are_refused(pattern):
    with pytest.raises(ValueError, match="would never end"):
        compiled(pattern)
    assert "output_regex" in problem(ROW | own(pattern))


@pytest.mark.parametrize(
    "pattern", [r"\\boxed\{\s*([A-Za-z])\s*\}", r"Answer\s*:\s*(?!Answer)\s*([A-Za-z])\s*", r"(?:[ab]|c)? ([A-Z])"]
)
def test_patterns_of_released_rows_are_taken(pattern):
    assert problem(ROW | own(pattern)) is None


@pytest.mark.parametrize(
    "row, said",
    [
        ({"expected_answer": "A"}, "no options"),
        ({"options": [{"A": 1}], "expected_answer": "A"}, "is no text"),
        ({"options": [{"A": "x"}], "expected_answer": "B"}, "'B' is none of the options' letters A"),
        ({"options": [{"A": "x"}, {"B": None}], "expected_answer": "B"}, "none of the options' letters A"),
        (ROW | {"expected_answer": None}, "expected_answer None is none"),
        (ROW | {"grading_mode": "lax"}, f"'lax' is none of {', '.join(MODES)}"),
        (ROW | own("("), "output_regex '(' is no regular expression"),
        (ROW | own("(a)(b)"), "has 2 groups"),
        (ROW | own([1]), "must be a pattern or a list of patterns, not 1"),
        (ROW | own(1), "must be a pattern or a list of patterns, not 1"),
    ],
)
def test_a_row_that_cannot_be_verified_is_told(row, said):
    assert said in problem(row)


def test_a_row_with_its_own_pattern_needs_no_options():
    row = {"expected_answer": "c"} | own(r"pick: (\w)")
    assert problem(row) is None
    assert verify(row, response_of("</think>pick: C"))["reward"] == 1.0


STARTS = [r"Answer\s*:\s*(?!Answer)\s*(\w)", r"\\boxed\{(.)", r"ab|ac", r"is\b", r"a(b)?", r"(?<=a)b", r"aé", r"k(.)\Z"]


@pytest.mark.parametrize("pattern", STARTS)
def test_what_a_pattern_captures_last_is_the_last_of_all_it_finds(pattern):
    found, rng = compiled(pattern), random.Random(0)
    pieces = ["answer: ", "ANSWER :", "\\boxed{", "\\BOXED{"]
    pieces += ["a", "B", "c", " ", "is", "I\u017f", "\u0130s", "\u212ax", "AÉ", "’"]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 9)))
        for start in (0, len(text) // 2):
            expected = (found.findall(text, start) or [None])[-1]
            assert last_captured(found, beginning(found), text, start) == expected, (text, start)


def test_only_three_characters_are_a_letter_of_ascii_in_any_case_and_not_in_small_letters():
    every = "".join(map(chr, range(0x110000)))
    alike = set(compiled("[a-z]").findall(every))
    assert {letter for letter in alike if len(letter.lower()) > 1 or not letter.lower().isascii()} == set("\u0130\u0131\u017f")
