"""What a benchmark is: rows, how a model is asked about them, and what is told of its replies."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_cascade import environments
from nemo_cascade.data.hashes import json_hash
from nemo_cascade.data.rows import DataError, load_rows, messages_of, prompt_id

# For tasks without tools [Nemotron-Cascade 2, appendix on templates]; part of what the model was trained with.
NO_TOOLS = "You are a helpful and harmless assistant.\n\nYou are not allowed to use any tools."
# Prompts of a demo set.
DEMO_PROMPTS = 8


@dataclass(frozen=True)
class Settings:
    """How replies are sampled. source: where it stands.

    samples: replies to a prompt. max_tokens: of a reply, where the model may speak more than once (turns) of each turn. thinking: whether
    it begins with a thought, unless a row says otherwise (`enable_thinking`). system: for rows without a system message.
    """

    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    source: str
    thinking: bool = True
    system: str | None = None
    turns: int = 1

    def of_a_sample(self) -> dict:
        """What a single reply depends on, besides its row."""
        return {name: getattr(self, name) for name in ("temperature", "top_p", "max_tokens", "turns")}


def as_it_is(row: dict) -> dict:
    """A row that needs nothing more."""
    return row


def nothing_else(verdicts: list[dict]) -> dict[str, float]:
    """Where a score says all."""
    return {}


@dataclass(frozen=True)
class Benchmark:
    """rows: in words, what a line of the user's file is. environments: those that may score it. demo(n): rows of our own, where the real
    ones cannot be shipped. prepare: what is done to every row.

    subset: the key of a row by whose values scores are told apart, too; with macro the score is the mean over these. also: what else
    its verdicts tell, by names.
    """

    name: str
    title: str
    rows: str
    environments: tuple[str, ...]
    settings: Settings
    demo: Callable[[int], list[dict]]
    prepare: Callable[[dict], dict] = as_it_is
    subset: str | None = None
    macro: bool = False
    also: Callable[[list[dict]], dict[str, float]] = nothing_else

    @property
    def metric(self) -> str:
        return f"avg@{self.settings.samples}" if self.settings.samples > 1 else "pass@1"

    def set(self, **changed) -> "Benchmark":
        """The same with other settings; those that are None stay."""
        changed = {key: value for key, value in changed.items() if value is not None}
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **changed))


@dataclass(frozen=True)
class Sample:
    """One reply to be had: the number-th to a row. key: the hash of all that it depends on."""

    row: dict
    prompt: str
    number: int
    key: str


def file_of(benchmark: Benchmark, folder: Path) -> Path:
    """Where the user's rows of a benchmark are."""
    return Path(folder) / f"{benchmark.name}.jsonl"


def rows_of(benchmark: Benchmark, folder: Path | None, limit: int | None = None) -> list[dict]:
    """The rows as they are asked, the first `limit` of them; the demo's without a folder. Raises DataError naming file and row."""
    if folder is None:
        rows = [prepared(benchmark, row) for row in benchmark.demo(min(limit or DEMO_PROMPTS, DEMO_PROMPTS))]
        if wrong := [problem for row in rows if (problem := environments.row_problem(row))]:
            raise DataError(f"the demo rows of {benchmark.name}: {wrong[0]}")
        return rows
    path = file_of(benchmark, folder)
    if not path.is_file():
        raise DataError(f"{path}: no such file; it has {benchmark.rows}, one JSON object a line, or leave --data out for a demo set")

    def problems(rows: list[dict]) -> list[str | None]:
        return [environments.row_problem(prepared(benchmark, row)) for row in rows]

    rows, _ = load_rows(path, "rl", environments=benchmark.environments, unverifiable=problems)
    rows = {prompt_id(row): row for row in (prepared(benchmark, row) for row in rows)}
    return list(rows.values())[:limit]


def prepared(benchmark: Benchmark, row: dict) -> dict:
    """A row with all that its prompt depends on. Equal rows are one prompt."""
    settings, row = benchmark.settings, environments.repaired(benchmark.prepare(row))
    messages = messages_of(row)
    system = [] if settings.system is None or messages[0]["role"] == "system" else [{"role": "system", "content": settings.system}]
    params = {**(row.get("responses_create_params") or {}), "input": [*system, *messages]}
    return {**row, "responses_create_params": params, "enable_thinking": row.get("enable_thinking", settings.thinking)}


def samples_of(benchmark: Benchmark, rows: list[dict], model: str) -> list[Sample]:
    """All samples of a benchmark, of a model by the hash of what it is; samples of a row one after the other."""
    settings = json_hash(benchmark.settings.of_a_sample())
    return [
        Sample(row, name, number, json_hash([benchmark.name, name, number, settings, model]))
        for row, name in ((row, prompt_id(row)) for row in rows)
        for number in range(benchmark.settings.samples)
    ]
