"""Chances and intervals of paired scores are those of the laws they claim, and a gate keeps its levels on simulated stages."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_cascade.stages import paired

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gates  # noqa: E402 - a script, not a package


def test_the_interval_is_that_of_the_normal_law_for_many_prompts():
    rng = np.random.default_rng(1)
    before, after = rng.normal(0, 1, 2000), rng.normal(0.1, 1, 2000)
    mean, low, high = paired.paired_difference(before, after)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 2000), rel=0.06)
    assert mean == pytest.approx((after - before).mean()) and paired.paired_difference(before, after) == [mean, low, high]


@pytest.mark.parametrize("gained, lost", [(0, 0), (5, 0), (9, 2), (30, 20), (2, 9)])
def test_for_right_and_wrong_answers_the_test_is_mcnemars(gained, lost):
    difference = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 7)
    exact = sum(math.comb(gained + lost, k) for k in range(gained, gained + lost + 1)) / 2 ** (gained + lost)
    assert paired.chance_of_gain(difference) == pytest.approx(exact, abs=0.02)
    assert paired.chance_of_loss(-difference) == paired.chance_of_gain(difference)


def test_scores_of_many_sizes_are_flipped_each_by_itself():
    difference = np.array([0.5, 0.25, 0.125, -0.0625])
    # Of 16 sign patterns those with a sum of at least 0.8125: all gains, and this one.
    assert paired.chance_of_gain(difference) == pytest.approx(2 / 16, abs=0.01)


def test_holm_takes_the_surest_at_a_share_of_the_level_and_stops_at_the_first_that_is_not():
    assert paired.significant({"a": 0.04, "b": 0.001, "c": 0.02}, 0.05) == {"a", "b", "c"}
    assert paired.significant({"a": 0.04, "b": 0.001, "c": 0.03}, 0.05) == {"b"}
    assert paired.significant({"a": 0.01, "b": 0.02, "c": 0.02}, 0.02) == set()
    assert paired.significant({}, 0.05) == set()


def test_a_floor_is_judged_by_the_spread_of_the_scores():
    scores = np.array([1.0] * 50 + [0.0] * 50)
    assert paired.chance_of_reaching(scores, 0.6) == pytest.approx(0.0284, abs=0.006)  # 60 or more of 100 fair coins
    assert paired.chance_of_reaching(scores, 0.4) > 0.97


# Nine domains of 500 prompts, as in benchmarks/gates.py, with fewer stages. At 5 % false alarms fewer than 14 of 120 fail
# with 99.7 % probability.
CASES = {"noise of one reply": (0.5, 0.3, 1, 1), "near the ceiling": (0.98, 0.0, 1, 1), "graded": (0.5, 0.3, 1, 10)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_noise_fails_few_stages_in_all_domains_together(case):
    false, _ = gates.failing(np.random.default_rng(3), 120, (9, 500), case, drop=0.0)
    assert false < 14 / 120


def test_enough_replies_a_prompt_see_a_loss_of_a_twentieth_in_one_domain_of_nine():
    seen, detectable = gates.failing(np.random.default_rng(4), 60, (9, 500), (0.5, 0.5, 4, 1), drop=0.05)
    assert seen >= 0.8 and detectable < 0.05


def test_too_few_replies_see_it_seldom_and_the_verdict_says_from_where_on_they_would():
    seen, detectable = gates.failing(np.random.default_rng(5), 60, (9, 500), (0.5, 0.0, 1, 1), drop=0.05)
    assert seen < 0.5 and detectable > 0.09
