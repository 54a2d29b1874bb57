"""A score over prompts and how far it may be off: a bootstrap that draws whole prompts, because samples of one prompt are alike.

Where all prompts are wrong, or all right, there is nothing to draw: the bound is then Clopper and Pearson's for so many prompts.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES, CHUNK = 2000, 250
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Cluster:
    """A prompt: the mean reward of its samples that have a verdict, how much it counts, and the part of the benchmark it belongs to."""

    value: float
    weight: float = 1.0
    part: str = ""


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval."""

    score: float
    low: float
    high: float


def estimate(clusters: list[Cluster], macro: bool = False) -> Estimate | None:
    """The weighted mean over prompts, with macro the mean over parts of that of each, whose prompts are then drawn apart; None of
    no prompts."""
    if not clusters:
        return None
    parts: dict[str, list[Cluster]] = {}
    for cluster in clusters:
        parts.setdefault(cluster.part if macro else "", []).append(cluster)
    drawn = [_drawn(part) for part in parts.values()]
    score = sum(mean for mean, _ in drawn) / len(drawn)
    values = {cluster.value for cluster in clusters}
    if values in ({0.0}, {1.0}):
        miss = 1 - ((1 - LEVEL) / 2) ** (1 / len(clusters))
        return Estimate(score, 0.0, miss) if score == 0.0 else Estimate(score, 1.0 - miss, 1.0)
    if len(clusters) == 1:
        return Estimate(score, 0.0, 1.0)  # one prompt tells nothing of others
    means = sum(means for _, means in drawn) / len(drawn)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(score, float(low), float(high))


def _drawn(part: list[Cluster]) -> tuple[float, np.ndarray]:
    """The weighted mean of a part, and those of its resamples [RESAMPLES]."""
    values, weights = np.array([c.value for c in part]), np.array([c.weight for c in part])
    rng = np.random.default_rng(SEED)
    means = []
    for _ in range(RESAMPLES // CHUNK):
        chosen = rng.integers(len(part), size=(CHUNK, len(part)))
        means.append((values * weights)[chosen].sum(axis=1) / weights[chosen].sum(axis=1))
    return float((values * weights).sum() / weights.sum()), np.concatenate(means)


def solved(counts: list[tuple[int, int]], k: int) -> float:
    """pass@k, unbiased [Chen et al. 2021]: the mean over prompts, each (samples, right ones), of the chance that k of its samples hold a
    right one. Every prompt must have k samples."""
    return float(np.mean([1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)) if n - c >= k else 1.0 for n, c in counts]))
