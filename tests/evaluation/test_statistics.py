"""Scores are exact, and intervals hold what they say."""

import itertools

import numpy as np
import pytest

from nemo_cascade.evaluation.statistics import Cluster, estimate, solved


def clusters(values, **more):
    return [Cluster(value, **more) for value in values]


def test_an_interval_covers_the_true_score_of_alike_samples():
    """200 benchmarks of 60 prompts, each with a skill of its own and 8 samples: taken one by one they would cover it too seldom."""
    rng, covered, by_sample = np.random.default_rng(1), 0, 0
    for _ in range(200):
        skills = rng.beta(0.8, 0.6, size=60)
        right = rng.binomial(8, skills)
        found = estimate(clusters(right / 8))
        covered += found.low <= 0.8 / 1.4 <= found.high
        p = right.mean() / 8
        by_sample += abs(p - 0.8 / 1.4) <= 1.96 * (p * (1 - p) / 480) ** 0.5
    assert 0.90 <= covered / 200 <= 0.98
    assert by_sample / 200 < 0.75, "this shows that prompts matter"


def test_weights_and_parts_make_the_score():
    some = [Cluster(1.0, 6), Cluster(0.0, 2)]
    assert estimate(some).score == 0.75
    apart = [*clusters([1.0, 1.0, 1.0, 0.0], part="easy"), *clusters([0.0, 0.5], part="hard")]
    assert estimate(apart, macro=True).score == (0.75 + 0.25) / 2
    assert estimate(apart).score == pytest.approx(3.5 / 6)


@pytest.mark.parametrize("n, low", [(1, 0.025), (8, 0.025 ** (1 / 8)), (300, 0.025 ** (1 / 300))])
def test_all_right_or_all_wrong_has_clopper_and_pearsons_bound(n, low):
    right, wrong = estimate(clusters([1.0] * n)), estimate(clusters([0.0] * n))
    assert (right.score, right.low, right.high) == (1.0, pytest.approx(low), 1.0)
    assert (wrong.score, wrong.low, wrong.high) == (0.0, 0.0, pytest.approx(1 - low))


def test_of_one_prompt_or_none_nothing_is_claimed():
    found = estimate(clusters([0.5]))
    assert (found.score, found.low, found.high) == (0.5, 0.0, 1.0) and estimate([]) is None


def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one():
    for n, c, k in [(5, 2, 3), (6, 1, 2), (4, 0, 2), (4, 4, 1), (3, 2, 3)]:
        choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert solved([(n, c)], k) == pytest.approx(sum(map(any, choices)) / len(choices))
