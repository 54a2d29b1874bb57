"""Code generation: a program in Python or C++ is run on hidden tests in the sandbox, and earns by those that it passes.

Row, as for NeMo Gym's server of this name: `verifier_metadata.unit_tests` {"inputs", "outputs", "fn_name"}. Without fn_name
inputs are what a program reads and outputs what it must print. With it inputs are the arguments of a function (or method
of a class Solution), a JSON value a line or a list, and outputs what it must return, as JSON. Tests may be {"packed":
base64 of zlib of JSON} as Gym's are. `verifier_metadata` may also have "limits" {"seconds_per_test", "seconds", "memory_mb"},
"partial": true and "language" for answers without a marked block.

The expected outputs never enter the sandbox; the host compares (`outputs`). Each test is a run of its own. The first that fails
is the last, and the reward all or nothing, unless the row wants the share of tests passed.

The program is the last block in ``` that is marked as Python or C++, else the last unmarked one, else all of the answer; NeMo Gym
takes the last block whatever it is marked as, and gives no reward to code without a block.

Left out: problems with several right outputs, which need a checker of their own, and interactive ones.
"""

import base64
import binascii
import json
import re
import textwrap
import zlib
from collections.abc import Iterator

from nemo_cascade import sandbox
from nemo_cascade.environments.outputs import same_output, same_value
from nemo_cascade.environments.response import answer_of
from nemo_cascade.sandbox import Call, Limits, Program, Result

REWARD_RANGE = (0.0, 1.0)
# Verifying waits for a process of its own.
IN_THREADS = True
# Seconds for a test, and for all tests of a reply; many times what they need, because the machine is shared.
SECONDS_PER_TEST, SECONDS = 10.0, 60.0
MEMORY_MB = 512
# Bytes that a program may print: these and twice what was expected.
SPARE_OUTPUT = 2**20

LANGUAGES = {"python": "python", "python3": "python", "py": "python", "cpp": "cpp", "c++": "cpp", "cc": "cpp", "cxx": "cpp"}

# No blank is looked at twice: a reply of a million of them must not hold up others.
_FENCE = re.compile(r"^([ \t]*+)```([^\n]*+)(\n?)", re.MULTILINE)
_MARK = re.compile(r"[\w+#-]*+")
_UNREADABLE = (ValueError, TypeError, KeyError, RecursionError, zlib.error, binascii.Error)


def _row(inputs: list[str], outputs: list[str], **more) -> dict:
    return {"verifier_metadata": {"unit_tests": {"inputs": inputs, "outputs": outputs, **more}}}


_DOUBLE = _row(["2\n", "5\n"], ["4\n", "10\n"])
_ADD = _row(["[1, 2]\n3", "[]\n4"], ["[4, 5]", "[]"], fn_name="add")
EXAMPLES = [
    (_DOUBLE, "print(2 * int(input()))", 1.0),
    (_DOUBLE, "Double it:\n```python\nx = int(input())\nprint(x * 2)\n```\nDone.", 1.0),
    (_DOUBLE, "```cpp\n#include <cstdio>\nint main() { int x; scanf(\"%d\", &x); printf(\"%d\", 2 * x); }\n```", 1.0),
    (_DOUBLE, "```cpp\nint main() { return 0 }\n```", 0.0),
    (_DOUBLE, "print(4)", 0.0),
    (_DOUBLE, "print(2 * int(input())", 0.0),
    (_DOUBLE, "", 0.0),
    (_ADD, "```python\ndef add(numbers: List[int], n):\n    return tuple(x + n for x in numbers)\n```", 1.0),
    (_ADD, "```python\nclass Solution:\n    def add(self, numbers, n):\n        return [x + n for x in numbers]\n```", 1.0),
    (_ADD, "```python\ndef add(numbers, n):\n    return [4, 5]\n```", 0.0),
    (_ADD, "```python\nprint([4, 5])\n```", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified. Raises SandboxUnavailable where no program can be run."""
    try:
        inputs, outputs, function = tests_of(row)
        limits_of(row)
    except _UNREADABLE as error:
        return str(error) or type(error).__name__
    if not inputs or len(inputs) != len(outputs):
        return f"unit_tests has {len(inputs)} inputs and {len(outputs)} outputs; as many and at least one are needed"
    if function is None and not all(isinstance(text, str) for text in [*inputs, *outputs]):
        return "unit_tests without fn_name must have texts as inputs and outputs"
    if (language := row["verifier_metadata"].get("language", "python")) not in LANGUAGES:
        return f"verifier_metadata.language {language!r} is none of {', '.join(LANGUAGES)}"
    sandbox.get().probe()
    return None


def verify(row: dict, response: dict) -> dict:
    """{"reward", "passed" and "tests": numbers of tests, "verdict" of the first that failed, or "accepted"}.

    Other verdicts: no program, compilation error, wrong answer, runtime error, and time, memory or output limit.
    """
    metadata = row["verifier_metadata"]
    inputs, outputs, function = tests_of(row)
    seconds_per_test, seconds, memory = limits_of(row)
    partial = metadata.get("partial", False)
    language, code = code_of(answer_of(response), LANGUAGES[metadata.get("language", "python")])
    verdict = "accepted" if code.strip() and (function is None or language == "python") else "no program"
    passed, left = 0, seconds
    for given, expected in zip(inputs, outputs) if verdict == "accepted" else ():
        if left <= 0:
            verdict = "time limit"
            break
        program = program_of(language, code, given, function)
        size = SPARE_OUTPUT + 2 * len(str(expected))
        limits = Limits(seconds=min(seconds_per_test, left), memory=memory, output=size)
        result = sandbox.get().run(program, limits)
        # Neither compilation, which has limits of its own, nor waiting for a turn is the program's time.
        left -= result.seconds
        this = judge(result, expected, function)
        passed += this == "accepted"
        if this != "accepted":
            verdict = this if verdict == "accepted" else verdict
            if not partial or not result.compiled:
                break
    reward = passed / len(inputs) if partial else float(passed == len(inputs))
    return {"reward": reward, "passed": passed, "tests": len(inputs), "verdict": verdict}


def tests_of(row: dict) -> tuple[list, list, str | None]:
    """(inputs, outputs, fn_name); with fn_name, inputs are lists of arguments and outputs values. Raises ValueError or the like."""
    metadata = row.get("verifier_metadata")
    tests = metadata.get("unit_tests") if isinstance(metadata, dict) else None
    if isinstance(tests, dict) and isinstance(tests.get("packed"), str):
        tests = {**json.loads(zlib.decompress(base64.b64decode(tests["packed"]))), "fn_name": tests.get("fn_name")}
    if not isinstance(tests, dict) or not all(isinstance(tests.get(key), list) for key in ("inputs", "outputs")):
        raise ValueError("no verifier_metadata.unit_tests with inputs and outputs (lists)")
    inputs, outputs, function = tests["inputs"], tests["outputs"], tests.get("fn_name") or None
    if function is None:
        return inputs, outputs, None
    if not isinstance(function, str):
        raise ValueError(f"unit_tests.fn_name {function!r} is no name of a function")
    try:
        arguments = [[json.loads(line) for line in given.split("\n")] if isinstance(given, str) else given for given in inputs]
        values = [json.loads(expected) if isinstance(expected, str) else expected for expected in outputs]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"unit_tests with fn_name must have JSON, a value a line: {error}") from None
    if not all(isinstance(given, list) for given in arguments):
        raise ValueError("unit_tests.inputs with fn_name must be texts or lists of arguments")
    return arguments, values, function


def limits_of(row: dict) -> tuple[float, float, int]:
    """Seconds for a test, seconds for all, bytes of memory. Raises ValueError for what is no number above 0."""
    limits = row["verifier_metadata"].get("limits") or {}
    known = {"seconds_per_test": SECONDS_PER_TEST, "seconds": SECONDS, "memory_mb": MEMORY_MB}
    if not isinstance(limits, dict) or not limits.keys() <= known.keys():
        raise ValueError(f"verifier_metadata.limits may have {', '.join(known)} and nothing else")
    for name, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            raise ValueError(f"verifier_metadata.limits.{name} is {value!r}; it must be a number above 0")
    per_test, seconds, memory = (known | limits).values()
    return per_test, seconds, int(memory * 2**20)


def code_of(answer: str, default: str = "python") -> tuple[str, str]:
    """(language, code) of the last block marked Python or C++, else the last unmarked one, else all of the answer."""
    blocks = [(LANGUAGES.get(mark.lower(), "" if mark else default), code, bool(mark)) for mark, code in blocks_of(answer)]
    for marked in (True, False):
        for language, code, has_mark in reversed(blocks):
            if language and has_mark == marked:
                return language, code
    return default, answer


def blocks_of(answer: str) -> Iterator[tuple[str, str]]:
    """(mark, code) of the blocks between two lines that begin with ```.

    A block may be indented, as in a list, and its code is moved to the left; it ends at a fence that is indented no deeper than its
    first. Fences that nothing closes are none: each is indented deeper than the one before, so that they are few.
    """
    fences = [(*match.groups(), match.start(), match.end()) for match in _FENCE.finditer(answer)]
    number = 0
    while number < len(fences):
        indent, rest, newline, _, start = fences[number]
        number += 1
        if "`" in rest or not newline:
            continue
        for last in range(number, len(fences)):
            if len(fences[last][0]) <= len(indent):
                code = answer[start : fences[last][3]]
                yield _MARK.match(rest)[0], textwrap.dedent(code) if indent else code
                number = last + 1
                break


def program_of(language: str, code: str, given, function: str | None) -> Program:
    """The program for one test."""
    if function is None:
        return Program(language, code, stdin=given, contest=True)
    return Program(language, code, contest=True, call=Call(function, tuple(given)))


def judge(result: Result, expected, function: str | None) -> str:
    """The verdict on one test."""
    if not result.compiled:
        return "compilation error"
    if result.limit is not None:
        return {"seconds": "time limit"}.get(result.limit, f"{result.limit} limit")
    if result.returncode != 0:
        return "runtime error"
    if function is None:
        return "accepted" if same_output(expected, result.stdout) else "wrong answer"
    try:
        return "accepted" if same_value(expected, result.value()) else "wrong answer"
    except ValueError:
        return "wrong answer"
