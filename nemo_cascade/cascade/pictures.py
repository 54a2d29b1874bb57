"""Pictures of a run: scores by stage and domain, rewards, lengths and divergences by step; from its files alone.

Uses matplotlib's object interface, which needs no display and leaves no global state behind.
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.cascade.report import cell, domains
from nemo_cascade.stages.metrics import MetricsLog

REWARD = "train/reward"
LENGTH = "train/mean_gen_tokens_per_sample"
# Teacher minus student on the student's own tokens: minus the reverse KL, in the mean.
TEACHER_GAP = "train/teacher_student_logprob_gap_mean"
KL_TO_START = "train/kl_penalty"
SMOOTHING_STEPS = 5


def plot_scores(manifest: Manifest) -> Path | None:
    """`report/scores.png`: validation scores as a heat map, a row a stage and a column a domain; None without scores."""
    scored = {name: record for name, record in manifest.stages.items() if record.scores}
    if not scored:
        return None
    columns = domains(manifest)
    matrix = [[record.scores.get(d, {"mean": float("nan")})["mean"] for d in columns] for record in scored.values()]
    figure = new_figure(2.2 + 1.9 * len(columns), 1.3 + 0.5 * len(scored))
    axis = figure.subplots()
    image = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(scored)), [f"{name}{' *' if r.teacher_only else ''}" for name, r in scored.items()])
    for row, record in enumerate(scored.values()):
        parent = manifest.stages.get(record.parent) if record.parent else None
        for column, domain in enumerate(columns):
            dark = matrix[row][column] < 0.6
            text = cell(record, parent, domain)
            axis.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    side = "; * only teaches" if any(record.teacher_only for record in scored.values()) else ""
    axis.set_title(f"Validation scores (change from the parent stage){side}", fontsize=10)
    figure.colorbar(image, ax=axis, label="average reward")
    return save(figure, manifest, "scores.png")


def plot_rewards(manifest: Manifest) -> Path | None:
    """`report/rewards.png`: a panel per stage with rewards, None when there is none.

    A line is the mean reward of a step's rollouts, per domain (thin) and averaged over the last five steps (thick); a
    dot is the validation score before (at 0) and after the stage.
    """
    panels = logs_with(manifest, REWARD)
    if not panels:
        return None
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = new_figure(5.6 * columns, 3.3 * lines + 0.9)
    axes = figure.subplots(lines, columns, squeeze=False)
    colours = {domain: f"C{i}" for i, domain in enumerate(all_domains(manifest, panels))}
    for axis, (name, log) in zip(axes.flat, panels.items()):
        draw_panel(axis, name, log, manifest, colours)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("average reward")
    figure.suptitle(f"Rewards by stage: {manifest.run_dir}")
    add_legend(figure, axes)
    return save(figure, manifest, "rewards.png")


def plot_lengths_and_kl(manifest: Manifest) -> Path | None:
    """`report/lengths_and_kl.png`: reply lengths of every stage that samples, and what holds or draws it: the reverse KL to the
    teachers, the KL to its own start. None when nothing was sampled."""
    sampled = logs_with(manifest, LENGTH)
    if not sampled:
        return None
    figure = new_figure(11.2, 3.8)
    lengths, divergences = figure.subplots(1, 2)
    for name, log in sampled.items():
        draw_line(lengths, log, LENGTH, name)
        draw_line(divergences, log, TEACHER_GAP, f"{name}: reverse KL to the teachers", sign=-1)
        draw_line(divergences, log, KL_TO_START, f"{name}: KL to its start")
    lengths.set_title("Reply length")
    lengths.set_ylabel("tokens a reply")
    divergences.set_title("Divergence")
    divergences.set_ylabel("nats a token")
    for axis in (lengths, divergences):
        axis.set_xlabel("optimizer step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    return save(figure, manifest, "lengths_and_kl.png")


# -------------------------------------------------------------------------------- parts


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, manifest: Manifest, name: str) -> Path:
    """Writes `report/<name>`."""
    path = manifest.run_dir / "report" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def logs_with(manifest: Manifest, metric: str) -> dict[str, list[dict]]:
    """Metrics of the stages that have this one."""
    logs = {name: MetricsLog(manifest.directory(name) / "metrics.jsonl").read() for name in manifest.stages}
    return {name: log for name, log in logs.items() if any(entry.get(metric) is not None for entry in log)}


def draw_line(axis, log: list[dict], metric: str, label: str, sign: int = 1) -> None:
    """A metric by step, smoothed, in front of its raw values; nothing where the log has none."""
    points = [(entry["step"], sign * entry[metric]) for entry in log if entry.get(metric) is not None]
    if points:
        steps, values = zip(*points)
        (line,) = axis.plot(steps, running_mean(values, SMOOTHING_STEPS), linewidth=1.8, label=label)
        axis.plot(steps, values, color=line.get_color(), linewidth=0.8, alpha=0.35)


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
    highest = max(entry[REWARD] for entry in log if entry.get(REWARD) is not None)
    # Verifiers give 0 to 1 in training and validation; a judge gives scores with terms in the one, shares of wins in the other.
    validation = axis.twinx() if highest > 1 else axis
    for domain in trained_domains(log):
        points = [(e["step"], e[f"train/{domain}/reward"]) for e in log if e.get(f"train/{domain}/reward") is not None]
        steps, values = zip(*points)
        axis.plot(steps, values, color=colours[domain], linewidth=0.8, alpha=0.35)
        axis.plot(steps, running_mean(values, SMOOTHING_STEPS), color=colours[domain], linewidth=1.8, label=domain)
        before = [(0, parent.scores[domain]["mean"])] if parent is not None and domain in parent.scores else []
        after = [(log[-1]["step"], record.scores[domain]["mean"])] if domain in record.scores else []
        if before or after:
            validation.plot(
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
    axis.set_ylim(-0.02, max(1.0, highest) * 1.02)
    if validation is not axis:
        validation.set_ylim(-0.02, 1.02)
        validation.set_ylabel("validation: share of wins")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def add_legend(figure, axes) -> None:
    """One legend below all panels: every domain once, then what lines and dots mean."""
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
