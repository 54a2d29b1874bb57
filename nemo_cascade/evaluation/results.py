"""What came of a benchmark: its score with an interval, what was left out of it, and the paper's number beside; as a table, and as JSON.

Scores are in percent. A paper's number stands beside real rows only, with every setting that is not the paper's.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from nemo_cascade.data.files import write_atomically
from nemo_cascade.evaluation.benchmark import Benchmark, Sample, Settings
from nemo_cascade.evaluation.paper import FIGURES, Figure
from nemo_cascade.evaluation.replies import Reply
from nemo_cascade.evaluation.statistics import Cluster, Estimate, estimate, solved

FILE = "results.json"


@dataclass(frozen=True)
class Result:
    """samples: how many were to be had; of these without_reply nobody answered, unscored have no verdict (those included). truncated: the
    share of the replies that were cut. pass_at_k: where rewards are all or nothing and every prompt has k verdicts, else None."""

    benchmark: Benchmark
    rows: str
    model: str
    estimate: Estimate | None
    parts: dict[str, Estimate]
    prompts: int
    samples: int
    without_reply: int
    unscored: int
    truncated: float
    mean_tokens: float
    pass_at_k: float | None
    faults: dict[str, int]
    also: dict[str, float]
    figure: Figure | None
    differs: list[str]

    def as_json(self) -> dict:
        figure = None
        if self.figure is not None:
            figure = dataclasses.asdict(self.figure) | {"model": "Nemotron-Cascade-2", "settings that differ": self.differs}
        return {
            "benchmark": self.benchmark.name,
            "rows": self.rows,
            "model": self.model,
            "metric": self.benchmark.metric,
            **_told(self.estimate),
            "parts": {name: _told(part) for name, part in self.parts.items()},
            "pass_at_k": self.pass_at_k,
            "prompts": self.prompts,
            "samples": self.samples,
            "without_reply": self.without_reply,
            "unscored_share": self.unscored / self.samples,
            "truncated_share": self.truncated,
            "mean_tokens": self.mean_tokens,
            "faults": self.faults,
            "also": self.also,
            "paper": figure,
            "settings": dataclasses.asdict(self.benchmark.settings),
        }


def summary(
    benchmark: Benchmark,
    samples: list[Sample],
    replies: dict[str, Reply],
    verdicts: dict[str, dict],
    *,
    rows: str,
    model: str,
    stock: Settings,
    demo: bool,
) -> Result:
    """A benchmark's result. replies, verdicts: by the samples' keys, of those that have one. rows: where they are from. stock: the settings
    that the benchmark has by itself."""
    answered = [replies[sample.key] for sample in samples if sample.key in replies]
    given = [verdicts[sample.key] for sample in samples if sample.key in verdicts]
    good = {key: verdict for key, verdict in verdicts.items() if "fault" not in verdict}
    faults = [verdict["fault"] for verdict in given if "fault" in verdict]
    clusters, counts = _clusters(benchmark, samples, good)
    k, rewards = benchmark.settings.samples, {verdict["reward"] for verdict in good.values()}
    countable = bool(counts) and rewards <= {0.0, 1.0} and all(n == k for n, _ in counts)
    parts = {part: estimate([c for c in clusters if c.part == part]) for part in sorted({c.part for c in clusters} - {""})}
    return Result(
        benchmark=benchmark,
        rows=rows,
        model=model,
        estimate=estimate(clusters, benchmark.macro),
        parts=parts if len(parts) > 1 else {},
        prompts=len({sample.prompt for sample in samples}),
        samples=len(samples),
        without_reply=len(samples) - len(answered),
        unscored=len(samples) - sum(sample.key in good for sample in samples),
        truncated=sum(reply["finish"] == "length" for reply in answered) / max(len(answered), 1),
        mean_tokens=sum(reply["tokens"] for reply in answered) / max(len(answered), 1),
        pass_at_k=100 * solved(counts, k) if countable else None,
        faults={fault: faults.count(fault) for fault in sorted(set(faults))},
        also=benchmark.also([verdict for verdict in given if "fault" not in verdict]),
        figure=None if demo else FIGURES.get(benchmark.name),
        differs=_changed(stock, benchmark.settings),
    )


def _clusters(benchmark: Benchmark, samples: list[Sample], good: dict[str, dict]) -> tuple[list[Cluster], list[tuple[int, int]]]:
    """The prompts with a verdict, and of each how many of its samples have one and are right."""
    of_prompt: dict[str, list[dict]] = {}
    rows = {}
    for sample in samples:
        if sample.key in good:
            of_prompt.setdefault(sample.prompt, []).append(good[sample.key])
            rows[sample.prompt] = sample.row
    clusters, counts = [], []
    for prompt, verdicts in of_prompt.items():
        weights = [verdict.get("weight", 1) for verdict in verdicts]
        value = sum(weight * verdict["reward"] for weight, verdict in zip(weights, verdicts)) / sum(weights)
        part = str(rows[prompt].get(benchmark.subset) or "") if benchmark.subset else ""
        clusters.append(Cluster(value, sum(weights) / len(weights), part))
        counts.append((len(verdicts), sum(verdict["reward"] == 1.0 for verdict in verdicts)))
    return clusters, counts


def _changed(stock: Settings, used: Settings) -> list[str]:
    """The settings that are not as they should be, in words."""
    names = [field.name for field in dataclasses.fields(Settings) if field.name != "source"]
    return [f"{name} {getattr(used, name)}, not {getattr(stock, name)}" for name in names if getattr(used, name) != getattr(stock, name)]


def _told(value: Estimate | None) -> dict:
    names = ("score", "low", "high")
    return {name: None if value is None else 100 * getattr(value, name) for name in names}


def write(results: list[Result], folder: Path) -> Path:
    """results.json."""
    path = folder / FILE
    write_atomically(path, json.dumps([result.as_json() for result in results], indent=2) + "\n")
    return path


def table(results: list[Result]) -> Table:
    """A row a benchmark, and one for each of its parts."""
    shown = Table(title=results[0].model if results else None)
    for column in ("benchmark", "metric", "score", "95 % interval", "prompts", "samples", "cut", "unscored", "paper"):
        shown.add_column(column, justify="left" if column in ("benchmark", "metric", "paper") else "right", no_wrap=True)
    for result in results:
        name = result.benchmark.title + (" (demo rows)" if result.rows == "demo" else "")
        paper = "-" if result.figure is None else f"{result.figure.score:.1f}{'*' if result.differs else ''}"
        shares = f"{result.truncated:.1%}", f"{result.unscored / result.samples:.1%}"
        counts = f"{result.prompts:,}", f"{result.samples:,}"
        shown.add_row(name, result.benchmark.metric, *_columns(result.estimate), *counts, *shares, paper)
        for part, value in result.parts.items():
            known = result.figure.parts.get(part) if result.figure is not None else None
            shown.add_row(f"  {part}", "", *_columns(value), "", "", "", "", "" if known is None else f"{known:.1f}")
    return shown


def remarks(results: list[Result]) -> list[str]:
    """What has to be known beside the table, a line each."""
    lines = []
    for result in results:
        if result.figure is not None and (result.differs or result.figure.remark):
            told = [*([result.figure.remark] if result.figure.remark else []), *(f"here {one}" for one in result.differs)]
            mark = "* " if result.differs else ""
            lines.append(f"{mark}{result.benchmark.title}, the paper's {result.figure.where}: {'; '.join(told)}")
        if result.unscored:
            why = [f"{count} {fault}" for fault, count in result.faults.items()]
            why += [f"{result.without_reply} without a reply"] if result.without_reply else []
            left_out = f"{result.unscored} samples count in no score ({', '.join(why)})"
            lines.append(f"{result.benchmark.title}: {left_out}; the same command tries again")
    return lines


def _columns(value: Estimate | None) -> tuple[str, str]:
    if value is None:
        return "-", "-"
    return f"{100 * value.score:.1f}", f"{100 * value.low:.1f} to {100 * value.high:.1f}"
