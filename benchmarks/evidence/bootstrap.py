"""What paired scores of few seeds and many prompts show: intervals, when a curve has reached a level, how small an effect is seen.

Pure functions. A seed's values are {domain: [prompts]}, scores or differences of scores; every mean here is over the prompts of a
domain, then over domains, then over seeds, each counting the same.
"""

import math
from statistics import NormalDist

import numpy as np

Values = dict[str, np.ndarray]

RESAMPLES = 10_000
LEVEL, POWER = 0.95, 0.8
# Upper 2.5 % and 20 % points of Student's t with 1, 2, ... degrees of freedom; the normal law's beyond.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
T_80 = (1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883)


def mean(seeds: list[Values]) -> float:
    """Over prompts, domains, seeds."""
    return float(np.mean([seed_mean(values) for values in seeds]))


def seed_mean(values: Values) -> float:
    return float(np.mean([np.mean(of_domain) for of_domain in values.values()]))


def difference(before: Values, after: Values) -> Values:
    """after - before, prompt by prompt. Raises ValueError for scores of different domains or numbers of prompts."""
    if before.keys() != after.keys() or any(len(before[domain]) != len(after[domain]) for domain in before):
        raise ValueError(f"scores of {sorted(before)} and of {sorted(after)} are not of the same prompts")
    return {domain: after[domain] - before[domain] for domain in before}


def interval(seeds: list[Values], resamples: int = RESAMPLES) -> list[float]:
    """[mean, low, high]: 95 % by a bootstrap of seeds, and of prompts within each domain of each seed drawn.

    The noise of prompts is in the spread of n seeds already; drawn again in full it would count twice [Davison & Hinkley 1997,
    section 3.8], so that deviations of drawn prompts are divided by sqrt(n). The bootstrap of a handful of seeds is too narrow
    besides: its spread is that of n - 1 in n, and its quantiles are the normal law's. Both are made up for by quantiles further
    out: the expanded percentile interval [Hesterberg 2015, "What teachers should know about the bootstrap"]. It is an interval for
    all seeds that there might have been; with one seed alone, for that seed's prompts. Draws are seeded, so the same scores always
    give the same interval.
    """
    count, rng = len(seeds), np.random.default_rng(0)
    drawn = rng.integers(count, size=(resamples, count))
    means = np.zeros((resamples, count))
    for number, values in enumerate(seeds):
        chosen = drawn == number
        own = seed_mean(values)
        means[chosen] = own + (_resampled(rng, values, int(chosen.sum())) - own) / math.sqrt(count)
    tail = expanded_tail(count)
    low, high = np.quantile(means.mean(axis=1), [tail, 1 - tail])
    return [mean(seeds), float(low), float(high)]


def expanded_tail(seeds: int) -> float:
    """The share of bootstrap means left out at each end."""
    if seeds < 2:
        return (1 - LEVEL) / 2
    return NormalDist().cdf(-math.sqrt(seeds / (seeds - 1)) * t_point(T_975, seeds - 1, 1 - (1 - LEVEL) / 2))


def detectable(seeds: list[Values], found: list[float]) -> float | None:
    """The true difference whose interval would leave 0 out in 4 of 5 experiments like this one; None for one seed.

    found: the interval of these seeds, whose half an estimate has to pass; it strays by Student's law with the seeds' spread.
    """
    if len(seeds) < 2:
        return None
    error = float(np.std([seed_mean(values) for values in seeds], ddof=1)) / math.sqrt(len(seeds))
    return (found[2] - found[1]) / 2 + t_point(T_80, len(seeds) - 1, POWER) * error


def t_point(table: tuple[float, ...], freedom: int, share: float) -> float:
    return table[freedom - 1] if freedom <= len(table) else NormalDist().inv_cdf(share)


def positive(seeds: list[Values]) -> int:
    """In how many seeds the mean is above 0."""
    return sum(seed_mean(values) > 0 for values in seeds)


def reached(curve: list[tuple[float, float]], level: float) -> float | None:
    """The first cost of a curve [(cost, score)] at which its score is at the level and at the next one too, or the last one has it.

    One high point among noisy ones does not count; None where there is no such cost.
    """
    at = [score >= level for _, score in curve]
    return next((cost for n, (cost, _) in enumerate(curve) if all(at[n : n + 2])), None)


def earlier(first: float | None, second: float | None) -> bool | None:
    """Whether what came at cost `first` came before what came at `second` (None: never); None where neither came."""
    if first is None:
        return None if second is None else False
    return second is None or first < second


def _resampled(rng: np.random.Generator, values: Values, size: int) -> np.ndarray:
    """Means [size] of a seed whose prompts are drawn with replacement, domain by domain."""
    total = np.zeros(size)
    for of_domain in values.values():
        distinct, counts = np.unique(of_domain, return_counts=True)
        total += rng.multinomial(len(of_domain), counts / len(of_domain), size=size) @ distinct / len(of_domain)
    return total / len(values)
