"""How often a gate's `max_drop` fails a stage that changed nothing, and how often it sees a true loss of 0.05.

    python benchmarks/gates.py [--stages 1000] [--domains 9] [--prompts 500] [--replies 6]

Simulated stages through the real rule (`gate.decide`). A prompt has a chance of being answered before and one after the stage,
so that the scores of one reply correlate as told; a stage that does harm lowers the chances of one domain, by 0.05 on average,
and of no other. `replies` is `cascade.validation.num_samples`. Graded scores are shares of ten parts fulfilled. Beside the
count stands what the normal law says (`paired.detectable_drop`). Prints a table with a verdict on the bars and exits with 1
where one that is promised does not hold.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import NormalDist

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from nemo_cascade.cascade import gate
from nemo_cascade.cascade.config import GateConfig
from nemo_cascade.stages.paired import POWER, detectable_drop

DROP, MAX_DROP, FALSE_ALARMS = 0.05, 0.02, 0.05
# (share answered before, correlation of one reply's scores before and after, replies a prompt, parts of a score)
CASES = [
    *((0.5, correlation, 1, 1) for correlation in (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)),
    *((0.5, correlation, 4, 1) for correlation in (0.0, 0.3, 0.5, 0.7)),
    *((0.5, correlation, 6, 1) for correlation in (0.0, 0.3, 0.7)),
    *((0.85, correlation, replies, 1) for correlation, replies in ((0.0, 1), (0.3, 1), (0.7, 1), (0.0, 6))),
    *((0.98, correlation, replies, 1) for correlation, replies in ((0.0, 1), (0.7, 1), (0.0, 6))),
    *((0.5, correlation, 1, 10) for correlation in (0.0, 0.3, 0.7)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--domains", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--replies", type=int, help="only the cases of so many replies a prompt")
    args = parser.parse_args()
    cases = [case for case in CASES if args.replies in (None, case[2])]
    table = Table(
        *("base", "correlation", "replies", "score", "noise fails", "loss seen", "by the normal law", "4 of 5 seen from"),
        "both bars",
        title=f"{args.stages} stages, {args.domains} domains of {args.prompts} prompts, max_drop {MAX_DROP}, true loss {DROP}",
    )
    broken = False
    with ProcessPoolExecutor() as pool:
        measured = pool.map(partial(figures, stages=args.stages, shape=(args.domains, args.prompts)), cases)
        measured = [*track(measured, "simulating", len(cases), console=Console(stderr=True))]
    for case, (false, seen, detectable) in zip(cases, measured):
        base, correlation, replies, parts = case
        law = power(error_of(case, args.prompts), args.domains)
        # Counts of a thousand stages stray: three standard errors of the bar itself.
        stray = 3 * math.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / args.stages)
        broken |= false > FALSE_ALARMS + stray or law >= POWER + 0.03 and seen < POWER
        table.add_row(
            *(f"{base:g}", f"{correlation:g}", str(replies), "0 or 1" if parts == 1 else f"of {parts}", f"{false:.1%}"),
            *(f"{seen:.1%}", f"{law:.0%}", f"{detectable:.3f}", str(false <= FALSE_ALARMS and seen >= POWER)),
        )
    Console(width=130).print(table)
    raise SystemExit(int(broken))


def figures(case: tuple, stages: int, shape: tuple[int, int]) -> tuple[float, float, float]:
    """Shares of stages that fail without and with a loss, and the mean of `detectable_drop`."""
    rng = np.random.default_rng(CASES.index(case))
    false, _ = failing(rng, stages, shape, case, drop=0.0)
    return false, *failing(rng, stages, shape, case, drop=DROP)


def failing(rng, stages: int, shape: tuple[int, int], case: tuple, drop: float) -> tuple[float, float]:
    """Share of stages that fail (where there is a loss: in the domain that has it) and the mean of its `detectable_drop`."""
    rules = GateConfig(max_drop={str(domain): MAX_DROP for domain in range(shape[0])})
    failed, detectable = 0, []
    for _ in range(stages):
        before, after = simulated(rng, shape, case, drop)
        differences = {str(domain): values for domain, values in enumerate(after - before)}
        where = [domain for _, domain in gate.decide(differences, {}, rules)[0]]
        failed += "0" in where if drop else bool(where)
        detectable.append(detectable_drop(differences["0"], gate.HARM_LEVEL / shape[0], MAX_DROP))
    return failed / stages, float(np.mean(detectable))


def simulated(rng, shape: tuple[int, int], case: tuple, drop: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores [domains, prompts] before and after a stage that lowers those of domain 0 by `drop` on average.

    A prompt's chance is Beta distributed with variance correlation * base * (1 - base), which is the covariance of two replies.
    """
    base, correlation, replies, parts = case
    chances = np.full(shape, base)
    if correlation > 0:
        strength = 1 / correlation - 1
        chances = rng.beta(base * strength, (1 - base) * strength, size=shape)
    lowered = chances.copy()
    lowered[0] *= 1 - drop / base
    # A graded score: parts of which each is fulfilled or not. Its noise is less, and so is that of several replies.
    draws = replies * parts
    return rng.binomial(draws, chances) / draws, rng.binomial(draws, lowered) / draws


def error_of(case: tuple, prompts: int) -> float:
    """Standard error of the mean difference where a loss of DROP is real.

    A prompt's variance is (E[P (1 - P)] + E[cP (1 - cP)]) / draws + (1 - c)^2 var P: P is its chance, c what is left of it.
    Without the loss's own spread the law would promise too much: of prompts that were always answered alike, a loss makes some
    differ.
    """
    base, correlation, replies, parts = case
    kept, spread = 1 - DROP / base, correlation * base * (1 - base)
    square = spread + base**2
    noise = base - square + kept * base - kept**2 * square
    return math.sqrt((noise / (replies * parts) + (1 - kept) ** 2 * spread) / prompts)


def power(error: float, domains: int) -> float:
    """The chance that a loss of DROP in one of so many domains fails a stage, by the normal law."""
    normal = NormalDist()
    least = max(normal.inv_cdf(1 - gate.HARM_LEVEL / domains) * error, MAX_DROP)
    return normal.cdf((DROP - least) / error)


if __name__ == "__main__":
    main()
