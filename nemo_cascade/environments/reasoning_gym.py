"""Reasoning Gym: procedural puzzles in about 100 data sets, scored by the package's own `score_answer`, from 0 to 1.

Row: `question`, `answer` and `metadata` with `source_dataset`, an entry of that data set (nemo_cascade.data.reasoning_gym
writes such rows). The answer is what stands in the reply's last <answer> tag, else in its first box, else the whole reply.

Some data sets evaluate an answer, or a part of the row, as Python code, with or without sympy. They only get to see what is
nothing but a value or a formula.
"""

import ast
import re
from functools import cache

from nemo_cascade.environments.formula import too_hard
from nemo_cascade.environments.response import text_of

EXTRA = "reasoning-gym"
# A longer answer solves no puzzle, and some scorers take time that grows with the square of it.
MAX_ANSWER = 10_000

_UNSOLVABLE = "it gives its own answer no reward"
_UNREADABLE = "it gives its own answer no reward once that was written as JSON"
FAULTY = {
    "boxnet": _UNSOLVABLE,
    "graph_color": _UNSOLVABLE,
    "propositional_logic": _UNSOLVABLE,
    "rubiks_cube": _UNSOLVABLE,
    "rush_hour": _UNSOLVABLE,
    "arc_agi": _UNREADABLE,
    "rearc": _UNREADABLE,
    "game_of_life_halting": "it rewards any answer",
    "puzzle24": "it rewards 24 made of other numbers than those given",
    "prime_factorization": "it fails at an answer that is no product of numbers",
    "composite": "it is a mixture; name the data sets in it",
}

# Which data sets evaluate an answer, and as what.
_VALUES = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
_FORMULAS = {"countdown", "polynomial_multiplication", "simple_integration", "intermediate_integration"}
_FUNCTIONS = "sin|cos|tan|exp|log|ln|sqrt|asin|acos|atan|sinh|cosh|tanh|pi|Abs"
# No attribute, no name but of a variable or a function, no texts: nothing that could do anything but compute.
_FORMULA = re.compile(rf"(?:\b(?:{_FUNCTIONS}|[A-Za-z]\d?)\b|(?<![A-Za-z_])\d+(?:\.\d*)?|\.\d+|[-+*/^(), ])*+")
# These evaluate the row, which is somebody else's file. No power, and shifts by few places: they could make numbers of any size.
_HEXADECIMAL = re.compile(r"(?:(?:<<|>>) *0x[0-9a-fA-F]{1,2} *(?=\)|$)|0x[0-9a-fA-F]{1,40}|\*(?!\*)|[-+/%&|^~() ])*+")

_TAG = "<answer>", "</answer>"
_BOX = "\\boxed{"


def _entry(name: str, question: str, answer: str, **metadata) -> dict:
    return {"question": question, "answer": answer, "metadata": {"source_dataset": name, **metadata}}


_SUM = _entry("chain_sum", "State the final answer to the following arithmetic problem: 4 + 3 =", "7")
_COUNTDOWN = _entry("countdown", "Make 12 of 3 and 4", "3*4", numbers=[3, 4], target=12)
REWARD_RANGE = (0.0, 1.0)
EXAMPLES = [
    (_SUM, "4 + 3 is <answer>7</answer>", 1.0),
    (_SUM, "<answer>8</answer> no, <answer> 7 </answer>", 1.0),
    (_SUM, "\\boxed{7}", 1.0),
    (_SUM, "7", 1.0),
    (_SUM, "<answer>8</answer>", 0.0),
    (_COUNTDOWN, "<answer>4*3</answer>", 1.0),
    (_COUNTDOWN, "<answer>3+4</answer>", 0.05),
    (_COUNTDOWN, "<answer>__import__('os').getpid()</answer>", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    if not isinstance(row.get("question"), str) or not isinstance(row.get("metadata"), dict):
        return "no question (a text) or no metadata (an object with source_dataset)"
    name = row["metadata"].get("source_dataset")
    if not isinstance(name, str):
        return f"metadata.source_dataset {name!r} is no name of a data set"
    if name in FAULTY:
        return f"metadata.source_dataset {name!r} cannot be trained on: {FAULTY[name]}"
    if not isinstance(row.get("answer"), str):
        return "no answer (a text)"
    try:
        known = _package().factory.DATASETS
    except ImportError:
        return f"Reasoning Gym is not installed; pip install {EXTRA}"
    if name not in known:
        return f"metadata.source_dataset {name!r} is no data set of Reasoning Gym"
    return _evaluated(name, row)


def verify(row: dict, response: dict) -> dict:
    """{"reward": score, "score": the same, "task_name": data set, "extracted_answer": text}.

    Raises ValueError for a row that would be evaluated as code, whether or not its `problem` was asked for.
    """
    name, answer = row["metadata"]["source_dataset"], extracted(text_of(response))
    if told := _evaluated(name, row):
        raise ValueError(told)
    entry = {key: row[key] for key in ("question", "answer", "metadata")}
    score = 0.0
    if len(answer) <= MAX_ANSWER and _is_harmless(name, answer, entry):
        try:
            # A message of nothing is none: some scorers give a part of the reward for having been answered.
            score = float(_scorer(name)(answer=answer, entry=entry)) if answer else 0.0
        # Scorers fail in many ways at what is no answer of the form that they expect.
        except Exception:
            score = 0.0
    score = min(max(score, 0.0), 1.0)
    return {"reward": score, "score": score, "task_name": name, "extracted_answer": answer}


def extracted(text: str) -> str:
    """The answer in a reply."""
    opening, closing = _TAG
    answer, place = None, 0
    while (start := text.find(opening, place)) >= 0 and (end := text.find(closing, start)) >= 0:
        answer, place = text[start + len(opening) : end].strip(), end
    if answer is not None:
        return answer
    place = text.find(_BOX)
    while place >= 0 and (end := text.find("}", place)) >= 0:
        if end > place + len(_BOX):
            return text[place + len(_BOX) : end].strip()
        place = text.find(_BOX, end)
    return text.strip()


def _evaluated(name: str, row: dict) -> str | None:
    """What is wrong with the part of the row that the data set's scorer evaluates, if it evaluates any."""
    metadata, answer = row["metadata"], row["answer"]
    if name == "bitwise_arithmetic" and not _matches(_HEXADECIMAL, metadata.get("problem")):
        return "metadata.problem is no sum of hexadecimal numbers, and it would be evaluated"
    if name == "number_sorting" and not _is_value(answer):
        return "answer is no list of numbers, and it would be evaluated"
    if name == "polynomial_multiplication" and not _is_formula(answer):
        return "answer is no formula, and it would be evaluated"
    if name in ("simple_integration", "intermediate_integration") and not _is_formula(metadata.get("integrand")):
        return "metadata.integrand is no formula, and it would be evaluated"
    return None


def _is_harmless(name: str, answer: str, entry: dict) -> bool:
    if name in _VALUES:
        # What equals a right answer is not evaluated any more.
        right = entry["metadata"].get("valid_answers") if name == "n_queens" else [entry["answer"]]
        return _is_value(answer) or isinstance(right, list) and answer in right
    return name not in _FORMULAS or _is_formula(answer)


def _is_formula(text) -> bool:
    return _matches(_FORMULA, text) and too_hard(text) is None


def _matches(pattern: re.Pattern, text) -> bool:
    return isinstance(text, str) and len(text) <= MAX_ANSWER and pattern.fullmatch(text) is not None


def _is_value(text: str) -> bool:
    try:
        ast.literal_eval(text)
    # MemoryError too, which is what the parser raises at brackets nested too deep.
    except Exception:
        return False
    return True


@cache
def _scorer(name: str):
    return _package().get_score_answer_fn(name)


def _package():
    """The package that has this module's name. Raises ImportError where it is not installed."""
    import reasoning_gym

    return reasoning_gym
