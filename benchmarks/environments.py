"""How many replies a second does each environment verify, in one process and on one core? Beside its bar where it has
one.

    python benchmarks/environments.py [NAME ...] --out environments.json

A case is a function that makes (row, response) pairs, entered in `CASES` with its bar; replies are of the length that
models write. Calls are counted over processor time as well as by the clock, because the clock also measures whatever
else runs. No test looks at what this prints.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nemo_cascade import environments
from nemo_cascade.environments.instruction_following.examples import IF_RLVR, IFBENCH, IFEVAL, row_of

Pairs = list[tuple[dict, dict]]
SENTENCES = (
    "The river runs past the old stone house, where we lived before the war.",
    "It's cold there in winter; nobody stays for long.",
    "Still, many people (my brother, for one) came back every year!",
    "Why did they?",
    "* A *good* question, which [name] asked: see Section 2.",
)


@dataclass(frozen=True)
class Case:
    """What is measured: an environment, pairs for it, and how many calls a second it must manage."""

    environment: str
    pairs: Callable[[random.Random], Pairs]
    bar: int | None = None


CASES: dict[str, Case] = {}


def case(name: str, environment: str, bar: int | None = None):
    """Enters the decorated function as the maker of a case's pairs."""

    def enter(pairs: Callable[[random.Random], Pairs]) -> Callable[[random.Random], Pairs]:
        CASES[name] = Case(environment, pairs, bar)
        return pairs

    return enter


def prose(rng: random.Random, characters: int) -> str:
    text = ""
    while len(text) < characters:
        text += rng.choice(SENTENCES) + rng.choice([" ", " ", "\n", "\n\n"])
    return text


@case("instructions, four of IFEval's and IF-RLVR's 54", "instruction_following", bar=1_000)
def four_instructions(rng: random.Random) -> Pairs:
    return [(_row(rng, (*IFEVAL, *IF_RLVR), 4), _reply(rng)) for _ in range(400)]


@case("instructions, four of IFEval's 25", "instruction_following", bar=1_000)
def four_of_ifeval(rng: random.Random) -> Pairs:
    return [(_row(rng, IFEVAL, 4), _reply(rng)) for _ in range(400)]


@case("instructions, one of IFBench's 58", "instruction_following")
def one_of_ifbench(rng: random.Random) -> Pairs:
    rows = [_row(rng, IFBENCH, 1) for _ in range(400)]
    return [(row, _reply(rng)) for row in rows if environments.row_problem(row) is None]


def _row(rng: random.Random, family: tuple | list, count: int) -> dict:
    chosen = [row_of(name, kwargs) for name, kwargs, *_ in rng.sample(list(family), count)]
    merged = {key: sum((row[key] for row in chosen), []) for key in ("instruction_id_list", "kwargs")}
    return {**chosen[0], **merged}


def _reply(rng: random.Random) -> dict:
    return environments.response_of(f"Let me think.</think>{prose(rng, rng.randint(300, 2_500))}")


def measure(case: Case, seconds: float) -> dict:
    """{"calls", "per_second", "per_cpu_second"}, after one round that is not measured: it loads what is loaded once."""
    verify, pairs = environments.get(case.environment).verify, case.pairs(random.Random(0))
    for row, response in pairs:
        verify(row, response)
    calls, clock, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - clock < seconds:
        for row, response in pairs:
            verify(row, response)
        calls += len(pairs)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {"calls": calls, "per_second": calls / clock, "per_cpu_second": calls / cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="cases whose name or environment contains it; all unless given"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = Table("case", "calls/s", "calls/s of processor time", "bar")
    results = {}
    for name, case in CASES.items():
        if args.names and not any(wanted in name or wanted in case.environment for wanted in args.names):
            continue
        result = results[name] = measure(case, args.seconds) | {"bar": case.bar}
        table.add_row(name, f"{result['per_second']:,.0f}", f"{result['per_cpu_second']:,.0f}", f"{case.bar or '':}")
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
