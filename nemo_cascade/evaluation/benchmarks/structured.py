"""Structured output: the whole answer is a document that a schema allows. A domain of multi-domain RL; the paper has no score of it."""

from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.evaluation.benchmark import Benchmark, Settings


def demo(n: int) -> list[dict]:
    return DOMAINS["structured_outputs"].rows(n, "validation")


BENCHMARKS = [
    Benchmark(
        "structured_outputs",
        "Structured output",
        "rows of `structured_outputs` (a prompt, schema_str, schema_type)",
        ("structured_outputs",),
        Settings(1, 1.0, 0.95, 49_152, "not in the paper; the model card's T=1 and top-p 0.95, 49K of multi-domain RL (section 4.3)"),
        demo,
        subset="schema_type",
    )
]
