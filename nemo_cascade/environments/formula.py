"""Whether a formula is too hard to hand to sympy, which would compute `9^{9^{9}}`. Told from its text alone, in one pass."""

import math
import re

# No answer to a question is longer, has deeper brackets, or more signs to be multiplied out.
MAX_LENGTH = 500
MAX_DEPTH = 30
MAX_OPERATORS = 80
# Larger ones make numbers of more digits than anybody writes. 2^{2016} and 2016! are answers.
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 5_000

_OPEN, _CLOSED = "({[", ")}]"
_OPERATOR = re.compile(r"[-+*/^=!<>]|\\(?:[dt]?frac|cdot|times|div|sqrt|pm|[dt]?binom)")
_POWER = re.compile(r"(?:\^|\*\*)\s*")
_FACTORIAL = re.compile(r"(?<!\\)!")
_COUNTED = re.compile(r"\\(?:[dt]?binom|choose|prod|sum)")
_DIGITS = re.compile(r"\d+")
# What a number is made of: with anything else in it, sympy computes nothing of that size.
_ARITHMETIC = re.compile(r"(?:[\d\s.,+*/^!(){}\[\]-]|\\(?:left|right|cdot|times|[dt]?frac|[,;! ]))*+")
_GROWING = re.compile(r"\^|!|\*|\\cdot|\\times")


def too_hard(formula: str) -> str | None:
    """What makes it too hard, None when nothing does."""
    if len(formula) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} characters"
    if len(_OPERATOR.findall(formula)) > MAX_OPERATORS:
        return f"it has more than {MAX_OPERATORS} operators"
    closings = _brackets(formula)
    if closings is None:
        return f"its brackets are nested deeper than {MAX_DEPTH}"
    openings = {end: start for start, end in closings.items()}
    if any(_size(_after(formula, match.end(), closings)) > MAX_EXPONENT for match in _POWER.finditer(formula)):
        return "it has a power that is too large"
    if any(_size(_before(formula, match.start(), openings)) > MAX_FACTORIAL for match in _FACTORIAL.finditer(formula)):
        return "it has a factorial that is too large"
    if _COUNTED.search(formula) and max(_numbers(formula), default=0) > MAX_EXPONENT:
        return "it has a binomial, sum or product that is too large"
    return None


def _brackets(formula: str) -> dict[int, int] | None:
    """Where each bracket closes; None when they are nested too deep."""
    closings, waiting = {}, []
    for place, sign in enumerate(formula):
        if sign in _OPEN:
            waiting.append(place)
            if len(waiting) > MAX_DEPTH:
                return None
        elif sign in _CLOSED and waiting:
            closings[waiting.pop()] = place
    return closings


def _after(formula: str, start: int, closings: dict[int, int]) -> str:
    """The exponent at `start`: a bracket or a number or a name, with what it is raised to itself."""
    end = start
    while end < len(formula):
        if end in closings:
            end = closings[end] + 1
        elif formula[end].isalnum() or formula[end] in ".!^*" or (end == start and formula[end] in "+- "):
            end += 1
        else:
            break
    return formula[start:end]


def _before(formula: str, end: int, openings: dict[int, int]) -> str:
    """What the factorial sign at `end` belongs to: a bracket or a number, with factorial signs of its own."""
    start = end
    while start and formula[start - 1] in "! ":
        start -= 1
    if start - 1 in openings:
        return formula[openings[start - 1] : end]
    while start and formula[start - 1].isdigit():
        start -= 1
    return formula[start:end]


def _size(operand: str) -> float:
    """The number that an exponent, or what a factorial is taken of, becomes; at most, where it is yet to be computed."""
    numbers = _numbers(operand)
    largest = max(numbers, default=0)
    if not _GROWING.search(operand) or not _ARITHMETIC.fullmatch(operand):
        return largest
    if "!" in operand and largest > 7 or operand.count("!") > 1:
        return math.inf
    size = 5040.0 if "!" in operand else 1.0
    # As if they were one tower of powers: that is the most that they can be.
    for number in reversed(numbers):
        if size > 20:
            return math.inf
        size = max(number, 2.0) ** size
    return size


def _numbers(text: str) -> list[float]:
    return [float(digits) if len(digits) < 100 else math.inf for digits in _DIGITS.findall(text)]
