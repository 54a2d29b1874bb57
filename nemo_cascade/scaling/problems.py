"""Problems, a JSON object a line: rows of an environment for best of n, statements with their tests for the others (docs/scaling.md)."""

import json
import re
from pathlib import Path

from nemo_cascade import environments
from nemo_cascade.data.rows import DataError, load_rows
from nemo_cascade.environments import code_gen
from nemo_cascade.scaling.contest import row_of
from nemo_cascade.scaling.types import ScalingRefused

# Part of keys in the journal, which have slashes between their parts.
NAME = re.compile(r"[\w.-]+")


def load_problems(path: Path, method: str) -> dict[str, dict]:
    """{name: problem}; the name is its `id`, or where it has none "row-" and its line's number.

    Raises ScalingRefused listing all that is wrong.
    """
    problems: dict[str, dict] = {}
    told: list[str] = []
    for number, problem in _numbered(path, method):
        name = str(problem.get("id") or f"row-{number}")
        fault = _fault(problem, method)
        if not NAME.fullmatch(name):
            fault = f"id {name!r} may have letters, digits, '.', '_' and '-' only"
        elif name in problems:
            fault = f"id {name} is that of an earlier row"
        if fault is not None:
            told.append(f"{path}, row {number}: {fault}")
        problems[name] = problem
    if told:
        raise ScalingRefused("\n".join(told))
    if not problems:
        raise ScalingRefused(f"{path}: no problem in this file")
    return problems


def _numbered(path: Path, method: str) -> list[tuple[int, dict]]:
    if method == "best_of_n":
        try:
            rows, reading = load_rows(
                path, "rl", environments=environments.verifying(), unverifiable=lambda rows: list(map(environments.row_problem, rows))
            )
        except DataError as error:
            raise ScalingRefused(str(error).replace("; mend the row or set data.on_bad_row=skip", "; mend the row")) from None
        return list(zip(reading.numbers, rows))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ScalingRefused(f"{path}: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except ValueError as error:
                raise ScalingRefused(f"{path}, row {number}: not JSON ({error})") from None
            if not isinstance(found[-1][1], dict):
                raise ScalingRefused(f"{path}, row {number}: no JSON object")
    return found


def _fault(problem: dict, method: str) -> str | None:
    if method == "best_of_n":
        return None
    if not isinstance(problem.get("statement"), str) or not problem["statement"].strip():
        return "no statement (a text)"
    if method == "refine":
        return None
    if problem.get("language", "cpp") not in code_gen.LANGUAGES:
        return f"language {problem['language']!r} is none of {', '.join(code_gen.LANGUAGES)}"
    named = {"samples": problem["samples"]} if "samples" in problem else {}
    if method == "icpc":
        named["tests"] = problem.get("tests")
    else:
        fault = _subtasks_fault(problem.get("subtasks"))
        if fault is not None:
            return fault
        named |= {f"subtask {subtask['name']}: tests": subtask.get("tests") for subtask in problem["subtasks"]}
    for name, tests in named.items():
        fault = environments.row_problem(row_of(problem, tests))
        if fault is not None:
            return f"{name}: {fault.replace('verifier_metadata.', '')}"
    return None


def _subtasks_fault(subtasks) -> str | None:
    if not isinstance(subtasks, list) or not subtasks or not all(isinstance(subtask, dict) for subtask in subtasks):
        return "no subtasks (a list of objects)"
    names = [subtask.get("name") for subtask in subtasks]
    if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
        return "each subtask needs a name of its own, of letters, digits, '.', '_' and '-'"
    for subtask in subtasks:
        points = subtask.get("points")
        if isinstance(points, bool) or not isinstance(points, (int, float)) or not 0 < points < 1e6:
            return f"subtask {subtask['name']}: points must be a number above 0"
        if not isinstance(subtask.get("partial", False), bool):
            return f"subtask {subtask['name']}: partial must be true or false"
    return None
