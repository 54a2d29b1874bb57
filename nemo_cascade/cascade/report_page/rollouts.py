"""Kept rollouts as pages that a browser loads one by one, and an index of all of them to choose from.

Those of a small run stand in the HTML file itself. Of a larger one only the first do, as a browser reads a file to its end before
it has opened it; others are scripts beside it, because a page that was opened from a disk may load scripts and nothing else. Of
more rollouts than asked for, every so many-th step is taken, whole.
"""

import json
import math
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from nemo_cascade.cascade.report_page.run_files import StageFiles, json_lines, text_of
from nemo_cascade.stages.traces import FOLDER

SIDE_FOLDER = "rollouts"
ROLLOUTS_OF_A_PAGE, CHARACTERS_OF_A_PAGE = 100, 600_000
# All that a file holds of a small run, and what it holds of a larger one.
INLINE_CHARACTERS, FIRST_CHARACTERS = 1_500_000, 150_000
# Of longer replies and prompts the report has both ends.
MOST_PIECES, MOST_CHARACTERS = 6_000, 40_000


@dataclass
class Rollouts:
    """index: columns, an entry a rollout. firsts: the number of each page's first rollout. inline: pages as JSON, from page 0
    on. total: how many are kept in the run; every: which steps of these are here; unreadable: how many lines could not be
    read."""

    index: dict[str, list] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    firsts: list[int] = field(default_factory=list)
    inline: list[str] = field(default_factory=list)
    total: int = 0
    every: int = 1
    unreadable: int = 0

    @property
    def count(self) -> int:
        """How many are here."""
        return len(self.index["stage"])

    def names(self, column: str) -> list[str | None]:
        """The distinct values of a column in the order in which they are met."""
        return list(dict.fromkeys(self.index[column]))

    @property
    def packed(self) -> dict:
        """What the page knows of all rollouts before it loads any: {columns: {name: packed column}, firsts}."""
        return {"columns": {name: packed(column, name in NAMES) for name, column in self.index.items()}, "firsts": self.firsts}


NAMES, NUMBERS = ("stage", "domain"), ("step", "reward", "advantage", "length", "cut")
COLUMNS = (*NAMES, *NUMBERS)
DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase + "-_"


def packed(column: list, as_met: bool = False) -> dict:
    """A column as {values, width, codes}: the distinct values, rising with None last or in the order in which they are met, and
    which of them each entry is, as a number of `width` digits of base 64. A tenth of JSON's size where values repeat, read
    without making an object an entry, and filtered and sorted by these numbers alone."""
    values = list(dict.fromkeys(column))
    if not as_met:
        values.sort(key=lambda value: (value is None, value or 0))
    width = 1
    while 64**width < len(values):
        width += 1
    digits = {v: "".join(DIGITS[n >> 6 * place & 63] for place in range(width)) for n, v in enumerate(values)}
    return {"values": values, "width": width, "codes": "".join(digits[value] for value in column)}


def write_pages(stages: dict[str, StageFiles], folder: Path, most: int) -> Rollouts:
    """Writes the pages that do not stand in the HTML file to `folder/rollouts/page_N.js`; those of an older report go."""
    made = Rollouts()
    files = {name: trace_files(stage.directory / FOLDER) for name, stage in stages.items()}
    made.total = sum(text_of(path).count("\n") for paths in files.values() for path in paths)
    made.every = max(1, -(-made.total // max(1, most)))
    side = folder / SIDE_FOLDER
    for old in side.glob("page_*.js"):
        old.unlink()
    used, pages = 0, _pages(files, made)
    for page in pages:
        used += len(page)
        if used > INLINE_CHARACTERS:
            _write_beside(side, chain(made.inline, [page], pages), made)
            break
        made.inline.append(page)
    return made


def _write_beside(side: Path, pages: Iterable[str], made: Rollouts) -> None:
    """Keeps the first pages inline and writes the others to `side`."""
    inline, used = [], 0
    side.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        used += len(page)
        if number == 0 or used <= FIRST_CHARACTERS:
            inline.append(page)
        else:
            (side / f"page_{number}.js").write_text(f"reportPage({number},{page})\n", encoding="utf-8")
    made.inline = inline


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
    domain = trace.get("domain")
    values = {**trace, "stage": stage, "domain": domain if domain is None else str(domain)}
    values["cut"] = int(trace.get("finish_reason") == "length")
    for name, column in made.index.items():
        value = values.get(name)
        if name in NUMBERS:
            number = isinstance(value, (int, float)) and math.isfinite(value)
            value = round(value, 4) if number else None
        column.append(value)


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
    """JSON that may stand inside a <script>: no tag can begin in it. What is no finite number is null, as JSON has none."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
