"""Scores along the way, against what they cost: a curve an arm and seed, from the same start.

A curve's points are in-stage validations, all on the same prompts with the same noise; their costs are summed over the stages of
the arm, after SFT.
"""

from dataclasses import dataclass

import numpy as np

from evidence import bootstrap
from evidence.record import DOMAINS, unpack

COSTS = ("rollouts", "tokens", "seconds")
START = "sft"
# The stages of an arm, one after the other.
ARMS = {
    "GRPO, mixed": ("mixed", "mixed_on"),
    "MOPD": ("mopd",),
    "judge's comparisons, mixed": ("preferred",),
    "cascade": ("if_rl", "math_rl", "mcqa_rl"),
}
# Who teaches MOPD from SFT in which domain.
TEACHERS = {"instruction_following": "if_rl", "math": "math_teacher", "mcqa": "mcqa_teacher"}
# A student has its teachers' level when its mean over domains is not further below theirs.
MARGIN = 0.02


@dataclass
class Point:
    """What was spent so far, by COSTS, and the scores then."""

    cost: dict[str, float]
    scores: bootstrap.Values


def curve(document: dict, stages: tuple[str, ...]) -> list[Point]:
    """The points of an arm of one seed, the SFT checkpoint first."""
    spent = dict.fromkeys(COSTS, 0.0)
    points = [Point(dict(spent), scores_of(document["stages"][START]["history"][-1]["scores"]))]
    for name in stages:
        stage = document["stages"][name]
        for entry in stage["history"]:
            so_far = {cost: spent[cost] + sum(stage[cost][: entry["step"]]) for cost in COSTS}
            points.append(Point(so_far, scores_of(entry["scores"])))
        spent = {cost: spent[cost] + sum(stage[cost]) for cost in COSTS}
    return points


def scores_of(packed: dict) -> bootstrap.Values:
    """domain -> [prompts]."""
    return {domain: unpack(packed[domain]) for domain in DOMAINS if domain in packed}


def teachers_scores(document: dict) -> bootstrap.Values:
    """Each domain's score of its teacher at the teacher's end, with the noise that curves have."""
    return {
        domain: unpack(document["stages"][teacher]["history"][-1]["scores"][domain]) for domain, teacher in TEACHERS.items()
    }


def teachers_cost(document: dict) -> dict[str, float]:
    """What the teachers' own RL took."""
    return {cost: sum(sum(document["stages"][name][cost]) for name in TEACHERS.values()) for cost in COSTS}


def cost_to_level(document: dict, arm: str, cost: str, counted: bool = False) -> float | None:
    """What an arm had spent when it came to its teachers' level, less MARGIN; None if it never did.

    counted: with what the teachers took, where the arm has teachers.
    """
    level = bootstrap.seed_mean(teachers_scores(document)) - MARGIN
    points = [(point.cost[cost], bootstrap.seed_mean(point.scores)) for point in curve(document, ARMS[arm])]
    found = bootstrap.reached(points, level)
    extra = teachers_cost(document)[cost] if counted and arm == "MOPD" else 0.0
    return None if found is None else found + extra


def gains(documents: list[dict], arm: str) -> list[tuple[dict[str, float], list[bootstrap.Values]]]:
    """An arm's points over all seeds: (mean cost by COSTS, the seeds' differences to their start)."""
    of_seed = [curve(document, ARMS[arm]) for document in documents]
    return [
        (
            {cost: float(np.mean([point.cost[cost] for point in points])) for cost in COSTS},
            [bootstrap.difference(seed[0].scores, point.scores) for seed, point in zip(of_seed, points)],
        )
        for points in zip(*of_seed)
    ]


def draw(documents: list[dict], path) -> None:
    """The figure: gain over SFT of every arm, its mean over domains by each cost and each domain by rollouts, with 95 % bands."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), sharey=True, layout="constrained")
    panels = [(axis, cost, DOMAINS, f"mean of {len(DOMAINS)} domains") for axis, cost in zip(axes[0], COSTS)]
    panels += [(axis, "rollouts", (domain,), domain) for axis, domain in zip(axes[1], DOMAINS)]
    arms = {arm: gains(documents, arm) for arm in ARMS}
    starts = [curve(document, ())[0].scores for document in documents]
    levels = [bootstrap.difference(start, teachers_scores(document)) for start, document in zip(starts, documents)]
    for axis, cost, domains, title in panels:
        for arm, points in arms.items():
            bands = np.array([bootstrap.interval(_only(seeds, domains), resamples=2_000) for _, seeds in points])
            spent = [at[cost] for at, _ in points]
            (line,) = axis.plot(spent, bands[:, 0], marker=".", label=arm)
            axis.fill_between(spent, bands[:, 1], bands[:, 2], color=line.get_color(), alpha=0.15, linewidth=0)
        axis.axhline(bootstrap.mean(_only(levels, domains)), color="black", linestyle="--", linewidth=1, label="MOPD's teachers")
        axis.set(title=title, xlabel={"tokens": "sampled tokens", "seconds": "seconds of training"}.get(cost, cost))
        axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("score less that after SFT")
    axes[0][0].legend(fontsize="small")
    count = f"{len(documents)} seeds" if len(documents) > 1 else "1 seed"
    figure.suptitle(f"{count}, same starts; bands: 95 %. Teachers' own costs are not in MOPD's")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _only(seeds: list[bootstrap.Values], domains: tuple[str, ...]) -> list[bootstrap.Values]:
    return [{domain: values[domain] for domain in domains} for values in seeds]
