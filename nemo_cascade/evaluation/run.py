"""An evaluation from its rows to its results: what is missing is asked for, what was answered is scored, and both are kept.

A folder holds one evaluation, perhaps of several models: `BENCHMARK/replies_RANK.jsonl`, `BENCHMARK/verdicts_RANK.jsonl`, the judge's own
answers, `results.json` of the last call. A reply is asked for again where its row, a setting of its sampling or the model has changed; a
verdict is given again where the reply or the judge has.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nemo_cascade.cascade.lock import RunLock
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.hashes import json_hash
from nemo_cascade.environments.endpoint import Endpoint, EndpointConfig
from nemo_cascade.environments.workers import Verifiers
from nemo_cascade.evaluation import results
from nemo_cascade.evaluation.benchmark import Benchmark, Sample, file_of, rows_of, samples_of
from nemo_cascade.evaluation.journal import Journal, read
from nemo_cascade.evaluation.replies import Reply, Source
from nemo_cascade.evaluation.results import Result, summary
from nemo_cascade.evaluation.scoring import needs_judge, score


@dataclass(frozen=True)
class Asked:
    """A benchmark as it is run, its rows, and the benchmark as it is by itself (stock). data: the folder of the user's rows, None for
    the demo's."""

    benchmark: Benchmark
    rows: list[dict]
    stock: Benchmark
    data: Path | None

    @property
    def told(self) -> str:
        return "demo" if self.data is None else str(file_of(self.benchmark, self.data))


def asked(benchmarks: list[Benchmark], data: Path | None, limit: int | None, changed: dict, judge: bool) -> list[Asked]:
    """All benchmarks with their rows, before anybody is asked. changed: what `Benchmark.set` takes; judge: whether there is one. Raises
    RunRefused, a line a problem."""
    found, problems = [], []
    for stock in benchmarks:
        benchmark = stock.set(**changed)
        try:
            rows = rows_of(benchmark, data, limit)
        except ValueError as error:
            problems += str(error).splitlines()
            continue
        if not judge and any(map(needs_judge, rows)):
            problems.append(f"{benchmark.name}: a judge has to be asked about replies to it; name one with --judge URL --judge-model NAME")
        found.append(Asked(benchmark, rows, stock, data))
    if problems:
        raise RunRefused("\n".join(problems))
    return found


def evaluate(
    parts: list[Asked], source: Source, verifiers: Verifiers, out: Path, console: Console, judge: EndpointConfig | None = None
) -> list[Result]:
    """The results, in the order of parts; called on all ranks of a source. Raises RunRefused where another process is at work in `out`."""
    lock, found = RunLock(out), []
    source.share(lambda once: [lock.take() for _ in once], [None])  # one item is rank 0's
    try:
        for part in parts:
            found.append(_one(part, source, out, judge, verifiers, console))
            if source.rank == 0:
                results.write(found, out)
    finally:
        lock.release()
    return found


def _one(
    part: Asked, source: Source, out: Path, judge: EndpointConfig | None, verifiers: Verifiers, console: Console
) -> Result:
    benchmark, folder = part.benchmark, out / part.benchmark.name
    samples = samples_of(benchmark, part.rows, source.identity)
    known, scored = source.share(lambda once: [(read(folder, "replies"), read(folder, "verdicts")) for _ in once], [None])[0]
    with (
        Journal(folder, "replies", source.rank, known) as replies,
        Journal(folder, "verdicts", source.rank, scored) as verdicts,
        _bar(console, source.rank) as bar,
    ):
        have = _replies(samples, source, benchmark, replies, bar)
        # Only rows that a judge is asked about depend on which one it is.
        judged_by = json_hash([judge.model, judge.extra_body]) if judge is not None else ""
        name_of = {
            sample.key: json_hash([sample.key, have[sample.key]["response"], judged_by if needs_judge(sample.row) else ""])
            for sample in samples
            if sample.key in have
        }
        open_ones = [sample for sample in samples if sample.key in have and name_of[sample.key] not in verdicts.known]
        task = bar.add_task(f"{benchmark.title}: verdicts", total=len(name_of), completed=len(name_of) - len(open_ones))

        def verify(mine: list[Sample]) -> list[dict]:
            def keep(place: int, verdict: dict) -> None:
                bar.advance(task, source.ranks)
                if "fault" not in verdict:  # one that failed is tried again
                    verdicts.put(name_of[mine[place].key], verdict, prompt=mine[place].prompt[:12], sample=mine[place].number)

            endpoint = Endpoint(judge, folder / f"judge_{source.rank}.sqlite") if judge is not None else None
            return score([(sample.row, have[sample.key]["response"]) for sample in mine], verifiers, endpoint, keep)

        new = dict(zip((sample.key for sample in open_ones), source.share(verify, open_ones)))
    last = {key: new[key] if key in new else verdicts.known[name] for key, name in name_of.items()}
    return summary(
        benchmark, samples, have, last, rows=part.told, model=source.name, stock=part.stock.settings, demo=part.data is None
    )


def _replies(samples: list[Sample], source: Source, benchmark: Benchmark, journal: Journal, bar: Progress) -> dict[str, Reply]:
    """key -> reply; those that are not there yet are asked for, each kept as soon as it comes."""
    missing = [sample for sample in samples if sample.key not in journal.known]
    task = bar.add_task(f"{benchmark.title}: replies", total=len(samples), completed=len(samples) - len(missing))

    def heard(sample: Sample, reply: Reply) -> None:
        journal.put(sample.key, reply, prompt=sample.prompt[:12], sample=sample.number)
        bar.advance(task, source.ranks)

    before = {sample.key: journal.known[sample.key] for sample in samples if sample.key in journal.known}
    return before | (source.answer(missing, benchmark.settings, heard) if missing else {})


def _bar(console: Console, rank: int) -> Progress:
    """Shown on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=rank != 0 or not console.is_terminal)
