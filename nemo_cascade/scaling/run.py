"""Problems through a loop, one after another; what came of each is in results.json as soon as it is there."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nemo_cascade.data.files import write_atomically
from nemo_cascade.scaling.best_of_n import best_of_n
from nemo_cascade.scaling.config import ScaleConfig, settings_of
from nemo_cascade.scaling.icpc import icpc
from nemo_cascade.scaling.ioi import ioi
from nemo_cascade.scaling.journal import Journal
from nemo_cascade.scaling.refine import refine
from nemo_cascade.scaling.types import Grader, Proposer, digest
from nemo_cascade.scaling.work import Spent, Work

JOURNAL, RESULTS = "journal.jsonl", "results.json"
LOOPS = {"best_of_n": best_of_n, "refine": refine, "ioi": ioi, "icpc": icpc}


def run(
    method: str,
    problems: dict[str, dict],
    config: ScaleConfig,
    proposer: Proposer,
    grader: Grader,
    out: Path,
    console: Console | None = None,
) -> dict:
    """What results.json has: {"method", "settings", "problems": {name: what the loop gives, with "spent", "budget", "stopped"}, "total"}.

    console: where a bar is shown. Raises ScalingRefused.
    """
    settings = settings_of(config, method)
    journal = Journal(out / JOURNAL, settings)
    results: dict = {"method": method, "settings": settings, "problems": {}}
    try:
        with _bar(console, len(problems)) as shown:
            for name, problem in problems.items():
                work = Work(name, proposer, grader, config.budget, journal, identity=digest(problem))
                work.changed = lambda: shown(name, work.spent)
                found = LOOPS[method](problem, work, getattr(config, method))
                results["problems"][name] = {**found, **work.summary()}
                results["total"] = total(method, results["problems"])
                write_atomically(out / RESULTS, json.dumps(results, indent=1) + "\n")
                shown(name, work.spent, done=True)
    finally:
        journal.close()
    return results


def total(method: str, problems: dict[str, dict]) -> dict:
    """Sums over problems; a mean score where scores are no points."""
    found = list(problems.values())
    spent = {key: sum(one["spent"][key] for one in found) for key in ("generations", "tokens", "verdicts", "faults", "seconds")}
    scores = [one["score"] for one in found if one["score"] is not None]
    if method == "ioi":
        return {"score": sum(scores), "full": sum(one["full"] for one in found), **spent}
    if method == "icpc":
        penalty = sum(one["penalty"] for one in found if one["solved"])
        return {"solved": int(sum(scores)), "of": len(found), "penalty": penalty, **spent}
    return {"score": sum(scores) / len(scores) if scores else None, "of": len(found), **spent}


# Columns that are a loop's own: heading and what stands there.
COLUMNS: dict[str, dict[str, Callable[[dict], object]]] = {
    "best_of_n": {
        "chosen": lambda one: one["chosen"],
        "reward": lambda one: one["score"],
        "mean": lambda one: one["mean"],
        "best": lambda one: one["best"],
    },
    "refine": {"chosen": lambda one: one["chosen"], "score": lambda one: one["score"], "rounds": lambda one: len(one["rounds"])},
    "ioi": {
        "score": lambda one: f"{one['score']:g} of {one['full']:g}",
        "by subtask": lambda one: "  ".join(f"{name} {entry['points']:g}" for name, entry in one["subtasks"].items()),
        "submissions": lambda one: one["submissions"],
    },
    "icpc": {
        "solved": lambda one: "yes" if one["solved"] else "no",
        "submissions": lambda one: one["submissions"],
        "penalty": lambda one: one["penalty"],
    },
}


def table(results: dict) -> Table:
    """A line a problem, and the total."""
    columns = COLUMNS[results["method"]]
    drawn = Table("problem", *columns, "generations", "tokens", "seconds", "stopped by")
    for name, one in results["problems"].items():
        spent = one["spent"]
        costs = (f"{spent['generations']:,}", f"{spent['tokens']:,}", f"{spent['seconds']:,.0f}", one["stopped"] or "")
        drawn.add_row(name, *(_cell(column(one)) for column in columns.values()), *costs)
    return drawn


def told_total(results: dict) -> str:
    """The last line of a run."""
    all_of = results["total"]
    if results["method"] == "ioi":
        score = f"{all_of['score']:g} of {all_of['full']:g} points"
    elif results["method"] == "icpc":
        score = f"{all_of['solved']} of {all_of['of']} solved, penalty {all_of['penalty']:,.0f} minutes"
    else:
        score = f"{all_of['of']} problems, mean score {_cell(all_of['score'])}"
    return f"{score}; {all_of['generations']:,} generations, {all_of['tokens']:,} tokens"


def _cell(value) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _bar(console: Console | None, count: int) -> Iterator[Callable]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, console=console, disable=console is None or not console.is_terminal) as bar:
        task = bar.add_task("problems", total=count, shown="")

        def shown(name: str, spent: Spent, done: bool = False) -> None:
            bar.update(task, advance=int(done), shown=f"{name}: {spent.generations:,} generations, {spent.tokens:,} tokens")

        yield shown
