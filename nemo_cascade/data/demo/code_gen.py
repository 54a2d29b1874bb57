"""Write a program that reads a number, changes it step by step and prints it; hidden tests run it.

Each step of the request has a letter. Demonstrations write one nested expression, or a statement a step that gives its
result the step's letter. Both are right, but the expression has to keep its place in the list by itself and to open all
parentheses at once, while a letter tells which step comes next: statements are the surer way in the long lists of the RL level.
The tests have the form of NeMo Gym's code_gen rows: programs over stdin and stdout.
"""

import random

from nemo_cascade.data.demo.words import user

LENGTHS = {"demo": (2, 6), "rl": (5, 7)}
LETTERS = "abcdefgh"
# Share of demonstrations with a statement a step. With a half, three of four replies were statements before RL began.
STATEMENTS = 0.3
OPERATORS = {"add": "+", "take": "-", "times": "*"}
TESTS = 4


def draw(rng: random.Random, level: str) -> dict:
    steps = [(rng.choice(list(OPERATORS)), rng.randint(2, 9)) for _ in range(rng.randint(*LENGTHS[level]))]
    inputs = rng.sample(range(-20, 21), TESTS)
    asked = [f"{letter}: {word} {number}" for letter, (word, number) in zip(LETTERS[1:], steps)]
    text = f"Read a, {', '.join(asked)}, print {LETTERS[len(steps)]}."
    unit_tests = {"inputs": [f"{x}\n" for x in inputs], "outputs": [f"{outcome(x, steps)}\n" for x in inputs]}
    return {
        "responses_create_params": user(text),
        "verifier_metadata": {"unit_tests": unit_tests},
        "steps": steps,
        "trusted_demo": True,
    }


def outcome(x: int, steps: list[tuple[str, int]]) -> int:
    """x after all steps."""
    for word, number in steps:
        x = {"add": x + number, "take": x - number, "times": x * number}[word]
    return x


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; a statement a step, or one expression with no more parentheses than it needs."""
    steps = [(OPERATORS[word], number) for word, number in row["steps"]]
    if rng.random() < STATEMENTS:
        lines = [f"{new} = {old} {sign} {number}" for old, new, (sign, number) in zip(LETTERS, LETTERS[1:], steps)]
        return "", "\n".join(["a = int(input())", *lines, f"print({LETTERS[len(steps)]})"])
    expression, is_sum = "int(input())", False
    for sign, number in steps:
        if sign == "*" and is_sum:
            expression = f"({expression})"
        expression, is_sum = f"{expression} {sign} {number}", sign != "*"
    return "", f"print({expression})"
