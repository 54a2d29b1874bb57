"""What a run has come to: the stage x domain table, from the manifest alone.

Reads only files, so it works on a run that is still going, on another machine, after the fact. Imports no torch.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from nemo_cascade.cascade.gate import ADVANCE
from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest, StageRecord
from nemo_cascade.stages.metrics import MetricsLog


def domains(manifest: Manifest) -> list[str]:
    """All scored domains, in the order they were first scored."""
    return list(dict.fromkeys(domain for record in manifest.stages.values() for domain in record.scores))


def rows(manifest: Manifest) -> list[list[str]]:
    """One row of texts a stage: name, status, minutes, each domain's score with its change from the parent stage."""
    table = []
    for name, record in manifest.stages.items():
        label = f"{name} (side branch)" if record.teacher_only else name
        status = f"{status_text(record)}{steps_so_far(manifest, name)}"
        minutes = f"{record.seconds / 60:.1f}" if record.seconds is not None else ""
        parent = manifest.stages.get(record.parent) if record.parent else None
        table.append([label, status, minutes, *(cell(record, parent, domain) for domain in domains(manifest))])
    return table


def status_text(record: StageRecord) -> str:
    """ "done", or "done, rollback" where a gate did not let it pass."""
    passed = record.gate is None or record.gate["action"] == ADVANCE
    return record.status if passed else f"{record.status}, {record.gate['action']}"


def steps_so_far(manifest: Manifest, name: str) -> str:
    """ ", step 120" of a stage that has begun and is not done; else nothing."""
    if manifest.stages[name].status != RUNNING:
        return ""
    steps = MetricsLog(manifest.directory(name) / "metrics.jsonl").read()
    return f", step {steps[-1]['step']}" if steps else ""


def cell(record: StageRecord, parent: StageRecord | None, domain: str) -> str:
    """ "0.512 (+0.103)"; the change is left out where the parent has no score."""
    if domain not in record.scores:
        return "-"
    mean = record.scores[domain]["mean"]
    if parent is None or domain not in parent.scores:
        return f"{mean:.3f}"
    return f"{mean:.3f} ({mean - parent.scores[domain]['mean']:+.3f})"


def caption(manifest: Manifest) -> str:
    """How many prompts stand behind the numbers."""
    counts = {
        domain: record.scores[domain]["n"]
        for domain in domains(manifest)
        for record in manifest.stages.values()
        if domain in record.scores
    }
    told = ", ".join(f"{domain} {count}" for domain, count in counts.items())
    return (
        f"average reward on validation prompts ({told}), in brackets the change from the parent stage" if told else ""
    )


def print_scores(manifest: Manifest, console: Console) -> None:
    """The stage x domain table. Rather than cut figures off, its lines run on where a terminal is too narrow; a file or
    pipe gets it as wide as it is."""
    table = score_table(manifest)
    least, most = Console(width=10_000).measure(table)
    width = max(console.width, least) if console.is_terminal else most
    Console(file=console.file, width=width).print(table)


def score_table(manifest: Manifest) -> Table:
    """The stage x domain table for a terminal."""
    table = Table(title=str(manifest.run_dir), caption=caption(manifest), caption_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("min", justify="right", no_wrap=True)
    for domain in domains(manifest):
        table.add_column(domain, justify="right", min_width=len("(+0.000)"), overflow="fold")
    for row in rows(manifest):
        table.add_row(*row, style=None if row[1].startswith(DONE) else "dim")
    return table


def markdown(manifest: Manifest) -> str:
    """The same table as Markdown."""
    header = ["stage", "status", "min", *domains(manifest)]
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows(manifest)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{caption(manifest)}\n"


def write(run_dir: Path) -> list[Path]:
    """Writes `report/scores.md` and the page of the whole run, `report/index.html`; returns what it wrote."""
    from nemo_cascade.cascade import report_page

    manifest = Manifest.load(Path(run_dir))
    folder = Path(run_dir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "scores.md"
    table.write_text(markdown(manifest), encoding="utf-8")
    return [table, report_page.write(Path(run_dir))]
