"""What a command means for a run directory: which stages run, which are finished, what has to make room for them.

Runs on rank 0 before any stage. Nothing is ever deleted: what a repeated stage replaces is moved to
`replaced/<time>/`. A finished stage whose config changed is refused, because the stages after it were made from
something else.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nemo_cascade.cascade import data_files, layout
from nemo_cascade.cascade.checks import AUTO
from nemo_cascade.cascade.config import BLOCKS, CascadeConfig, StageConfig
from nemo_cascade.cascade.manifest import DONE, FILE, PENDING, Manifest
from nemo_cascade.cascade.strict import did_you_mean, flatten
from nemo_cascade.data.files import write_atomically

CONFIG_FILE = "config.yaml"
PRETRAINED = "checkpointing.pretrained_checkpoint"

# Where a judge is and how it is reached. Which model it is decides what a stage computes.
ENDPOINT = ("base_url", "api_key_env", "concurrency", "timeout", "tries")
JUDGE_OF_REPLIES = re.compile(rf"env\.judges\.[^.]+\.({'|'.join(ENDPOINT)})")

# Keys that may change under a started stage: they alter where and how it computes or saves, not what it computes. A gate
# judges a stage afterwards, from its scores. Which of its checkpoints a stage hands on, and with which weights the first ones
# begin, are no such matter, though the keys are among these.
DECISIVE = ("checkpointing.metric_name", "checkpointing.higher_is_better", PRETRAINED)
HARMLESS = (
    "checkpointing.",
    "logger.",
    "sandbox.",
    "cluster.",
    "env.num_workers",
    "env.max_faults",
    "env.nemo_gym.",
    *(f"cascade.judge_endpoint.{name}" for name in ENDPOINT),
    "cascade.gate.",
    "grpo.dynamic_sampling_max_gen_batches",
    "policy.generation.max_batch_size",
    "policy.generation.vllm_",
    *(f"policy.megatron_cfg.{name}" for name in layout.KEYS),
)


class RunRefused(ValueError):
    """The command does not fit the run directory; one line a problem, with the remedy."""


@dataclass
class Plan:
    """Stages to run, in order, and what to tell the user about the others."""

    run: list[str]
    notes: list[str] = field(default_factory=list)


def make_plan(
    cascade: CascadeConfig,
    manifest: Manifest,
    only: str | None = None,
    from_stage: str | None = None,
    redo: str | None = None,
) -> Plan:
    """Decides, moves aside what is repeated and saves the manifest. Raises RunRefused before it touches anything."""
    check_names(cascade, {"--only": only, "--from-stage": from_stage, "--redo": redo})
    for name in cascade.order:
        manifest.add(name)
    manifest.stages = {name: manifest.stages[name] for name in (*cascade.order, *manifest.stages)}
    notes: list[str] = []
    repeated: list[str] = []
    if from_stage is not None or redo is not None:
        option = f"--from-stage {from_stage}" if redo is None else f"--redo {redo}"
        repeated = cascade.order[cascade.order.index(from_stage) :] if redo is None else [redo, *dependents(cascade, redo)]
        if manifest.redo == option and not any(changed_keys(cascade, manifest, name) for name in repeated):
            notes.append(f"{option} was started before and not finished: going on with it")
            repeated = []
        else:
            manifest.redo = option
    concerned = [name for name in cascade.order if name not in repeated]
    if only is not None:
        concerned = [only, *dependencies(cascade.stages[only])]
    check_unchanged(cascade, manifest, concerned)
    if only is not None:
        check_dependencies_done(cascade, manifest, only)
    leftovers = [name for name in concerned if manifest.stages[name].status == PENDING]
    notes += _move_aside(manifest, repeated, leftovers)
    chosen = [only] if only is not None else cascade.order
    notes += [f"{name} is done already" for name in chosen if manifest.stages[name].status == DONE]
    return Plan([name for name in chosen if manifest.stages[name].status != DONE], notes)


def dependencies(stage: StageConfig) -> list[str]:
    """The stages whose checkpoints a stage reads, but for the teachers that it will look for among those that are done."""
    parents = [stage.parent] if stage.parent is not None else []
    judges = [stage.judge] if stage.judge is not None else []
    taught = [teacher.stage for teacher in stage.teachers.values() if teacher.stage not in (None, AUTO)]
    return list(dict.fromkeys([*parents, *taught, *judges]))


def dependents(cascade: CascadeConfig, name: str) -> list[str]:
    """The stages whose weights another stage's went into, directly or through others: from it, taught or judged by it."""
    found = [name]
    for other in cascade.order[cascade.order.index(name) + 1 :]:
        if set(found).intersection(dependencies(cascade.stages[other])):
            found.append(other)
    return found[1:]


# -------------------------------------------------------------------------------- a stage's config.yaml


def stage_document(cascade: CascadeConfig, stage: StageConfig) -> dict:
    """The content of a stage's config.yaml: NeMo RL's blocks as they are, everything of ours under `cascade`."""
    values = dataclasses.asdict(stage)
    demo = dataclasses.asdict(cascade.demo_data) if cascade.demo_data is not None else None
    return {
        **{block: values[block] for block in BLOCKS},
        "cascade": {
            **{key: value for key, value in values.items() if key not in BLOCKS},
            "seed": cascade.seed,
            "validation": dataclasses.asdict(cascade.validation),
            "demo_data": demo,
        },
    }


def write_stage_config(cascade: CascadeConfig, stage: StageConfig, directory: Path) -> None:
    """Writes `<directory>/config.yaml`."""
    text = yaml.safe_dump(stage_document(cascade, stage), sort_keys=False, width=120)
    write_atomically(directory / CONFIG_FILE, text)


def config_hash(cascade: CascadeConfig, stage: StageConfig) -> str:
    """sha256 over the keys that decide what a stage computes."""
    text = json.dumps(_decisive(stage_document(cascade, stage)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def changed_keys(cascade: CascadeConfig, manifest: Manifest, name: str) -> list[str]:
    """ "key old -> new" for what differs from the config a started stage was run with; empty for one never started.

    A key that did not exist then, and has its default now, changes nothing: a run goes on after an upgrade.
    """
    stored_file = manifest.directory(name) / CONFIG_FILE
    if manifest.stages[name].status == PENDING or not stored_file.exists():
        return []
    stored = _decisive(yaml.safe_load(stored_file.read_text(encoding="utf-8")))
    now = _decisive(stage_document(cascade, cascade.stages[name]))
    stored = {key: value for key, value in DEFAULTS.items() if key in now and key not in stored} | stored
    return [
        f"{key} {_show(stored, key)} -> {_show(now, key)}"
        for key in dict.fromkeys((*stored, *now))
        if key not in stored or key not in now or stored[key] != now[key]
    ]


def _decisive(document: dict) -> dict:
    has_parent = document["cascade"]["parent"] is not None
    return {
        key: value
        for key, value in flatten(document).items()
        if not (has_parent and key.startswith(PRETRAINED)) and (key.startswith(DECISIVE) or not _harmless(key))
    }


def _harmless(key: str) -> bool:
    return key.startswith(HARMLESS) or JUDGE_OF_REPLIES.fullmatch(key) is not None


DEFAULTS = flatten(stage_document(CascadeConfig(), StageConfig()))


def _show(values: dict, key: str) -> str:
    return repr(values[key]) if key in values else "(absent)"


# -------------------------------------------------------------------------------- refusals


def check_names(cascade: CascadeConfig, options: dict[str, str | None]) -> None:
    """At most one of the options is given, and it names a stage."""
    given = {option: name for option, name in options.items() if name is not None}
    if len(given) > 1:
        raise RunRefused(f"{' and '.join(given)}: give one of them")
    for option, name in given.items():
        if name not in cascade.order:
            raise RunRefused(f"{option}: unknown stage {name}{did_you_mean(name, cascade.order)}")


def check_unchanged(cascade: CascadeConfig, manifest: Manifest, names: list[str]) -> None:
    """Started stages have the config and the rows they were started with, finished ones still have their checkpoint."""
    problems = data_files.problems(manifest, names)
    for name in names:
        record = manifest.stages[name]
        changes = changed_keys(cascade, manifest, name)
        if changes:
            state = "finished" if record.status == DONE else "begun"
            problems.append(
                f"stage {name} was {state} with another config: {', '.join(changes)}; put that back, or use another "
                f"cascade.run_dir, or repeat it and all later stages with --from-stage {name}"
            )
        elif record.status == DONE and not manifest.checkpoint(name).is_dir():
            problems.append(
                f"stage {name} is finished but its checkpoint {manifest.checkpoint(name)} is gone; put it back, or "
                f"repeat it and all later stages with --from-stage {name}"
            )
    if problems:
        raise RunRefused("\n".join(problems))


def check_dependencies_done(cascade: CascadeConfig, manifest: Manifest, only: str) -> None:
    """What a stage starts from, learns from or is judged by is there."""
    unfinished = [name for name in dependencies(cascade.stages[only]) if manifest.stages[name].status != DONE]
    if unfinished:
        raise RunRefused(
            f"--only {only}: it starts from, learns from or is judged by {', '.join(unfinished)}, not finished yet; run first"
        )


# -------------------------------------------------------------------------------- making room


def _move_aside(manifest: Manifest, repeated: list[str], leftovers: list[str]) -> list[str]:
    """Resets the repeated stages and moves their folders, and the leftovers', to `replaced/<time>`.

    The manifest is saved first: after a kill in between, the folder of a stage that is pending is a leftover and moves
    then.
    """
    moving = [name for name in (*repeated, *leftovers) if manifest.directory(name).exists()]
    aside = _fresh_folder(manifest.run_dir / "replaced") if moving else None
    if aside is not None and manifest.path.exists():
        shutil.copy2(manifest.path, aside / FILE)
    for name in repeated:
        manifest.reset(name)
    manifest.save()
    for name in moving:
        manifest.directory(name).rename(aside / manifest.directory(name).name)
    return [f"moved aside, not deleted: {', '.join(moving)} -> {aside}"] if moving else []


def _fresh_folder(parent: Path) -> Path:
    """A new folder named by the time."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise RunRefused(f"{parent}: no free name for {stem}; tidy this folder")
