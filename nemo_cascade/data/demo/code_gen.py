"""Write a program that reads a number, changes it step by step and prints it; hidden tests run it.

Each step of the request has a letter. Demonstrations write one nested expression, or a statement a step that gives its
result the step's letter. Both are right, but the expression has to keep its place in the list by itself and to open all
parentheses at once, while a letter tells which step comes next: statements are the surer way in the long lists of the RL level.
The tests have the form of NeMo Gym's code_gen rows: programs over stdin and stdout.
"""

import random

from nemo_cascade.data.demo.words import user

LENGTHS = {"demo": (2, 6), "rl": (6, 7)}
# A list begins at any letter from which it fits, so that short lists show the last letter, which long ones need.
LETTERS = "abcdefgh"
# Share of demonstrations with a statement a step. With a half, three of four replies were statements before RL began.
STATEMENTS = 0.25
OPERATORS = {"add": "+", "take": "-", "times": "*"}
TESTS = 4


def draw(rng: random.Random, level: str) -> dict:
    steps = [(rng.choice(list(OPERATORS)), rng.randint(2, 9)) for _ in range(rng.randint(*LENGTHS[level]))]
    inputs = rng.sample(range(-20, 21), TESTS)
    begin = rng.randint(0, len(LETTERS) - len(steps) - 1)
    first, *others = LETTERS[begin : begin + len(steps) + 1]
    asked = [f"{letter}: {word} {number}" for letter, (word, number) in zip(others, steps)]
    text = f"Read {first}, {', '.join(asked)}, print {others[-1]}."
    unit_tests = {"inputs": [f"{x}\n" for x in inputs], "outputs": [f"{outcome(x, steps)}\n" for x in inputs]}
    return {
        "responses_create_params": user(text),
        "verifier_metadata": {"unit_tests": unit_tests},
        "steps": steps,
        "letters": [first, *others],
    }


def outcome(x: int, steps: list[tuple[str, int]]) -> int:
    """x after all steps."""
    for word, number in steps:
        x = {"add": x + number, "take": x - number, "times": x * number}[word]
    return x


def demonstrate(row: dict, rng: random.Random) -> tuple[str, str]:
    """No thought; a statement a step, or one expression with no more parentheses than it needs."""
    steps, letters = [(OPERATORS[word], number) for word, number in row["steps"]], row["letters"]
    if rng.random() < STATEMENTS:
        lines = [f"{new} = {old} {sign} {number}" for old, new, (sign, number) in zip(letters, letters[1:], steps)]
        return "", "\n".join([f"{letters[0]} = int(input())", *lines, f"print({letters[-1]})"])
    expression, is_sum = "int(input())", False
    for sign, number in steps:
        if sign == "*" and is_sum:
            expression = f"({expression})"
        expression, is_sum = f"{expression} {sign} {number}", sign != "*"
    return "", f"print({expression})"
