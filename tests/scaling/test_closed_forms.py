"""With proposers and graders of known rates the loops give what the formulas say, within two standard errors."""

import math
import statistics

import pytest

from nemo_cascade.scaling.best_of_n import BestOfNConfig, best_of_n
from nemo_cascade.scaling.icpc import PENALTY, ICPCConfig, icpc
from nemo_cascade.scaling.ioi import IOIConfig, ioi
from nemo_cascade.scaling.journal import Memory
from nemo_cascade.scaling.refine import RefineConfig, refine
from nemo_cascade.scaling.work import Budget, Work
from tests.scaling.simulated import Rates, Simulated, uniform

RUNS = 300


def each(loop, problem, config, proposer, grader, runs=RUNS) -> list[dict]:
    """What the loop gives, with what was spent, for so many problems that differ by name."""
    found = []
    for number in range(runs):
        rates = grader()
        work = Work(f"q{number}", proposer, rates, Budget(), Memory(), clock=rates.clock)
        found.append({**loop(problem, work, config), **work.summary()})
    return found


def assert_near(values, expected) -> None:
    """Within two standard errors of their mean, which must be small enough to say something."""
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert abs(statistics.fmean(values) - expected) <= 2 * error, (statistics.fmean(values), expected, error)
    assert error < 0.1 * abs(expected)


# ---------------------------------------------------------------------------------------------------- proofs

RIGHT, RATED_IF_RIGHT, RATED_IF_WRONG, MENDED, VERIFICATIONS = 0.3, 0.85, 0.35, 0.5, 3


def proofs_and_ratings(ask) -> str:
    kind = ask.key.split("/")[-1][0]
    if kind == "p":
        rate = RIGHT if "/r1/" in ask.key else MENDED
        return f"{'RIGHT' if uniform('proof', ask.key) < rate else 'WRONG'} proof {ask.key}"
    good = RATED_IF_RIGHT if "RIGHT proof" in ask.messages[0]["content"] else RATED_IF_WRONG
    return f"\\boxed{{{int(uniform('rating', ask.key) < good)}}}"


def binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def best_of(count: int, rate: float) -> dict[int, tuple[float, float]]:
    """Of so many proofs that are right at this rate: {ratings of 1 that the best has: (how likely, how likely it is right then)}."""
    right = [rate * binomial(k, VERIFICATIONS, RATED_IF_RIGHT) for k in range(VERIFICATIONS + 1)]
    wrong = [(1 - rate) * binomial(k, VERIFICATIONS, RATED_IF_WRONG) for k in range(VERIFICATIONS + 1)]
    upto = [0.0, *(sum(right[: k + 1]) + sum(wrong[: k + 1]) for k in range(VERIFICATIONS + 1))]
    return {k: (upto[k + 1] ** count - upto[k] ** count, right[k] / (right[k] + wrong[k])) for k in range(VERIFICATIONS + 1)}


def test_refining_with_a_noisy_verifier_chooses_a_right_proof_as_often_as_it_must():
    config = RefineConfig(candidates=4, verifications=VERIFICATIONS, keep=1, refinements=3, rounds=2)
    found = each(refine, {"statement": "x"}, config, Simulated(proofs_and_ratings), lambda: Rates(None))
    expected = second = 0.0
    for k, (likely, right) in best_of(4, RIGHT).items():
        if k == VERIFICATIONS:
            expected += likely * right
            continue
        second += likely
        for other, (likely_2, right_2) in best_of(3, MENDED).items():
            # At equal means the earlier proof stays ahead.
            expected += likely * likely_2 * (right_2 if other > k else right)
    assert_near([float(one["text"].startswith("RIGHT")) for one in found], expected)
    assert_near([one["spent"]["generations"] for one in found], 4 * (1 + VERIFICATIONS) + second * 3 * (1 + VERIFICATIONS))
    assert {len(one["rounds"]) for one in found} == {1, 2}


# ---------------------------------------------------------------------------------------------------- IOI

RATES = {"a": 0.2, "b": 0.05}
PARTS = [0.0, 0.25, 0.5, 0.75, 1.0]
IOI_PROBLEM = {
    "statement": "x",
    "subtasks": [
        {"name": "a", "points": 10, "tests": {"name": "a"}},
        {"name": "b", "points": 30, "tests": {"name": "b"}},
        {"name": "c", "points": 60, "tests": {"name": "c"}, "partial": True},
    ],
}


def on_subtasks(case) -> float:
    *_, own, _, _, on = case.key.replace("/on-", "/").split("/")
    if own != on:
        return 0.0
    # Parts of the last subtask's points: 0.4, 0.3, 0.2, 0.08, 0.02.
    place = uniform("ioi", case.key)
    return PARTS[sum(place >= bound for bound in (0.4, 0.7, 0.9, 0.98))] if on == "c" else float(place < RATES[on])


def test_ioi_scores_are_sums_over_subtasks_of_the_best_submission():
    rounds, candidates = 3, 4
    proposer = Simulated(lambda ask: f"print({ask.key!r})")
    found = each(ioi, IOI_PROBLEM, IOIConfig(rounds=rounds, candidates=candidates), proposer, lambda: Rates(on_subtasks), runs=150)
    draws = rounds * candidates
    solved = {name: 1 - (1 - rate) ** draws for name, rate in RATES.items()}
    most = sum(0.25 * (1 - below**draws) for below in (0.4, 0.7, 0.9, 0.98))
    assert_near([one["score"] for one in found], 10 * solved["a"] + 30 * solved["b"] + 60 * most)
    # A subtask ends with the first round that brings its full score.
    expected = sum(
        candidates * sum((1 - rate) ** (candidates * number) for number in range(rounds)) for rate in (*RATES.values(), 0.02)
    )
    assert_near([one["spent"]["generations"] for one in found], expected)
    assert all(one["score"] == sum(entry["points"] for entry in one["subtasks"].values()) for one in found)


# ---------------------------------------------------------------------------------------------------- ICPC


@pytest.mark.parametrize("max_submissions", [None, 7])
def test_icpc_solves_and_charges_as_the_rule_says(max_submissions):
    rate, config = 0.12, ICPCConfig(candidates=12, batch=5, max_submissions=max_submissions)
    proposer = Simulated(lambda ask: f"print({ask.key!r})")
    grader = lambda: Rates(lambda case: float(uniform("icpc", case.key) < rate))  # noqa: E731
    found = each(icpc, {"statement": "x", "tests": {}}, config, proposer, grader)
    most = max_submissions or 12
    likely = {number: (1 - rate) ** (number - 1) * rate for number in range(1, most + 1)}
    assert_near([float(one["solved"]) for one in found], sum(likely.values()))
    assert_near([one["submissions"] for one in found], sum((1 - rate) ** number for number in range(most)))
    # Every verdict takes a minute, so the n-th submission is accepted in minute n.
    penalty = sum(p * (number + PENALTY * (number - 1)) for number, p in likely.items())
    assert_near([one["penalty"] or 0.0 for one in found], penalty)


def test_best_of_n_finds_a_right_reply_as_often_as_one_is_there():
    rate, row = 0.15, {"responses_create_params": {"input": "x"}}
    grader = lambda: Rates(lambda case: float(uniform("best", case.key) < rate))  # noqa: E731
    found = each(best_of_n, row, BestOfNConfig(n=6), Simulated(lambda ask: ask.key), grader)
    assert_near([one["score"] for one in found], 1 - (1 - rate) ** 6)
    assert_near([one["mean"] for one in found], rate)


def test_the_majority_is_right_as_often_as_the_binomial_law_says():
    rate, row = 0.6, {"responses_create_params": {"input": "x"}}
    proposer = Simulated(lambda ask: f"\\boxed{{{'right' if uniform('vote', ask.key) < rate else 'wrong'}}}")
    grader = lambda: Rates(lambda case: float("right" in case.text))  # noqa: E731
    found = each(best_of_n, row, BestOfNConfig(n=5, select="majority"), proposer, grader)
    assert_near([one["score"] for one in found], sum(binomial(k, 5, rate) for k in (3, 4, 5)))
