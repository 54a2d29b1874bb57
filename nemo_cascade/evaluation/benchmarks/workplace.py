"""Tools at a workplace: right where five databases end as after the expected calls. A domain of multi-domain RL; the paper has no score."""

from nemo_cascade.data.demo import ON_REQUEST
from nemo_cascade.environments.workplace_assistant import MAX_STEPS
from nemo_cascade.evaluation.benchmark import Benchmark, Settings


def demo(n: int) -> list[dict]:
    return ON_REQUEST["workplace_assistant"].rows(n, "validation")


BENCHMARKS = [
    Benchmark(
        "workplace_assistant",
        "Workplace assistant",
        "rows of `workplace_assistant` (a prompt, tools, ground_truth)",
        ("workplace_assistant",),
        Settings(
            1, 1.0, 0.95, 8_192, "not in the paper; the model card's T=1 and top-p 0.95, NeMo Gym's 6 turns", turns=MAX_STEPS
        ),
        demo,
    )
]
