"""Two checkpoints scored on the same prompts: how far apart, how sure, and what so many prompts can show at all.

Knows nothing of stages or gates. Left out: corrections for prompts that are not independent of one another (several questions
on one document, say), and tests of anything but means.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypeVar

import numpy as np

Name = TypeVar("Name")

RESAMPLES = 10_000
# With so many chances in a hundred a loss is to be seen where `detectable_drop` says so.
POWER = 0.8


def both_scored(first: Sequence[float | None], second: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the prompts that have one both times, None being none."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    one, other = np.array(pairs, dtype=float).reshape(-1, 2).T
    return one, other


def interval(values: np.ndarray) -> list[float]:
    """[mean, low, high] of values [prompts]: the 95 % percentile bootstrap [Efron & Tibshirani 1993, section 13.3].

    The resampling has a fixed seed, so the same scores always give the same interval.
    """
    low, high = np.percentile(_resampled_means(values), [2.5, 97.5])
    return [float(np.mean(values)), float(low), float(high)]


def paired_difference(before: np.ndarray, after: np.ndarray) -> list[float]:
    """[mean, low, high] of after - before [prompts], as `interval`."""
    return interval(np.asarray(after, dtype=float) - np.asarray(before, dtype=float))


def chance_of_gain(difference: np.ndarray) -> float:
    """The chance of a sum as large as this one's if each prompt's difference [prompts] could as well have had the other sign.

    The one-sided sign-flip test [Fisher 1935, section 21; Good 2005, section 3.2]: where a difference is noise, both orders of
    the two scores are equally likely, so the level holds exactly at any number of prompts; for right or wrong answers it is
    McNemar's exact test. Estimated from RESAMPLES draws with a fixed seed, never 0 [Phipson & Smyth 2010].
    """
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    rng, sums = np.random.default_rng(0), np.zeros(RESAMPLES)
    # Of differences of one size it matters only how many are gains.
    for size, count in zip(sizes, counts):
        sums += (2 * rng.binomial(count, 0.5, size=RESAMPLES) - count) * size
    # Sums that are equal but for rounding are equal.
    as_large = sums >= np.sum(difference) - 1e-9
    return float((1 + as_large.sum()) / (1 + RESAMPLES))


def chance_of_loss(difference: np.ndarray) -> float:
    """The same for a sum as small."""
    return chance_of_gain(-difference)


def chance_of_reaching(values: np.ndarray, floor: float) -> float:
    """The share of bootstrap means of values [prompts] that reach the floor, never 0.

    Too small with a handful of prompts, which have no spread to resample.
    """
    return float((1 + (_resampled_means(values) >= floor - 1e-12).sum()) / (1 + RESAMPLES))


def significant(chances: dict[Name, float], level: float) -> set[Name]:
    """The names whose chance is too small for noise, with at most `level` that any of them is noise [Holm 1979]."""
    found = set()
    for place, name in enumerate(sorted(chances, key=chances.get)):
        if chances[name] > level / (len(chances) - place):
            break
        found.add(name)
    return found


def detectable_drop(difference: np.ndarray, level: float, max_drop: float = 0.0) -> float:
    """The true loss that POWER of all stages with it would fail for, when one fails that lost more than max_drop at this level.

    By the normal law: max(z_level * s, max_drop) + z_POWER * s, where s is the standard error of the mean of difference
    [prompts].
    """
    return seen_drop(float(np.std(difference)) / math.sqrt(len(difference)), level, max_drop)


def seen_drop(error: float, level: float, max_drop: float) -> float:
    """The same from the standard error of the mean difference."""
    normal = NormalDist()
    return max(normal.inv_cdf(1 - level) * error, max_drop) + normal.inv_cdf(POWER) * error


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Means [RESAMPLES] of as many values drawn with replacement."""
    distinct, counts = np.unique(values, return_counts=True)
    # How often each distinct value is drawn; scores of one kind of reply have few.
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    return drawn @ distinct / len(values)
