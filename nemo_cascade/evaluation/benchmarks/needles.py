"""Needles in a haystack: four tasks in RULER's manner, scored by the share of what was to be found. Thinking is off [C2 appendix B].

Real rows are as long as the model reads: `python -m nemo_cascade.data.long_context --tasks ... --lengths 1000000 --rows 100` writes
them with the model's own tokenizer.
"""

from nemo_cascade.data.long_context import generate
from nemo_cascade.data.long_context.fit import Piece
from nemo_cascade.evaluation.benchmark import Benchmark, Settings

TASKS = ("niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
# Words of a demo prompt, which need no model's tokenizer.
DEMO_LENGTH = 1000
# Not those that `python -m nemo_cascade.data.long_context` writes to train on.
DEMO_SEED = 20_260_319


class Words:
    """`long_context.Measure` by words."""

    def piece(self, piece: Piece) -> int:
        return len("".join(piece).split())

    def prompt(self, messages: list[dict]) -> int:
        return sum(self.piece(message["content"]) for message in messages)


def demo(n: int) -> list[dict]:
    return [generate(TASKS[number % len(TASKS)], Words(), DEMO_LENGTH, DEMO_SEED, number) for number in range(n)]


BENCHMARKS = [
    Benchmark(
        "niah",
        "Needles in a haystack",
        f"rows of `long_context` as python -m nemo_cascade.data.long_context --tasks {' '.join(TASKS)} writes them; the paper has 4 x 100",
        ("long_context",),
        Settings(1, 1.0, 0.95, 1_024, "C2 appendix B: thinking off; the rest not told: T=1, top-p 0.95, 1K", thinking=False),
        demo,
        subset="subset",
    )
]
