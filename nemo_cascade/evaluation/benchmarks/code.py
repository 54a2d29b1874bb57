"""Programs that hidden tests run: LiveCodeBench v6. Right where all tests of a problem pass, in the sandbox."""

from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.evaluation.benchmark import NO_TOOLS, Benchmark, Settings


def demo(n: int) -> list[dict]:
    return DOMAINS["code_gen"].rows(n, "validation")


BENCHMARKS = [
    Benchmark(
        "livecodebench_v6",
        "LiveCodeBench v6",
        "rows of `code_gen` (a prompt, verifier_metadata.unit_tests); v6 of the paper has 454",
        ("code_gen",),
        Settings(8, 1.0, 0.95, 131_072, "C2 appendix B: 128K, T=1, top-p 0.95, avg@8", system=NO_TOOLS),
        demo,
    )
]
