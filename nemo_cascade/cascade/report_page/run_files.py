"""What a run directory holds, read so that nothing of it has to be whole: a run may go on meanwhile, or it was killed anywhere.

A file that is missing is empty; what cannot be read is left out and said (`problems`). Only a damaged manifest is refused.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nemo_cascade.cascade.manifest import Manifest, StageRecord


@dataclass
class StageFiles:
    """One stage: its record, its config.yaml, an entry a step of its metrics."""

    name: str
    directory: Path
    record: StageRecord
    config: dict = field(default_factory=dict)
    config_text: str = ""
    log: list[dict] = field(default_factory=list)

    @property
    def trained(self) -> list[str]:
        """The domains it trains on."""
        return list(setting(self.config, "data.train", {}))

    @property
    def kind(self) -> str:
        """The loop, sft or rl; with teachers it is called opd, on-policy distillation."""
        distils = setting(self.config, "grpo.adv_estimator.name", "") == "opd"
        kind = setting(self.config, "cascade.kind", "")
        return "opd" if kind == "rl" and distils else kind

    @property
    def max_num_steps(self) -> int | None:
        """Steps that the config asks for."""
        return setting(self.config, f"{'sft' if self.kind == 'sft' else 'grpo'}.max_num_steps", None)


@dataclass
class Run:
    """All stages of a run by name, in their order."""

    manifest: Manifest
    stages: dict[str, StageFiles]
    problems: list[str]


def read_run(run_dir: Path) -> Run:
    """The run at run_dir. Raises ManifestError for a damaged manifest."""
    manifest, problems = Manifest.load(Path(run_dir)), []
    stages = {}
    for name, record in manifest.stages.items():
        stage = stages[name] = StageFiles(name, manifest.directory(name), record)
        stage.config_text = text_of(stage.directory / "config.yaml")
        try:
            loaded = yaml.safe_load(stage.config_text)
            stage.config = loaded if isinstance(loaded, dict) else {}
        except yaml.YAMLError:
            problems.append(f"{stage.directory / 'config.yaml'}: not YAML; it is shown as it is")
        entries, unreadable = json_lines(stage.directory / "metrics.jsonl")
        by_step = {entry["step"]: entry for entry in entries if isinstance(entry.get("step"), int)}
        stage.log = [by_step[step] for step in sorted(by_step)]
        if unreadable:
            problems.append(f"{stage.directory / 'metrics.jsonl'}: {unreadable} unreadable lines are left out")
    return Run(manifest, stages, problems)


def json_lines(path: Path) -> tuple[list[dict], int]:
    """(the objects of a JSONL file, how many lines are none). A last line without its end is not counted: it is being written,
    or a kill cut it."""
    *lines, last = text_of(path).split("\n")
    objects, unreadable = [], 0
    for place, line in enumerate([*lines, last]):
        try:
            value = json.loads(line)
        except ValueError:
            unreadable += bool(line.strip()) and place < len(lines)
            continue
        if isinstance(value, dict):
            objects.append(value)
        else:
            unreadable += place < len(lines)
    return objects, unreadable


def text_of(path: Path) -> str:
    """A file's text, "" where there is none; bytes that are no UTF-8 become question marks."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def setting(config: dict, key: str, default):
    """The value at a dotted key, `default` where there is none."""
    value = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return default if value is None else value
