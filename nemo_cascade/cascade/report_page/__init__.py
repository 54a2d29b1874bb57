"""`report/index.html`: everything about a run on one page that opens from a disk, with no server and no network.

Written from the files of the run alone (no torch), so also of one that is still going or was killed. What the page says without
JavaScript is rendered here; curves and rollouts are data in it that its scripts draw. Text that a model wrote is only ever data.
"""

import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from nemo_cascade.cascade.manifest import RUNNING
from nemo_cascade.cascade.report_page import curves, graph, rollouts, views
from nemo_cascade.cascade.report_page.run_files import Run, read_run
from nemo_cascade.data.files import write_atomically

MOST_ROLLOUTS = 100_000
STYLE, SCRIPTS = "page.css", ("tip.js", "charts.js", "curves.js", "rollouts.js", "replies.js", "page.js")


def write(run_dir: Path, most_rollouts: int = MOST_ROLLOUTS) -> Path:
    """Writes the page of a run, and pages of rollouts that are too many for it beside it; returns its path.

    Raises ManifestError for a damaged manifest.
    """
    run, folder = read_run(Path(run_dir)), Path(run_dir) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    kept = rollouts.write_pages(run.stages, folder, most_rollouts)
    path = folder / "index.html"
    write_atomically(path, rendered(run, kept))
    return path


def rendered(run: Run, kept: rollouts.Rollouts) -> str:
    """The page."""
    loader = PackageLoader(__name__, "assets")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    filters = (signed, figure, duration, amount, breakable, curves.colour)
    environment.filters |= {function.__name__: function for function in filters}
    scores, drawn = views.score_matrix(run), {name: stage for name, stage in run.stages.items() if stage.log}
    running = [name for name, stage in drawn.items() if stage.record.status == RUNNING]
    problems = [*run.problems]
    if kept.unreadable:
        problems.append(f"{kept.unreadable} kept rollouts could not be read and are left out")
    return environment.get_template("page.html.j2").render(
        title=run.manifest.run_dir.resolve().name,
        run_dir=str(run.manifest.run_dir.resolve()),
        written=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        problems=problems,
        stages=run.stages,
        glance=views.glance(run),
        graphs={"low": graph.draw(run.manifest), "tall": graph.draw(run.manifest, graph.TALL_ROW, graph.NARROW_LANE)},
        row_height=graph.ROW,
        tall_row_height=graph.TALL_ROW,
        states={name: views.state(stage) for name, stage in run.stages.items()},
        roles={name: views.side_role(run, name) for name in run.stages},
        longest=max((stage.record.seconds or 0 for stage in run.stages.values()), default=0) or 1,
        last_signs={name: views.last_sign(stage) for name, stage in run.stages.items()},
        domains=views.domains(run.manifest),
        prompts=views.prompts(run.manifest),
        scores=scores,
        verdicts=views.verdicts(run),
        actions=views.VERDICTS,
        teachers=views.teacher_rows(run),
        spent={name: views.spent(stage, scores.get(name, {})) for name, stage in run.stages.items()},
        facts={name: views.facts(stage) for name, stage in run.stages.items()},
        curves={name: Markup(rollouts.safe_json(curves.panels(stage.log))) for name, stage in drawn.items()},
        shown_first=[*drawn, *running][-1] if drawn else None,
        kept=kept,
        index=Markup(rollouts.safe_json(kept.packed)),
        inline=[Markup(page) for page in kept.inline],
        css=Markup(loader.get_source(environment, STYLE)[0]),
        scripts=Markup("\n".join(loader.get_source(environment, name)[0] for name in SCRIPTS)),
    )


def breakable(name: str) -> Markup:
    """A name that a narrow column may break after its underscores."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def signed(value: float | None) -> str:
    """ "+0.012"; a dash where there is none."""
    return f"{value:+.3f}" if value is not None else "–"


def figure(value: float | None) -> str:
    """ "0.512"; a dash where there is none."""
    return f"{value:.3f}" if value is not None else "–"


def duration(seconds: float | None) -> str:
    """ "4.2 min" or what fits; a dash where it is not known."""
    if seconds is None:
        return "–"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def amount(value: float | None) -> str:
    """ "12,300" or "4.5 M"; a dash where it is not known."""
    if value is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:,.0f}"
