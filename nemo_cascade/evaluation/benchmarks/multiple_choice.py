"""Multiple choice with a boxed letter: GPQA-Diamond and MMLU-Pro. How a letter is read may be said by each row (`mcqa`)."""

from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.evaluation.benchmark import NO_TOOLS, Benchmark, Settings

ROWS = "rows of `mcqa` (a prompt that asks for the letter in \\boxed{}, options, expected_answer)"


def demo(n: int) -> list[dict]:
    return DOMAINS["mcqa"].rows(n, "validation")


def _benchmark(name: str, title: str, samples: int, told: str) -> Benchmark:
    source = f"C2 appendix B: T=1, top-p 0.95, 128K, {told}"
    return Benchmark(name, title, ROWS, ("mcqa",), Settings(samples, 1.0, 0.95, 131_072, source, system=NO_TOOLS), demo)


BENCHMARKS = [
    _benchmark("gpqa_diamond", "GPQA-Diamond", 8, "avg@8"),
    _benchmark("mmlu_pro", "MMLU-Pro", 1, "replies to a prompt not told, here one"),
]
