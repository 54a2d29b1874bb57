"""What Nemotron-Cascade 2 scores by its paper (arXiv 2603.19220), in percent, for comparison where the rows are the real ones."""

from dataclasses import dataclass, field

TABLE_1 = "table 1"


@dataclass(frozen=True)
class Figure:
    """score, where it stands, what differs from what is measured here, and scores of the benchmark's parts by the values of `subset`."""

    score: float
    where: str = TABLE_1
    remark: str = ""
    parts: dict[str, float] = field(default_factory=dict)


FIGURES = {
    "aime25": Figure(92.4),
    "aime26": Figure(90.9),
    "hmmt_feb25": Figure(94.6),
    "aime25_python": Figure(98.6),
    "aime26_python": Figure(95.0),
    "livecodebench_v6": Figure(87.2),
    "gpqa_diamond": Figure(76.1),
    "mmlu_pro": Figure(79.8),
    "ifbench": Figure(82.9),
    "niah": Figure(99.0, remark="of 1M tokens"),
    "arena_hard_v2": Figure(83.5, remark="GPT-4.1 as judge, its own prompt", parts={"hard_prompt": 88.2, "creative_writing": 78.7}),
    "swe_bench_verified": Figure(50.2, remark="OpenHands"),
    "swe_agentless": Figure(44.3, "table 4", remark="Agentless-Mini, after agentless RL, before agentic"),
}
