"""Preference by comparison: ArenaHard v2. A judge compares replies with reference answers in both orders (`pairwise`).

Rows have their part of the benchmark under `category` (hard_prompt, creative_writing); the score is the mean of the parts, as the
paper's average of the two is.
"""

from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.evaluation.benchmark import Benchmark, Settings
from nemo_cascade.evaluation.pairwise import style


def demo(n: int) -> list[dict]:
    return DOMAINS["preference"].rows(n, "validation")


BENCHMARKS = [
    Benchmark(
        "arena_hard_v2",
        "ArenaHard v2",
        "rows of `genrm_compare` (a prompt, reference_reply, category); v2 has 750",
        ("genrm_compare",),
        Settings(1, 0.6, 0.95, 32_768, "C2 appendix B: T=0.6, top-p 0.95, 32K, no style control"),
        demo,
        subset="category",
        macro=True,
        also=style,
    )
]
