"""Patches earn their reward by the hidden tests that pass after they are applied, and by nothing else."""

import pytest

from nemo_cascade.environments import response_of, swe_repair
from nemo_cascade.environments.swe_repair import hidden_tests
from tests.environments.test_swe_patches import block

ROW, PATCH, _ = swe_repair.EXAMPLES[0]
BOTH = ["test_sums.py::test_add", "test_sums.py::test_one"]


def verdict(reply, row=ROW):
    return swe_repair.verify(row, response_of(f"</think>{reply}"))


def replacing(body):
    """A patch that puts other lines in place of the wrong one."""
    return PATCH.replace("    return a + b", "".join(f"    {line}\n" for line in body.split("\n")).rstrip("\n"))


@pytest.mark.parametrize("row, reply, reward", swe_repair.EXAMPLES)
def test_known_replies_earn_what_they_should(row, reply, reward):
    assert swe_repair.problem(row) is None and verdict(reply, row)["reward"] == reward


def test_a_reply_whose_thought_never_ends_earns_nothing():
    assert swe_repair.verify(ROW, response_of(PATCH))["reward"] == 0.0


def test_the_file_as_it_stands_fails_and_which_tests_fail_is_told():
    for body in ("return a - b", "raise SystemExit"):
        assert verdict(replacing(body)) == {"reward": 0.0, "applied": True, "failed_tests": BOTH[:1]}


def test_a_repair_that_breaks_what_passed_earns_nothing():
    broken = PATCH + "\n" + block("    return 1\n", "    return 2\n", "sums.py")
    assert verdict(broken) == {"reward": 0.0, "applied": True, "failed_tests": BOTH[1:]}


def test_a_file_that_no_longer_loads_fails_every_test():
    assert verdict(replacing("return (a + b")) == {"reward": 0.0, "applied": True, "failed_tests": BOTH}


@pytest.mark.parametrize(
    "body",
    [
        "print('test_add PASSED', 'test_sums.py::test_add')\nimport os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "print('1 passed'); return a - b",
        "import os; os.write(1, b'test_sums.py::test_add True\\n'); return 0",
        "open('test_sums.py', 'w').write('def test_add(): pass'); return 0",
        "return len(open('../program.py').read())",
        "import atexit; atexit.register(print, 'test_sums.py::test_add'); return 0",
        "while True: print('x' * 1000)",
        "def deeper(): return deeper()\nreturn deeper()",
    ],
)
def test_forged_verdicts_earn_nothing(body):
    result = verdict(replacing(body))
    assert result["applied"] and result["reward"] == 0.0 and BOTH[0] in result["failed_tests"]


# What is on the stack, and all texts that anything in memory has, as one text.
SHOW = """import gc, os, sys
frame, shown = sys._getframe(), []
while frame:
    shown += [repr(frame.f_locals), repr(frame.f_code.co_consts)]
    frame = frame.f_back
shown += [repr(one) for one in gc.get_objects() if type(one) in (dict, list, tuple, set)]
shown = "\\n".join(shown)
"""
SHOWING = {
    "printed": "print(shown)",
    "printed past a capture": "print(shown, file=sys.__stdout__, flush=True); sys.__stderr__.write(shown)",
    "raised": "raise ValueError(shown)",
    "written to every file": """for number in range(1, 64):
    try:
        os.write(number, shown.encode(errors='replace'))
    except OSError:
        pass
os._exit(0)""",
}
TESTED_BY_PYTEST = {**ROW, "runner": "pytest"}


@pytest.mark.parametrize("row", [ROW, TESTED_BY_PYTEST], ids=["plain", "pytest"])
@pytest.mark.parametrize("way", SHOWING)
def test_who_shows_all_that_is_on_the_stack_and_in_memory_passes_nothing(row, way):
    body = f"{SHOW}{SHOWING[way]}\nreturn 0"
    result = verdict(replacing(body), row)
    assert result["applied"] and result["reward"] == 0.0 and BOTH[0] in result["failed_tests"]


def test_the_hidden_tests_are_in_no_file():
    hunt = """import os
texts = [open(os.path.join(folder, name)).read() for folder, _, names in os.walk('..') for name in names]
assert len(texts) == 1 and not any('def te' 'st_' in text for text in texts)
return a + b"""
    assert verdict(replacing(hunt))["reward"] == 1.0


def test_an_endless_patch_earns_nothing(monkeypatch):
    monkeypatch.setattr(hidden_tests, "TIMEOUT", 0.5)
    assert verdict(replacing("while True: pass"))["failed_tests"] == BOTH


def without(key, **more):
    return {**{name: value for name, value in ROW.items() if name != key}, **more}


@pytest.mark.parametrize(
    "row, said",
    [
        (without("files"), "no files"),
        (without("tests", tests={}), "no tests"),
        (without("fail_to_pass", fail_to_pass=[]), "no fail_to_pass"),
        (without("fail_to_pass", fail_to_pass=["other.py::test_add"]), "'other.py::test_add' is in none"),
        (without("pass_to_pass", pass_to_pass=["test_sums.py::test_two"]), "path::function"),
    ],
)
def test_a_row_that_cannot_be_tested_is_told(row, said):
    assert said in swe_repair.problem(row)
