"""All benchmarks by name, and the suites they are asked for in. A new one is a file here and its line below."""

from nemo_cascade.evaluation.benchmark import Benchmark
from nemo_cascade.evaluation.benchmarks import (
    code,
    instructions,
    math_answers,
    multiple_choice,
    needles,
    preference,
    software,
    structured,
    workplace,
)

# The suites, in the order they are run.
SUITES = {
    "math": math_answers.BENCHMARKS[:3],
    "math_python": math_answers.BENCHMARKS[3:],
    "instructions": instructions.BENCHMARKS,
    "knowledge": multiple_choice.BENCHMARKS,
    "structured": structured.BENCHMARKS,
    "workplace": workplace.BENCHMARKS,
    "long_context": needles.BENCHMARKS,
    "code": code.BENCHMARKS,
    "swe": software.BENCHMARKS,
    "preference": preference.BENCHMARKS,
}
BENCHMARKS = {benchmark.name: benchmark for suite in SUITES.values() for benchmark in suite}


def chosen(names: list[str]) -> list[Benchmark]:
    """The benchmarks of suites or of their own names, each once, in the order of SUITES; "all" is every one. Raises KeyError."""
    wanted: set[str] = set()
    for name in names:
        if name in SUITES:
            wanted |= {benchmark.name for benchmark in SUITES[name]}
        elif name == "all":
            wanted |= BENCHMARKS.keys()
        elif name in BENCHMARKS:
            wanted.add(name)
        else:
            raise KeyError(name)
    return [benchmark for name, benchmark in BENCHMARKS.items() if name in wanted]
