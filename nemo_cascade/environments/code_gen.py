"""Code generation: a program that reads stdin and prints, run on hidden tests; all must pass.

Row: `verifier_metadata.unit_tests` {"inputs": [stdin, ...], "outputs": [stdout, ...]}, as for NeMo Gym's server of this
name, and `trusted_demo`, without which nothing is run (see `trusted_run`). The expected outputs never enter the
process: it hands back what the program printed, and the host compares line by line, without outer blanks. All tests of
a reply share one process, so programs read sys.stdin and print to sys.stdout, not file descriptors 0 and 1, and print
at most 32 KiB in all.

Left out: tests that call a function (`fn_name`), a tolerance for decimals, and a time limit for each test alone.
"""

import re

from nemo_cascade.environments import trusted_run
from nemo_cascade.environments.response import answer_of

# Verifying waits for a process of its own.
SLOW = True
# Seconds for all tests of a reply together; many times what they need, because the machine is shared.
TIMEOUT = 5.0

_FENCE = re.compile(r"^```[Pp]ython[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Every test runs the program afresh. sys.exit() is a way to end, an exception is not. A line of hex for each output, which
# may be any bytes.
_RUNNER = """
import io, sys

def run(program, inputs):
    out, outputs = sys.stdout, []
    for text in inputs:
        sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
        sys.stdout = printed = io.TextIOWrapper(io.BytesIO())
        try:
            try:
                exec(program, {"__name__": "__main__"})
            except SystemExit:
                pass
            printed.flush()
            outputs.append("=" + printed.buffer.getvalue().hex())
        except BaseException:
            outputs.append("failed")
    out.write("\\n" + "\\n".join(outputs))

"""


def _row(inputs: list[str], outputs: list[str]) -> dict:
    return {"trusted_demo": True, "verifier_metadata": {"unit_tests": {"inputs": inputs, "outputs": outputs}}}


_DOUBLE = _row(["2\n", "5\n"], ["4\n", "10\n"])
EXAMPLES = [
    (_DOUBLE, "print(2 * int(input()))", 1.0),
    (_DOUBLE, "Double it:\n```python\nx = int(input())\nprint(x * 2)\n```\nDone.", 1.0),
    (_DOUBLE, "print(4)", 0.0),
    (_DOUBLE, "print(2 * int(input())", 0.0),
    (_DOUBLE, "", 0.0),
]


def problem(row: dict) -> str | None:
    """What keeps the row from being verified."""
    metadata = row.get("verifier_metadata")
    tests = metadata.get("unit_tests") if isinstance(metadata, dict) else None
    lists = [tests.get("inputs"), tests.get("outputs")] if isinstance(tests, dict) else []
    if not lists or not all(isinstance(texts, list) and all(isinstance(t, str) for t in texts) for texts in lists):
        return "no verifier_metadata.unit_tests with inputs and outputs (lists of texts)"
    if not lists[0] or len(lists[0]) != len(lists[1]):
        return f"unit_tests has {len(lists[0])} inputs and {len(lists[1])} outputs; as many and at least one are needed"
    if tests.get("fn_name"):
        return "unit_tests.fn_name asks for a function; only programs that read stdin and print can be tested"
    return trusted_run.problem(row)


def verify(row: dict, response: dict) -> dict:
    """{"reward": 1.0 when every test passes, else 0.0, "passed": number of tests passed, "timed_out": bool}.

    Raises PermissionError for a row without trusted_demo.
    """
    tests, trusted = row["verifier_metadata"]["unit_tests"], row.get("trusted_demo") is True
    source = f"{_RUNNER}run({code_of(answer_of(response))!r}, {tests['inputs']!r})"
    result = trusted_run.run_program(source, timeout=TIMEOUT, trusted_demo=trusted)
    expected = tests["outputs"]
    # Last, because a program can print round the runner. One that ends the runner has fewer lines than there are tests.
    reports = result.stdout.split("\n")[-len(expected) :]
    passed = sum(_printed(report) == _lines(text) for report, text in zip(reports, expected))
    return {"reward": float(passed == len(expected)), "passed": passed, "timed_out": result.timed_out}


def code_of(answer: str) -> str:
    """The last ```python block of an answer, or without one all of it."""
    blocks = _FENCE.findall(answer)
    return blocks[-1] if blocks else answer


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _printed(report: str) -> list[str] | None:
    """The lines that the program printed in one test; None when it failed, or wrote over its report."""
    try:
        return _lines(bytes.fromhex(report[1:]).decode()) if report.startswith("=") else None
    except ValueError:
        return None
