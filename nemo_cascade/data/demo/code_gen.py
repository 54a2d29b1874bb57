"""Write a program that reads a number, changes it step by step and prints it; hidden tests run it.

Demonstrations write one nested expression or one statement a line. Both are right, but the expression must open at once
all the parentheses that later steps will close, and a statement needs only its own step: only statements stretch to the
longer lists of the RL level. The tests have the form of NeMo Gym's code_gen rows: programs over stdin and stdout.
"""

import random

from nemo_cascade.data.demo.words import WORKED, user

LENGTHS = {"demo": (2, 5), "rl": (4, 7)}
OPERATORS = {"add": "+", "take": "-", "times": "*"}
TESTS = 4


def draw(rng: random.Random, level: str) -> dict:
    steps = [(rng.choice(list(OPERATORS)), rng.randint(2, 9)) for _ in range(rng.randint(*LENGTHS[level]))]
    inputs = rng.sample(range(-20, 21), TESTS)
    text = f"Read x, {', '.join(f'{word} {number}' for word, number in steps)}, print x."
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
    """No thought; a statement a line, or one expression with no more parentheses than it needs."""
    steps = [(OPERATORS[word], number) for word, number in row["steps"]]
    if rng.random() < WORKED:
        return "", "\n".join(["x = int(input())", *(f"x {sign}= {number}" for sign, number in steps), "print(x)"])
    expression, is_sum = "int(input())", False
    for sign, number in steps:
        if sign == "*" and is_sum:
            expression = f"({expression})"
        expression, is_sum = f"{expression} {sign} {number}", sign != "*"
    return "", f"print({expression})"
