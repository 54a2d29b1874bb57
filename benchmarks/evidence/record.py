"""A seed's evidence as one small JSON document: what every stage scored, prompt by prompt, and what it cost.

    {"format", "seed", "prompts": {domain: hash}, "versions", "stages": {name: {
        "kind", "parent", "teachers": {domain: stage}, "shape": [steps, prompts, replies],
        "rollouts", "tokens", "seconds": a number for each step, of this stage alone,
        "scores": {domain: scores}, "history": [{"step", "scores": {domain: scores}}], "metrics": {name: mean over steps}}}}

scores are those of every validation prompt, in their order: a string of 0s and 1s, or a list of numbers where one is neither.
tokens are sampled ones; seconds are those of training steps, without validation, checkpoints and the start of a stage.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.data.files import write_atomically
from nemo_cascade.stages.metrics import MetricsLog

FORMAT = 1
# `stages.validations.FILE`, whose import would bring megatron-core into a process that only waits.
HISTORY = "validations.json"
DOMAINS = ("instruction_following", "math", "mcqa")
# Of the mismatch between sampling and training: mean of exp |log ratio|, mean weight, and where a band is set the share of tokens outside.
METRICS = ("token_mult_prob_error", "sampling_importance_ratio", "is_oob_ratio")


class IncompleteError(ValueError):
    """A run in which not all stages are done."""


def collect(run_dir: Path) -> dict:
    """The document of a finished run. Raises IncompleteError naming what is not done."""
    manifest = Manifest.load(run_dir)
    open_ones = [name for name, stage in manifest.stages.items() if stage.status != DONE]
    if open_ones or not manifest.stages:
        raise IncompleteError(f"{run_dir}: not done yet: {', '.join(open_ones) or 'anything'}; run it again to go on")
    first = next(iter(manifest.stages))
    scores = json.loads((manifest.directory(first) / "validation.json").read_text())
    return {
        "format": FORMAT,
        "seed": config_of(manifest, first)["cascade"]["seed"],
        "prompts": {domain: scores[domain]["prompts"] for domain in DOMAINS},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "megatron-core")}},
        "stages": {name: stage_document(manifest, name) for name in manifest.stages},
    }


def stage_document(manifest: Manifest, name: str) -> dict:
    """What the document says of one stage."""
    record, directory, config = manifest.stages[name], manifest.directory(name), config_of(manifest, name)
    steps = MetricsLog(directory / "metrics.jsonl").read()
    replies = [step.get("train/num_replies", 0) for step in steps]
    history = directory / HISTORY
    kind = config["cascade"]["kind"]
    batch = [config["grpo"]["num_prompts_per_step"], config["grpo"]["num_generations_per_prompt"]] if kind == "rl" else []
    return {
        "kind": kind,
        "parent": record.parent,
        "teachers": record.teachers,
        "shape": [len(steps), *batch],
        "rollouts": [int(n) for n in replies],
        "tokens": [round(n * step.get("train/mean_gen_tokens_per_sample", 0)) for n, step in zip(replies, steps)],
        "seconds": [round(step["timing/train/total_step_time"], 3) for step in steps],
        "scores": packed(json.loads((directory / "validation.json").read_text())),
        "history": [
            {"step": entry["step"], "scores": packed(entry["scores"])}
            for entry in (json.loads(history.read_text()) if history.exists() else [])
        ],
        "metrics": {key: mean_of(steps, key) for key in METRICS if f"train/{key}" in steps[-1]},
    }


def mean_of(steps: list[dict], metric: str) -> float:
    """A metric's mean over the steps of a stage."""
    return round(float(np.mean([step[f"train/{metric}"] for step in steps])), 5)


def config_of(manifest: Manifest, name: str) -> dict:
    """A stage's own config.yaml."""
    return yaml.safe_load((manifest.directory(name) / "config.yaml").read_text())


# -------------------------------------------------------------------------------- the scores of prompts


def packed(scores: dict[str, dict]) -> dict[str, str | list[float]]:
    """domain -> scores as the document has them."""
    return {domain: pack(entry["per_prompt"]) for domain, entry in scores.items()}


def pack(values: list[float]) -> str | list[float]:
    """A string of 0s and 1s where there is nothing else."""
    if all(value in (0, 1) for value in values):
        return "".join(str(int(value)) for value in values)
    return [round(value, 4) for value in values]


def unpack(values: str | list[float]) -> np.ndarray:
    """[prompts] in float64."""
    return np.array([float(value) for value in values])


# -------------------------------------------------------------------------------- files


def write(document: dict, path: Path) -> None:
    """One stage a line, so that a difference of two files can be read."""
    head = {key: value for key, value in document.items() if key != "stages"}
    lines = [f'  {json.dumps(name)}: {json.dumps(stage, separators=(",", ":"))}' for name, stage in document["stages"].items()]
    text = json.dumps(head)[:-1] + ', "stages": {\n' + ",\n".join(lines) + "\n}}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def read_all(folder: Path) -> list[dict]:
    """The documents of a folder by seed. Raises ValueError for those that are of another experiment than the first."""
    documents = sorted((json.loads(path.read_text()) for path in folder.glob("seed_*.json")), key=lambda one: one["seed"])
    for other in documents[1:]:
        for what in ("format", "settings"):
            mine, theirs = (one["format"] if what == "format" else settings(one) for one in (documents[0], other))
            if mine != theirs:
                raise ValueError(
                    f"{folder}: {what} of seed {other['seed']} differ from those of seed {documents[0]['seed']}; keep the seeds "
                    "of one experiment in a folder of their own"
                )
    return documents


def settings(document: dict) -> dict:
    """What must be the same of all seeds: which stages, from where, how long, and how many prompts score them."""
    return {
        name: (stage["parent"], stage["shape"], {domain: len(values) for domain, values in stage["scores"].items()})
        for name, stage in document["stages"].items()
    }
