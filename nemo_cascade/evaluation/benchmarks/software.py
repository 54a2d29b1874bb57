"""Issues of repositories: SWE-bench Verified by an agent with a shell and an editor, and agentless by one patch. Right where all hidden
tests pass on what is left behind.
"""

from nemo_cascade.data.demo import DOMAINS, FIXED
from nemo_cascade.evaluation.benchmark import Benchmark, Settings


def agentic_demo(n: int) -> list[dict]:
    return FIXED["swe_agentic"]("validation")[:n]


def agentless_demo(n: int) -> list[dict]:
    return DOMAINS["swe_repair"].rows(n, "validation")


BENCHMARKS = [
    Benchmark(
        "swe_bench_verified",
        "SWE-bench Verified",
        "rows of `swe_agentic` (a prompt, tools, files or a repository with base_commit, fail_to_pass, pass_to_pass, test_patch)",
        ("swe_agentic",),
        Settings(
            4, 1.0, 0.95, 32_768, "C2 appendix B: non-thinking, avg@4, 200 turns; the rest not told: T=1, top-p 0.95, 32K a turn",
            thinking=False, turns=200,
        ),
        agentic_demo,
    ),
    Benchmark(
        "swe_agentless",
        "SWE-bench, agentless",
        "rows of `swe_repair` (a prompt with the files, files or a repository with base_commit, fail_to_pass, pass_to_pass, test_patch)",
        ("swe_repair",),
        Settings(4, 1.0, 0.95, 65_536, "C2 section 4.8.1: avg@4 with thinking; the rest not told: T=1, top-p 0.95, 64K"),
        agentless_demo,
    ),
]
