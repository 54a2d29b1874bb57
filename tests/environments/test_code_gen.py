"""Programs earn their reward by what they print on hidden inputs, and by nothing else."""

import base64
import json
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from nemo_cascade import sandbox
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
    wrong = {"reward": 0.0, "passed": 1, "tests": 2, "verdict": "wrong answer"}
    assert verdict("x = int(input())\nprint(4 if x == 2 else 0)") == wrong


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
    monkeypatch.setattr(code_gen, "SECONDS_PER_TEST", 2.0)
    assert verdict(code)["reward"] == 0.0


def test_the_expected_outputs_are_not_in_the_process():
    """A program that looks through all of its own memory that Python shows finds the inputs only."""
    hunt = """
import gc, sys
given = sys.stdin.read()
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
    monkeypatch.setattr(code_gen, "SECONDS_PER_TEST", 0.5)
    late = {"reward": 0.0, "passed": 0, "tests": 2, "verdict": "time limit"}
    assert verdict("print(2 * int(input()), flush=True)\nwhile True: pass") == late


@pytest.mark.parametrize(
    "answer, found",
    [
        ("print(1)", ("python", "print(1)")),
        ("```python\na\n```\nbetter\n```Python\nb\n```", ("python", "b\n")),
        ("```python\na\n```\n```text\nb\n```", ("python", "a\n")),
        ("```python\na\n```\n```\nb\n```", ("python", "a\n")),
        ("```\na\n```\n```text\nb\n```", ("python", "a\n")),
        ("```python\na\n```\n```C++ 17\nb\n```", ("cpp", "b\n")),
        ("```cpp\na\n```\n```python3\nb\n```", ("python", "b\n")),
        ("```python\nunclosed", ("python", "```python\nunclosed")),
        ("1. So:\n   ```python\n   if a:\n       b\n\n   c\n   ```\n2. Done", ("python", "if a:\n    b\n\nc\n")),
        ("\t```cpp\n\ta\n\t```", ("cpp", "a\n")),
        ("   ```python\na\n```\nno block", ("python", "a\n")),
        ('```python\nx = """\n   ```\n"""\n```', ("python", 'x = """\n   ```\n"""\n')),
        ("```python\nunclosed\n  ```\n  a\n  ```", ("python", "a\n")),
        ("```python\r\na\r\n```\r\n", ("python", "a\r\n")),
    ],
)
def test_the_last_block_in_a_known_language_is_the_program(answer, found):
    assert code_gen.code_of(answer) == found


def test_without_a_marked_block_the_rows_language_holds():
    assert code_gen.code_of("int main() {}", "cpp") == ("cpp", "int main() {}")
    assert code_gen.code_of("```\nint main() {}\n```", "cpp") == ("cpp", "int main() {}\n")
    assert code_gen.code_of("```python\na\n```", "cpp") == ("python", "a\n")


TESTS = ROW["verifier_metadata"]["unit_tests"]
ADD = code_gen.EXAMPLES[-1][0]["verifier_metadata"]["unit_tests"]


def row_of(tests, **more):
    return {"verifier_metadata": {"unit_tests": tests, **more}}


@pytest.mark.parametrize(
    "row, said",
    [
        ({}, "no verifier_metadata.unit_tests"),
        ({"verifier_metadata": "none"}, "no verifier_metadata.unit_tests"),
        (row_of({"inputs": "1", "outputs": []}), "inputs and outputs (lists)"),
        (row_of({**TESTS, "outputs": ["4\n"]}), "2 inputs and 1"),
        (row_of({"inputs": [], "outputs": []}), "at least one"),
        (row_of({"inputs": [[1]], "outputs": ["1"]}), "must have texts"),
        (row_of({"packed": "no base64"}), "incorrect header check"),
        (row_of({**ADD, "fn_name": 3}), "fn_name 3 is no name"),
        (row_of({**ADD, "outputs": ["[4", "5"]}), "must have JSON, a value a line"),
        (row_of({**ADD, "inputs": [3, 4]}), "lists of arguments"),
        (row_of(TESTS, limits={"second": 1}), "limits may have seconds_per_test, seconds, memory_mb"),
        (row_of(TESTS, limits={"seconds": 0}), "limits.seconds is 0; it must be a number above 0"),
        (row_of(TESTS, language="cobol"), "language 'cobol' is none of"),
    ],
)
def test_a_row_that_cannot_be_tested_is_told(row, said):
    assert said in code_gen.problem(row)


def test_tests_may_be_packed_as_gym_packs_them():
    for tests in (TESTS, ADD):
        plain = {key: tests[key] for key in ("inputs", "outputs")}
        packed = base64.b64encode(zlib.compress(json.dumps(plain).encode())).decode()
        row = row_of({"packed": packed, "fn_name": tests.get("fn_name")})
        assert code_gen.problem(row) is None and code_gen.tests_of(row) == code_gen.tests_of(row_of(tests))


def test_the_first_test_that_fails_is_the_last_that_runs(monkeypatch):
    ran = []
    run = sandbox.Sandbox.run
    monkeypatch.setattr(sandbox.Sandbox, "run", lambda self, *args: ran.append(args) or run(self, *args))
    row = row_of({"inputs": [""] * 5, "outputs": ["1", "1", "2", "1", "1"]})
    assert verdict("print(1)", row) == {"reward": 0.0, "passed": 2, "tests": 5, "verdict": "wrong answer"}
    assert len(ran) == 3
    row["verifier_metadata"]["partial"] = True
    assert verdict("print(1)", row) == {"reward": 0.8, "passed": 4, "tests": 5, "verdict": "wrong answer"}
    assert len(ran) == 8


@pytest.mark.parametrize(
    "code, said",
    [
        ("print(4)", "wrong answer"),
        ("1 / 0", "runtime error"),
        ("print(2 * int(input()))\nimport sys; sys.exit(1)", "runtime error"),
        ("print(", "runtime error"),
        ("while True: pass", "time limit"),
        ("while True: print('x' * 1000)", "output limit"),
        ("import os, time\nfor _ in range(6): os.fork() or time.sleep(0.1)\nx = [bytes(2**20).replace(b'\\0', b'1') for _ in range(90)]\ntime.sleep(60)", "memory limit"),
        ("```cpp\nint main() { return x; }\n```", "compilation error"),
        ("```cpp\nint main() { return *(int*)0; }\n```", "runtime error"),
        ("```cpp\nint main() { for (;;); }\n```", "time limit"),
        ("   ", "no program"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_became_of_it(code, said):
    row = row_of(TESTS, limits={"seconds_per_test": 1 if said == "time limit" else 60, "memory_mb": 128})
    result = verdict(code, row)
    assert result["verdict"] == said and result["reward"] == 0.0


def test_all_tests_together_have_a_limit_too():
    row = row_of({"inputs": [""] * 50, "outputs": ["1"] * 50}, limits={"seconds_per_test": 5, "seconds": 1.5})
    result = verdict("import time; time.sleep(0.7); print(1)", row)
    assert result["verdict"] == "time limit" and result["passed"] < 4


def test_a_limit_of_the_rows_own_lets_a_slow_program_pass():
    code = "import time; time.sleep(1); print(2 * int(input()))"
    assert verdict(code, row_of(TESTS, limits={"seconds_per_test": 0.5}))["verdict"] == "time limit"
    assert verdict(code, row_of(TESTS, limits={"seconds_per_test": 30}))["reward"] == 1.0


# ------------------------------------------------------------------------------------------------- functions


@pytest.mark.parametrize(
    "code, reward",
    [
        ("def add(xs, n): return [x + n for x in xs]", 1.0),
        ("def add(xs, n):\n    print('not asked for')\n    return tuple(map(lambda x: x + n, xs))", 1.0),
        ("class Solution:\n    def add(self, xs: List[int], n: int) -> List[int]:\n        return [x + n for x in xs]", 1.0),
        ("def add(xs, n): return None", 0.0),
        ("def add(xs, n): return str([x + n for x in xs])", 0.0),
        ("def add(xs, n): return {x + n for x in xs}", 0.0),
        ("def add(xs, n): return iter([x + n for x in xs])", 0.0),
        ("def add(xs, n): print([x + n for x in xs])", 0.0),
        ("def other(xs, n): return [x + n for x in xs]", 0.0),
        ("", 0.0),
        ("class Yes(list):\n    def __eq__(self, o): return True\ndef add(xs, n): return Yes()", 0.0),
        ("def add(xs, n):\n    import os; os.write(3, b'[4, 5]'); os._exit(0)", 0.0),
        ("def add(xs, n):\n    import os; os.write(3, b'[4, 5]'); return [4, 5]", 0.0),
        ("import os; os.write(3, b'[]'); os._exit(0)", 0.0),
    ],
)
def test_functions_earn_by_what_they_return(code, reward):
    assert verdict(f"```python\n{code}\n```", row_of(ADD))["reward"] == reward


def test_a_function_that_contest_sites_have_imported_is_not_the_programs():
    row = row_of({"inputs": ["4\n6"], "outputs": ["2"], "fn_name": "gcd"})
    assert verdict("x = 1", row)["reward"] == 0.0
    assert verdict("from math import gcd", row)["reward"] == 1.0
    assert verdict("def f(): pass\ngcd = lambda a, b: math.gcd(a, b)", row)["reward"] == 1.0


def test_what_contest_sites_have_imported_is_there():
    code = "h = [int(input())]\nheappush(h, 1)\nprint(pow(3, 2, 5), Counter(h)[2], sys.maxsize > 1, inf, List, end='')"
    row = row_of({"inputs": ["2"], "outputs": ["4 1 True inf typing.List"]})
    assert verdict(code, row)["reward"] == 1.0
    code = "setrecursionlimit(10**5)\nx = int(stdin.readline())\nstdout.write(f'{x} {maxsize == sys.maxsize} {argv == sys.argv}')\nexit(0)"
    assert verdict(code, row_of({"inputs": ["2"], "outputs": ["2 True True"]}))["reward"] == 1.0


def test_cpp_cannot_be_called():
    assert verdict("```cpp\nint add() { return 0; }\n```", row_of(ADD))["verdict"] == "no program"


def test_cpp_is_compiled_once_for_all_tests(monkeypatch):
    compiled = []
    compile_ = sandbox.Sandbox._compile
    monkeypatch.setattr(sandbox.Sandbox, "_compile", lambda self, source: compiled.append(1) or compile_(self, source))
    code = "#include <bits/stdc++.h>\nint main() { int x; std::cin >> x; std::cout << 2 * x << std::endl; }"
    row = row_of({"inputs": [str(i) for i in range(9)], "outputs": [str(2 * i) for i in range(9)]})
    assert verdict(f"```c++\n{code}\n```", row)["reward"] == 1.0 and len(compiled) == 1


def test_answers_are_judged_side_by_side_as_one_by_one():
    cases = [(row, reply, reward) for row, reply, reward in code_gen.EXAMPLES] * 5
    with ThreadPoolExecutor(6) as pool:
        rewards = list(pool.map(lambda case: verdict(case[1], case[0])["reward"], cases))
    assert rewards == [reward for *_, reward in cases]
