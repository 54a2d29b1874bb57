"""What a run has come to: the stage x domain table and the reward curves, from the manifest and `metrics.jsonl` alone.

Reads only files, so it works on a run that is still going, on another machine, after the fact. Imports no torch.
"""

from pathlib import Path

from rich.table import Table

from nemo_cascade.cascade.gate import ADVANCE
from nemo_cascade.cascade.manifest import DONE, Manifest, StageRecord
from nemo_cascade.stages.metrics import MetricsLog


def domains(manifest: Manifest) -> list[str]:
    """All scored domains, in the order they were first scored."""
    return list(dict.fromkeys(domain for record in manifest.stages.values() for domain in record.scores))


def rows(manifest: Manifest) -> list[list[str]]:
    """One row of texts a stage: name, status, minutes, each domain's score with its change from the parent stage."""
    table = []
    for name, record in manifest.stages.items():
        label = f"{name} (side branch)" if record.teacher_only else name
        minutes = f"{record.seconds / 60:.1f}" if record.seconds is not None else ""
        parent = manifest.stages.get(record.parent) if record.parent else None
        table.append([label, status_text(record), minutes, *(cell(record, parent, domain) for domain in domains(manifest))])
    return table


def status_text(record: StageRecord) -> str:
    """ "done", or "done, rollback" where a gate did not let it pass."""
    passed = record.gate is None or record.gate["action"] == ADVANCE
    return record.status if passed else f"{record.status}, {record.gate['action']}"


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


def score_table(manifest: Manifest) -> Table:
    """The stage x domain table for a terminal."""
    table = Table(title=str(manifest.run_dir), caption=caption(manifest), caption_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("status")
    table.add_column("min", justify="right")
    for domain in domains(manifest):
        table.add_column(domain, justify="right")
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
    """Writes `report/scores.md` and, when a stage has rewards, `report/rewards.png`; returns what it wrote."""
    manifest = Manifest.load(Path(run_dir))
    folder = Path(run_dir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "scores.md"
    table.write_text(markdown(manifest), encoding="utf-8")
    curves = plot_rewards(Path(run_dir))
    return [table, curves] if curves is not None else [table]


# -------------------------------------------------------------------------------- curves

REWARD = "train/reward"
SMOOTHING_STEPS = 5


def plot_rewards(run_dir: Path) -> Path | None:
    """`report/rewards.png`: a panel per stage with rewards, None when there is none.

    A line is the mean reward of a step's rollouts, per domain (thin) and averaged over the last five steps (thick); a
    dot is the validation score before (at 0) and after the stage.
    """
    manifest = Manifest.load(Path(run_dir))
    entries = {name: MetricsLog(manifest.directory(name) / "metrics.jsonl").read() for name in manifest.stages}
    panels = {name: log for name, log in entries.items() if any(REWARD in entry for entry in log)}
    if not panels:
        return None
    # The object interface of matplotlib needs no display and leaves no global state behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.6 * columns, 3.3 * lines + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    colours = {domain: f"C{i}" for i, domain in enumerate(all_domains(manifest, panels))}
    for axis, (name, log) in zip(axes.flat, panels.items()):
        draw_panel(axis, name, log, manifest, colours)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("average reward")
    figure.suptitle(f"Rewards by stage: {run_dir}")
    add_legend(figure, axes)
    path = Path(run_dir) / "report" / "rewards.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def all_domains(manifest: Manifest, panels: dict[str, list[dict]]) -> list[str]:
    """Scored domains and those only trained on, so that a domain has one colour in all panels."""
    return list(dict.fromkeys([*domains(manifest), *(d for log in panels.values() for d in trained_domains(log))]))


def trained_domains(log: list[dict]) -> list[str]:
    """Domains with a reward of their own in a stage's metrics (`train/<domain>/reward`)."""
    names = (key.split("/") for entry in log for key in entry)
    return list(
        dict.fromkeys(name[1] for name in names if len(name) == 3 and name[0] == "train" and name[2] == "reward")
    )


def draw_panel(axis, name: str, log: list[dict], manifest: Manifest, colours: dict[str, str]) -> None:
    """One stage: rewards in training by step, validation before and after."""
    record = manifest.stages[name]
    parent = manifest.stages.get(record.parent) if record.parent else None
    for domain in trained_domains(log):
        points = [(e["step"], e[f"train/{domain}/reward"]) for e in log if e.get(f"train/{domain}/reward") is not None]
        steps, values = zip(*points)
        axis.plot(steps, values, color=colours[domain], linewidth=0.8, alpha=0.35)
        axis.plot(steps, running_mean(values, SMOOTHING_STEPS), color=colours[domain], linewidth=1.8, label=domain)
        before = [(0, parent.scores[domain]["mean"])] if parent is not None and domain in parent.scores else []
        after = [(log[-1]["step"], record.scores[domain]["mean"])] if domain in record.scores else []
        if before or after:
            axis.plot(
                *zip(*before, *after), "o", color=colours[domain], markeredgecolor="black", markersize=6, zorder=3
            )
    if len(trained_domains(log)) != 1:
        steps, values = zip(*((e["step"], e[REWARD]) for e in log if e.get(REWARD) is not None))
        axis.plot(
            steps,
            running_mean(values, SMOOTHING_STEPS),
            color="black",
            linestyle="--",
            linewidth=1.2,
            label="all domains",
        )
    start = f" from {record.parent}" if record.parent else ""
    axis.set_title(f"{name}{start}{' (side branch)' if record.teacher_only else ''}")
    axis.set_xlabel("optimizer step")
    axis.set_ylim(-0.02, 1.02)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def add_legend(figure, axes) -> None:
    """One legend below all panels: every domain once, then what lines and dots mean."""
    from matplotlib.lines import Line2D

    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}
    handles["one step's rollouts"] = Line2D([], [], color="0.6", linewidth=0.8)
    handles[f"mean of {SMOOTHING_STEPS} steps"] = Line2D([], [], color="0.3", linewidth=1.8)
    handles["validation before and after"] = Line2D(
        [], [], color="white", marker="o", markeredgecolor="black", linestyle="none"
    )
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, fontsize="small", frameon=False)


def running_mean(values, window: int) -> list[float]:
    """Mean over the last `window` values, fewer at the beginning."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / (i + 1 - max(0, i + 1 - window)) for i in range(len(values))]
