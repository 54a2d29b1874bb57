"""Instructions that a rule checks: IFBench and IFEval. A prompt is right where all of its instructions hold (strict, prompt level)."""

import dataclasses

from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.evaluation.benchmark import Benchmark, Settings


def for_evaluation(row: dict) -> dict:
    """IFBench's types are refused in rows that do not say so: they are never to be trained on."""
    return {**row, "evaluation": True, "grading_mode": "binary"}


def of_instructions(verdicts: list[dict]) -> dict[str, float]:
    """The share of single instructions that hold."""
    followed = [kept for verdict in verdicts for kept in verdict.get("follow_instruction_list", [])]
    return {"instructions followed, percent": 100 * sum(followed) / len(followed)} if followed else {}


def demo(n: int) -> list[dict]:
    return DOMAINS["instruction_following"].rows(n, "validation")


IFBENCH = Benchmark(
    "ifbench",
    "IFBench",
    "rows of `instruction_following` (a prompt, instruction_id_list, kwargs) with IFBench's types",
    ("instruction_following",),
    Settings(8, 0.6, 0.95, 32_768, "C2 appendix B: T=0.6, top-p 0.95, 32K, avg@8"),
    demo,
    prepare=for_evaluation,
    also=of_instructions,
)
IFEVAL = dataclasses.replace(
    IFBENCH,
    name="ifeval",
    title="IFEval",
    rows="rows of `instruction_following` (a prompt, instruction_id_list, kwargs) with IFEval's types",
    settings=dataclasses.replace(IFBENCH.settings, samples=1, source="not in the paper; IFBench's, one reply a prompt"),
)
BENCHMARKS = [IFBENCH, IFEVAL]
