"""The evidence's intervals hold what they say on scores made with a known effect, and curves reach levels where they stay there."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from evidence import bootstrap  # noqa: E402 - scripts, not a package

DOMAINS, PROMPTS = ("instruction_following", "math", "mcqa"), 300


def experiment(rng, seeds: int, effect: float, spread: float) -> list[dict]:
    """Differences of right (1) and wrong (0) answers before and after, whose mean is `effect` over all seeds there could be.

    A seed's own effect in a domain strays by `spread`; of a prompt the two answers have nothing in common.
    """
    found = []
    for _ in range(seeds):
        own = np.clip(effect + spread * rng.standard_normal(len(DOMAINS)), -0.4, 0.4)
        found.append(
            {
                domain: rng.binomial(1, 0.5 + shift, PROMPTS) - rng.binomial(1, 0.5, PROMPTS).astype(float)
                for domain, shift in zip(DOMAINS, own)
            }
        )
    return found


def detectable(seeds: list[dict]) -> float | None:
    return bootstrap.detectable(seeds, bootstrap.interval(seeds, resamples=1000))


# 150 experiments of true coverage 0.93 fall below 0.86 once in a thousand times.
@pytest.mark.parametrize("seeds, spread", [(5, 0.0), (5, 0.10), (3, 0.05)])
def test_the_interval_holds_the_true_effect_in_most_experiments_of_few_seeds(seeds, spread):
    rng, effect = np.random.default_rng(seeds + int(1000 * spread)), 0.05
    found = [bootstrap.interval(experiment(rng, seeds, effect, spread), resamples=1000) for _ in range(150)]
    assert np.mean([low <= effect <= high for _, low, high in found]) > 0.86
    assert np.mean([value for value, _, _ in found]) == pytest.approx(effect, abs=0.01)


def test_an_effect_much_larger_than_the_spread_is_seen_and_none_is_not():
    rng = np.random.default_rng(1)
    low = [bootstrap.interval(experiment(rng, 5, 0.15, 0.02), resamples=1000)[1] for _ in range(30)]
    assert all(value > 0 for value in low)
    mean, low, high = bootstrap.interval(experiment(rng, 5, 0.0, 0.02))
    assert low < 0 < high and high - low < 0.2


def test_what_is_called_detectable_is_seen_in_about_four_of_five_experiments():
    rng, spread = np.random.default_rng(2), 0.05
    known = np.median([detectable(experiment(rng, 5, 0.1, spread)) for _ in range(50)])
    seen = [bootstrap.interval(experiment(rng, 5, known, spread), resamples=1000)[1] > 0 for _ in range(60)]
    assert 0.6 < np.mean(seen) < 0.97


def test_domains_and_seeds_count_the_same_whatever_their_prompts():
    many, few = np.zeros(300), np.ones(3)
    assert bootstrap.mean([{"a": many, "b": few}, {"a": few, "b": few}]) == pytest.approx(0.75)
    value, low, high = bootstrap.interval([{"a": many + 0.25, "b": few * 0.25}] * 5)
    assert (value, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_one_seed_has_the_interval_of_its_prompts_and_says_nothing_of_other_seeds():
    values = np.repeat([0.0, 1.0], 150)
    _, low, high = bootstrap.interval([{"a": values}])
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(300), rel=0.07)
    assert detectable([{"a": values}]) is None


def test_scores_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="not of the same prompts"):
        bootstrap.difference({"a": np.zeros(3)}, {"a": np.zeros(4)})
    with pytest.raises(ValueError, match="not of the same prompts"):
        bootstrap.difference({"a": np.zeros(3)}, {"b": np.zeros(3)})


@pytest.mark.parametrize(
    "scores, cost",
    [
        ([0.1, 0.6, 0.6, 0.4], 2),
        ([0.1, 0.6, 0.4, 0.6, 0.6], 4),  # a lucky point alone is none
        ([0.1, 0.2, 0.6], 3),  # the last has nothing after it
        ([0.1, 0.2, 0.3], None),
        ([], None),
    ],
)
def test_a_level_is_reached_where_the_curve_stays_at_it(scores, cost):
    assert bootstrap.reached([(n, score) for n, score in enumerate(scores, start=1)], 0.5) == cost


def test_who_was_earlier_is_open_only_where_nobody_came():
    assert bootstrap.earlier(1, 2) is True and bootstrap.earlier(2, 1) is False and bootstrap.earlier(2, 2) is False
    assert bootstrap.earlier(1, None) is True and bootstrap.earlier(None, 1) is False and bootstrap.earlier(None, None) is None
