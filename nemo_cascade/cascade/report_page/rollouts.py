"""Kept rollouts as pages that a browser loads one by one, and an index of all of them to choose from.

The first pages stand in the HTML file itself, so a small run is one file; others are scripts beside it, because a page that was
opened from a disk may load scripts and nothing else. Of more rollouts than asked for, every so many-th step is taken, whole.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemo_cascade.cascade.report_page.run_files import StageFiles, json_lines, text_of
from nemo_cascade.stages.traces import FOLDER

SIDE_FOLDER = "rollouts"
ROLLOUTS_OF_A_PAGE, CHARACTERS_OF_A_PAGE = 100, 600_000
INLINE_CHARACTERS = 1_500_000
# Of longer replies and prompts the report has both ends.
MOST_PIECES, MOST_CHARACTERS = 6_000, 40_000


@dataclass
class Rollouts:
    """index: columns, an entry a rollout; its stages and domains are numbers in `names`. firsts: the number of each page's
    first rollout. inline: pages as JSON, from page 0 on. total: how many are kept in the run; every: which steps of these are
    here; unreadable: how many lines could not be read."""

    index: dict[str, list] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    names: dict[str, list[str]] = field(default_factory=lambda: {"stage": [], "domain": []})
    firsts: list[int] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)
    total: int = 0
    every: int = 1
    unreadable: int = 0


COLUMNS = ("stage", "step", "domain", "reward", "advantage", "length", "cut")


def write_pages(stages: dict[str, StageFiles], folder: Path, most: int) -> Rollouts:
    """Writes the pages that do not stand in the HTML file to `folder/rollouts/page_N.js`; those of an older report go."""
    made = Rollouts()
    files = {name: trace_files(stage.directory / FOLDER) for name, stage in stages.items()}
    made.total = sum(text_of(path).count("\n") for paths in files.values() for path in paths)
    made.every = max(1, -(-made.total // max(1, most)))
    side = folder / SIDE_FOLDER
    for old in side.glob("page_*.js"):
        old.unlink()
    used = 0
    for number, page in enumerate(_pages(files, made)):
        if used + len(page) <= INLINE_CHARACTERS and len(made.inline) == number:
            made.inline.append(page)
            used += len(page)
        else:
            side.mkdir(parents=True, exist_ok=True)
            (side / f"page_{number}.js").write_text(f"reportPage({number},{page})\n", encoding="utf-8")
    return made


def trace_files(folder: Path) -> list[Path]:
    """The files of a stage in the order of its steps."""
    numbered = ((re.fullmatch(r"step_(\d+)\.jsonl", path.name), path) for path in folder.glob("step_*.jsonl"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _pages(files: dict[str, list[Path]], made: Rollouts) -> Iterator[str]:
    """JSON lists of rollouts; fills the index."""
    page, size, count = [], 0, 0
    for stage, trace in _traces(files, made):
        if page and (len(page) >= ROLLOUTS_OF_A_PAGE or size >= CHARACTERS_OF_A_PAGE):
            yield f"[{','.join(page)}]"
            page, size = [], 0
        if not page:
            made.firsts.append(count)
        text = safe_json(clipped(trace))
        page.append(text)
        size += len(text)
        count += 1
        _add_to_index(made, stage, trace)
    if page:
        yield f"[{','.join(page)}]"


def _traces(files: dict[str, list[Path]], made: Rollouts) -> Iterator[tuple[str, dict]]:
    for stage, paths in files.items():
        for place, path in enumerate(paths):
            if place % made.every == 0 or place == len(paths) - 1:
                traces, unreadable = json_lines(path)
                made.unreadable += unreadable
                yield from ((stage, trace) for trace in traces)


def _add_to_index(made: Rollouts, stage: str, trace: dict) -> None:
    values = {**trace, "stage": stage, "cut": int(trace.get("finish_reason") == "length")}
    for name, column in made.index.items():
        value = values.get(name)
        if name in made.names:
            names = made.names[name]
            if value not in names:
                names.append(value)
            value = names.index(value)
        column.append(round(value, 4) if isinstance(value, float) else value)


def clipped(trace: dict) -> dict:
    """The trace with both ends of what is too long to be shown whole; `left_out`: pieces between them."""
    trace = {key: value for key, value in trace.items() if key != "prompt_id"}
    pieces, half = trace.get("pieces") or [], MOST_PIECES // 2
    if len(pieces) > MOST_PIECES:
        trace["left_out"], trace["left_out_at"] = len(pieces) - MOST_PIECES, half
        for key in ("pieces", "logprobs", "gaps"):
            if key in trace:
                trace[key] = trace[key][:half] + trace[key][-half:]
    prompt = trace.get("prompt") or ""
    if len(prompt) > MOST_CHARACTERS:
        trace["prompt"] = f"{prompt[: MOST_CHARACTERS // 2]}\n[...]\n{prompt[-MOST_CHARACTERS // 2 :]}"
    return trace


def safe_json(value) -> str:
    """JSON that may stand inside a <script>: no tag can begin in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
