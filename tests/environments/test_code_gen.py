"""Programs earn their reward by what they print on hidden inputs, and by nothing else."""

import pytest

from nemo_cascade.environments import code_gen, response_of

ROW = code_gen.EXAMPLES[0][0]


def verdict(code, row=ROW):
    return code_gen.verify(row, response_of(f"</think>{code}"))


@pytest.mark.parametrize("row, reply, reward", code_gen.EXAMPLES)
def test_known_replies_earn_what_they_should(row, reply, reward):
    assert code_gen.problem(row) is None and verdict(reply, row)["reward"] == reward


def test_a_reply_whose_thought_never_ends_earns_nothing():
    assert code_gen.verify(ROW, response_of("print(2 * int(input()))"))["reward"] == 0.0


def test_all_hidden_tests_must_pass():
    assert verdict("x = int(input())\nprint(4 if x == 2 else 0)") == {"reward": 0.0, "passed": 1, "timed_out": False}


@pytest.mark.parametrize(
    "code",
    [
        "print('4\\n10')",
        "print('PASSED')\nimport os; os._exit(0)",
        "import sys; sys.__stdout__.write('=340a'); sys.__stdout__.flush(); import os; os._exit(0)",
        "import sys; sys.stdout = sys.__stdout__; print(4)",
        "import atexit, os; atexit.register(os._exit, 0); print(2 * int(input()))",
        "import sys; sys.stdout.close()",
        "print(2 * int(input())); 1 / 0",
        "while True: print('4')",
        "def f(): f()\nf()",
    ],
    ids="both-answers exit half-a-report other-stdout exit-handler closed error flood recursion".split(),
)
def test_what_only_looks_right_earns_nothing(code, monkeypatch):
    monkeypatch.setattr(code_gen, "TIMEOUT", 2.0)
    assert verdict(code)["reward"] == 0.0


def test_the_expected_outputs_are_not_in_the_process():
    """A program that looks through all of its own memory that Python shows finds the inputs only."""
    hunt = """
import gc, sys
found, frame = repr(gc.get_objects()), sys._getframe()
while frame:
    found += repr(frame.f_locals) + repr(frame.f_code.co_consts)
    frame = frame.f_back
print(*(word for word in ("".join(letters) for letters in [%r, %r]) if word in found))
"""
    row = {**ROW, "verifier_metadata": {"unit_tests": {"inputs": ["a zyq\n"], "outputs": ["a qyz\n"]}}}
    hunted = hunt % (list("a zyq"), list("a qyz"))
    assert verdict(hunted, row)["passed"] == 0
    row["verifier_metadata"]["unit_tests"]["outputs"] = ["a zyq\n"]
    assert verdict(hunted, row)["passed"] == 1


def test_every_test_starts_afresh():
    counter = "try: n += 1\nexcept NameError: n = 1\nprint(n)"
    row = {**ROW, "verifier_metadata": {"unit_tests": {"inputs": ["", ""], "outputs": ["1", "1"]}}}
    assert verdict(counter, row)["reward"] == 1.0


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nx = int(sys.stdin.buffer.read())\nsys.stdout.write(f'{2 * x}\\n\\n')\nsys.exit()",
        "import sys\nif __name__ == '__main__':\n    print('', *(2 * int(line) for line in sys.stdin), ' ')",
    ],
)
def test_programs_may_read_print_and_end_in_their_own_way(code):
    assert verdict(code)["reward"] == 1.0


def test_an_endless_program_earns_nothing_and_is_told(monkeypatch):
    monkeypatch.setattr(code_gen, "TIMEOUT", 0.5)
    assert verdict("print(2 * int(input()))\nwhile True: pass") == {"reward": 0.0, "passed": 0, "timed_out": True}


@pytest.mark.parametrize(
    "answer, code",
    [
        ("print(1)", "print(1)"),
        ("```python\na\n```\nbetter\n```python\nb\n```", "b\n"),
        ("```python\na\n```\n```text\nb\n```", "a\n"),
        ("```python\nunclosed", "```python\nunclosed"),
    ],
)
def test_the_last_python_block_is_the_program(answer, code):
    assert code_gen.code_of(answer) == code


TESTS = ROW["verifier_metadata"]["unit_tests"]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"trusted_demo": True}, "no verifier_metadata.unit_tests"),
        ({"trusted_demo": True, "verifier_metadata": "none"}, "no verifier_metadata.unit_tests"),
        ({"trusted_demo": True, "verifier_metadata": {"unit_tests": {"inputs": "1", "outputs": []}}}, "lists of texts"),
        ({"trusted_demo": True, "verifier_metadata": {"unit_tests": {**TESTS, "outputs": ["4\n"]}}}, "2 inputs and 1"),
        ({"trusted_demo": True, "verifier_metadata": {"unit_tests": {"inputs": [], "outputs": []}}}, "at least one"),
        ({"trusted_demo": True, "verifier_metadata": {"unit_tests": {**TESTS, "fn_name": "f"}}}, "fn_name"),
        ({"verifier_metadata": {"unit_tests": TESTS}}, '"trusted_demo": true'),
        ({"verifier_metadata": {"unit_tests": TESTS}, "trusted_demo": "yes"}, "sandbox"),
    ],
)
def test_a_row_that_cannot_be_tested_is_told(row, said):
    assert said in code_gen.problem(row)


def test_without_the_rows_word_nothing_is_run():
    with pytest.raises(PermissionError, match="trusted_demo"):
        verdict("print(1)", {"verifier_metadata": ROW["verifier_metadata"]})
