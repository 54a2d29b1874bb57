"""Math: equal answers are equal in any form and anywhere in a reply, and what sympy would never end is told from its text."""

import pytest
from hypothesis import given, settings, strategies as st

from nemo_cascade.environments import response_of
from nemo_cascade.environments.formula import MAX_DEPTH, MAX_LENGTH, too_hard
from nemo_cascade.environments.math import MAX_TEXT, boxed, by_math_verify, near_the_end, only_box, problem, verify


def reward(expected, reply: str) -> float:
    return verify({"expected_answer": expected}, response_of(reply, thinking=False))["reward"]


@pytest.mark.parametrize(
    "expected, answer, right",
    [
        ("0.5", "1/2", True),
        ("0.5", "0.50", True),
        ("0.5", "\\dfrac{2}{4}", True),
        ("0.5", "0.51", False),
        (42, "42", True),
        (0.25, "\\frac14", True),
        ("\\(\\sqrt{8}\\)", "2\\sqrt{2}", True),
        ("$x^2-1$", "(x-1)(x+1)", True),
        ("\\{1, 2\\}", "\\{2, 1\\}", True),
        ("(0, 1]", "(0, 1)", False),
        ("x = 3", "3", True),
        ("\\text{yes}", "yes", True),
        ("yes", "no", False),
        ("42", "9" * 600, False),
    ],
)
def test_equal_answers_are_equal_in_any_form(expected, answer, right):
    assert reward(expected, f"so \\boxed{{{answer}}}.") == float(right)


@pytest.mark.parametrize(
    "reply",
    ["\\boxed{7}", "1 then $\\boxed{7}$", "Final answer is 7. I hope so", "Answer: 7", "it is $7$", "3 + 4 = 7", "\\[7\\]"],
)
def test_the_answer_is_found_wherever_math_verify_finds_it(reply):
    assert reward("7", reply) == 1.0 and reward("8", reply) == 0.0


def test_a_box_comes_before_numbers_that_follow_it():
    assert reward("7", "\\boxed{7}, and 3 is not it") == 1.0
    assert reward("3", "\\boxed{7}, and 3 is not it") == 0.0


def test_the_verdict_names_what_a_judge_would_start_from():
    row = {"question": "?", "expected_answer": "1"}
    verdict = verify(row, response_of("\\boxed{2x}", thinking=False))
    assert verdict == {"reward": 0.0, "extracted_answer": "2*x", "library_reward": 0.0, "judge_evaluations": None}
    assert verify(row, response_of("none", thinking=False))["extracted_answer"] is None


NUMBERS = st.one_of(
    st.integers(-12, 12).map(str),
    st.integers(-(10**9), 10**9).map(str),
    st.decimals(-20, 20, places=2).map(str),
    st.decimals(0, 1, places=3).map(str),
    st.sampled_from(
        [
            "\\frac{1}{2}",
            "\\sqrt{2}",
            "x+1",
            "1+x",
            "(1,2)",
            "x=3",
            "\\text{no}",
            "\\pi",
            "2\\pi",
            "\\frac{2}{4}",
            "5\\text{ cm}",
            "A",
        ]
    ),
)
BEFORE = st.sampled_from(["", "So $x^2=4$ and 17. ", "$", "\\[", "Answer: 3, or ", "x = ", "{", "percent 5% "])
AFTER = st.sampled_from(["", ".", "$", "\\]", " }", " and 3", "$, the answer", "\\\\", " 5", "\n$y=2$"])


@settings(max_examples=100)
@given(NUMBERS, NUMBERS, st.booleans(), BEFORE, AFTER)
def test_an_only_box_is_all_that_math_verify_looks_at(expected, given, same, before, after):
    given = expected if same else given
    text = f"{before}\\boxed{{{given}}}{after}"
    box = only_box(text)
    assert box == given and boxed(expected, box)[0] == by_math_verify(expected, text)[0]


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{1} \\boxed{2}",
        "\\boxed{1}\\%",
        "\\boxed{1} percent",
        "final answer is 2, \\boxed{1}",
        "1",
        "\\boxed{1} \\fbox{2}",
        "\\boxed{1",
    ],
)
def test_a_box_is_not_the_only_one_where_another_answer_could_be_meant(text):
    assert only_box(text) is None
    assert only_box("$x = \\boxed{1.0}$ it is") == "1.0"


@pytest.mark.parametrize(
    "one, other, apart",
    [("\\sqrt{2}", "1.5", True), ("\\sqrt{8}", "2\\sqrt{2}", False), ("x^2", "x^3", True), ("x+1", "y+1", True)],
)
def test_values_that_differ_are_not_simplified(one, other, apart, monkeypatch):
    from math_verify import grader

    asked = []
    monkeypatch.setattr(grader, "simplify", lambda difference: asked.append(difference) or difference)
    assert by_math_verify(one, f"\\boxed{{{other}}}")[0] == float(not apart)
    assert not (apart and asked)


POWERS = [
    "9^{9^{9^{9}}}",
    "9^9^9",
    "9**9**9",
    "2^{10000000000}",
    "2^{100!}",
    "10^{10^{10}}",
    "2^{99999*99999}",
    "9^{9!}",
    "{9}^{9}^{9}",
]
FACTORIALS = ["100000000!", "((9!)!)!", "9!!!!!", "(10^{9})!", "(2^{30})!", "(2^{100} - 1)!"]
COUNTED = ["\\binom{1000000}{500000}", "\\prod_{i=1}^{10000000} i", "\\sum_{i=0}^{9^{9}} i!"]


@pytest.mark.parametrize("formula", [*POWERS, *FACTORIALS, *COUNTED])
def test_what_would_be_computed_for_ever_is_too_hard(formula):
    assert "too large" in too_hard(formula)
    assert reward("1", f"\\boxed{{{formula}}}") == 0.0
    assert "too large" in problem({"expected_answer": formula})


def test_long_and_deep_formulas_are_too_hard():
    assert "brackets" in too_hard("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1))
    assert "operators" in too_hard("+".join(f"x^{n}" for n in range(60)))
    assert "longer" in too_hard("x" * (MAX_LENGTH + 1))


FINE = [
    "2^{2016}",
    "(2-\\sqrt{3})^{2016}",
    "e^{x^2}",
    "\\frac{(2n)!}{n!(n+1)!}",
    "2016!",
    "x^{y^{z}}",
    "2^{2^{3}}",
    "10^{-9}",
    "3^{1/2}",
    "x!",
]
FINE += [
    "\\binom{2016}{1008}",
    "(1+x)^{100}",
    "2^{10}\\cdot 3^{5}",
    "n^{2^{k}}",
    "\\sum_{k=1}^{2016} k",
    "a \\neq b",
    "1" * 400,
    "\\{1,2\\}",
]


@pytest.mark.parametrize("formula", FINE)
def test_formulas_that_are_answers_are_not(formula):
    assert too_hard(formula) is None


def test_the_hard_part_of_a_reply_does_not_matter_where_it_is_not_the_answer():
    assert reward("7", "not $9^{9^{9}}$ but \\boxed{7}") == 1.0
    assert reward("7", "7 or \\boxed{9^{9^{9}}}") == 0.0


def test_the_end_of_a_long_reply_is_read_or_what_follows_its_last_box():
    assert reward("7", "x" * MAX_TEXT * 3 + " it is $7$") == 1.0
    assert reward("7", "so \\boxed{7} " + "word " * MAX_TEXT) == 1.0
    assert reward("7", "so $7$ " + "word " * MAX_TEXT) == 0.0
    assert len(near_the_end("\\boxed{" * MAX_TEXT)) == MAX_TEXT


@pytest.mark.parametrize("expected", [None, "", "  ", "$ $", True, ["1"]])
def test_a_row_without_an_answer_is_told(expected):
    assert "no expected_answer" in problem({"expected_answer": expected})
