"""Repair one function of a small file by a SEARCH/REPLACE patch; hidden tests run the patched file.

Demonstrations search for the wrong line alone or together with the line above it. Both apply while all lines differ, as
they do where demonstrations come from. At the RL level files are longer and functions share lines: a patch whose lines
occur twice does not apply, and the line above tells the places apart. That is what RL can find.
"""

import random

from nemo_cascade.data.demo.words import WORDS, WORKED, user

FUNCTIONS = {"demo": (2, 3), "rl": (3, 4)}
# Share of the RL level's files in which another function has the wrong line too.
SHARED = 0.5
# Two lines agree in one place at most, so that any two numbers tell a right function from a wrong one.
TESTED = (1, 2, 10)


def draw(rng: random.Random, level: str) -> dict:
    module, *names = rng.sample(WORDS, 1 + rng.randint(*FUNCTIONS[level]))
    # One formula more than there are functions: the right one of the function that is wrong.
    right, *formulas = rng.sample([f"x {sign} {number}" for sign in "+-*" for number in range(2, 10)], len(names) + 1)
    wrong = rng.randrange(len(names))
    if level == "rl" and rng.random() < SHARED:
        formulas[wrong - 1] = formulas[wrong]
    path, source = f"{module}.py", "".join(map(function, names, formulas))
    text = f"Fix {path}: {names[wrong]} must return {right}.\n{source}"
    formulas[wrong] = right
    tests = "".join(test(module, name, formula) for name, formula in zip(names, formulas))
    ids = [f"test_{path}::test_{name}" for name in names]
    return {
        "responses_create_params": user(text.rstrip("\n")),
        "files": {path: source},
        "tests": {f"test_{path}": tests},
        "fail_to_pass": [ids[wrong]],
        "pass_to_pass": ids[:wrong] + ids[wrong + 1 :],
        "wrong_function": names[wrong],
        "right_formula": right,
    }


def function(name: str, formula: str) -> str:
    """Two lines of a file: a function of x."""
    return f"def {name}(x):\n    return {formula}\n"


def test(module: str, name: str, formula: str) -> str:
    """A test that the function of that name follows the formula."""
    values = [eval(formula, {"x": x}) for x in TESTED]
    called = f"[{name}(x) for x in {TESTED}]"
    return f"def test_{name}():\n    from {module} import {name}\n    assert {called} == {values}\n"


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; a patch that searches for the wrong line under its `def`, or for it alone if no other is the same."""
    ((path, source),) = row["files"].items()
    lines = source.splitlines(keepends=True)
    above = next(line for line in lines if line.startswith(f"def {row['wrong_function']}("))
    old, new = lines[lines.index(above) + 1], f"    return {row['right_formula']}\n"
    if rng.random() < WORKED or lines.count(old) > 1:
        old, new = above + old, above + new
    return "", f"{path}\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE"
