"""Mathematics with boxed answers: AIME 2025 and 2026, HMMT of February 2025, alone and with a Python to compute with.

Right where math-verify finds the boxed answer equal to `expected_answer`.
"""

import dataclasses

from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.environments.math_with_python import MAX_STEPS
from nemo_cascade.environments.python_tool import DEFINITION
from nemo_cascade.evaluation.benchmark import NO_TOOLS, Benchmark, Settings

ROWS = "rows of `math` (a prompt that asks for the answer in \\boxed{}, question, expected_answer)"
ALONE = Settings(64, 1.0, 1.0, 131_072, "C2 appendix B: 131K tokens, T=1, top-p 1, avg@64", system=NO_TOOLS)
WITH_PYTHON = dataclasses.replace(
    ALONE, source=f"{ALONE.source}; up to 100 calls of Python there, {MAX_STEPS} turns here", system=None, turns=MAX_STEPS
)


def with_python(row: dict) -> dict:
    """A row that offers the tool, as those of `math_with_python`."""
    prompt = row.get("responses_create_params") or {"input": row.get("prompt")}
    agent = {"type": "responses_api_agents", "name": "math_with_python_simple_agent"}
    return {**row, "responses_create_params": {**prompt, "tools": prompt.get("tools") or [DEFINITION]}, "agent_ref": agent}


def demo(n: int) -> list[dict]:
    return DOMAINS["math"].rows(n, "validation")


def _benchmark(name: str, title: str) -> Benchmark:
    return Benchmark(name, title, ROWS, ("math",), ALONE, demo)


def _python(alone: Benchmark) -> Benchmark:
    return dataclasses.replace(
        alone,
        name=f"{alone.name}_python",
        title=f"{alone.title} with Python",
        environments=("math", "math_with_python"),
        settings=WITH_PYTHON,
        prepare=with_python,
    )


AIME25, AIME26 = _benchmark("aime25", "AIME 2025"), _benchmark("aime26", "AIME 2026")
HMMT = _benchmark("hmmt_feb25", "HMMT February 2025")
BENCHMARKS = [AIME25, AIME26, HMMT, _python(AIME25), _python(AIME26)]
