"""What must hold between the stages of a cascade: what starts from what, who teaches whom, which gate compares what.

As in checks.py every function yields problems as lines "key: what is wrong; what to do".
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade.cascade.data_checks import gate_limit_problems
from nemo_cascade.cascade.strict import did_you_mean, is_missing
from nemo_cascade.data.tokenizer import find_tokenizer
from nemo_cascade.engine import pretrained

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import CascadeConfig, Source, StageConfig

# What to do about a stage that does not run, besides running it.
INSTEAD = {
    "a parent": "set parent to null and checkpointing.pretrained_checkpoint.path to where {stage} begins (docs/start.md)",
    "a teacher": "name a checkpoint, {{path: <folder>}} (docs/teachers.md)",
}
# The stage that `teachers.<domain>` names where the best is to be found when the student begins.
AUTO = "auto"


def graph_problems(cascade: "CascadeConfig", stage: "StageConfig", source: "Source") -> Iterator[str]:
    """A parent is a stage of the main line that runs before."""
    key = source.own(stage.name, "parent")
    if stage.parent is None:
        return
    yield from _earlier(cascade, stage, stage.parent, key, source, "a parent")
    parent = cascade.stages.get(stage.parent)
    if parent is not None and parent.teacher_only and not stage.teacher_only:
        yield (
            f"{key}: {parent.name} is teacher_only, so nothing on the main line may start from it; choose another "
            f"parent or drop cascade.stages.{parent.name}.teacher_only"
        )


def _earlier(cascade: "CascadeConfig", stage: "StageConfig", other: str, key: str, source: "Source", role: str) -> Iterator[str]:
    """Whether stage `other` runs before `stage`; role: a parent or a teacher."""
    if other == stage.name:
        yield f"{key}: {other} is the stage itself; {role} must be another stage, earlier in cascade.order"
    elif other not in cascade.order and other in source.overrides:
        yield f"{key}: {other} is left out of cascade.order; put it before {stage.name}, or {INSTEAD[role].format(stage=stage.name)}"
    elif other not in cascade.order:
        earlier = cascade.order[: cascade.order.index(stage.name)]
        yield f"{key}: unknown stage {other}{did_you_mean(other, earlier)}"
    elif cascade.order.index(other) > cascade.order.index(stage.name):
        yield f"{key}: {other} runs after {stage.name}; {role} must come earlier, change cascade.order"


def teacher_problems(cascade: "CascadeConfig", stage: "StageConfig", source: "Source") -> Iterator[str]:
    """Teachers belong to distillation, one for every domain trained on, and are not the student's own start."""
    key = source.own(stage.name, "teachers")
    if not stage.distils:
        if stage.teachers:
            yield f"{key}: only a stage of kind rl with grpo.adv_estimator.name=opd has teachers; set that or drop them"
        return
    domains = list(stage.data.train)
    for domain in domains:
        if domain not in stage.teachers:
            yield f"{key}.{domain}: no teacher for a domain that is trained on; add {domain}: <stage>"
    for domain, teacher in stage.teachers.items():
        if domain not in domains:
            yield f"{key}.{domain}: not a domain of this stage's data.train{did_you_mean(domain, domains)}"
        if is_missing(teacher.stage) or is_missing(teacher.path):
            continue
        if (teacher.stage is None) == (teacher.path is None):
            yield f"{key}.{domain}: name a stage (or {AUTO}) or a path, and not both"
            continue
        if teacher.path is None and teacher.tokenizer is not None:
            yield f"{key}.{domain}.tokenizer: a stage of this run has the run's own; remove it"
        if teacher.path is not None:
            continue
        if teacher.stage == AUTO:
            scored = list(cascade.scored(stage.name)) if cascade.validation.num_prompts > 0 else []
            if domain not in scored:
                yield f"{key}.{domain}: {AUTO} needs scores, and nothing scores {domain}{did_you_mean(domain, scored)}"
            continue
        yield from _earlier(cascade, stage, teacher.stage, f"{key}.{domain}", source, "a teacher")
        if teacher.stage == stage.parent and not teacher.anchor:
            yield (
                f"{key}.{domain}: {teacher.stage} is where the student starts, so it has nothing to teach; name "
                f"another stage, or write {{stage: {teacher.stage}, anchor: true}} to hold the student in place"
            )


def teacher_path_problems(stage: "StageConfig", source: "Source") -> Iterator[str]:
    """A teacher from outside of the run has weights, and its tokenizer is where it is said to be."""
    for domain, teacher in stage.teachers.items():
        key = f"{source.own(stage.name, 'teachers')}.{domain}"
        for name, find in (("path", lambda path: pretrained.find(Path(path))), ("tokenizer", find_tokenizer)):
            value = getattr(teacher, name)
            try:
                find(value) if value is not None and not is_missing(value) else None
            except ValueError as error:
                yield f"{key}.{name}: {error}"


def gate_problems(cascade: "CascadeConfig", stage: "StageConfig", source: "Source") -> Iterator[str]:
    """A gate judges domains that are scored, and compares them with those of a parent that there is."""
    gate, key = stage.gate, source.own(stage.name, "gate")
    if not gate.domains:
        return
    if gate.on_failure == "rollback" and stage.teacher_only:
        yield f"{key}.on_failure: nothing starts from a teacher_only stage; use stop, warn or advance"
    if gate.on_failure == "rollback" and stage.parent is None:
        text = f"{stage.name} starts from {stage.start}, so no stage is left to go on from; use stop, warn or advance"
        yield f"{key}.on_failure: {text}"
    if cascade.validation.num_prompts == 0:
        yield f"{key}: with cascade.validation.num_prompts 0 there is no score to judge; set that, or leave the gate out"
        return
    start = _earliest_start(cascade, stage)
    # A floor is the stage's own; the other rules compare with where it starts.
    for rule, scorer in (("max_drop", start), ("min_gain", start), ("floor", stage.name)):
        limits = getattr(gate, rule)
        if limits and scorer is None:
            text = "no score to drop from or to gain on"
            yield f"{key}.{rule}: {stage.name} starts from {stage.start}, so there is {text}; remove it, or use floor"
        scored = list(cascade.scored(scorer)) if scorer in cascade.stages else []
        for domain, limit in limits.items():
            if domain not in scored and scorer in cascade.stages:
                where = "it" if scorer == stage.name else f"it for {scorer}, where {stage.name} may start"
                yield f"{key}.{rule}.{domain}: nothing scores {where}{did_you_mean(domain, scored)}"
            if limit < 0 and rule != "floor":
                yield f"{key}.{rule}.{domain}: must be >= 0 (points of score), got {limit}"
    yield from gate_limit_problems(cascade, stage, source)


def in_stage_validation_problems(cascade: "CascadeConfig", stage: "StageConfig", where) -> Iterator[str]:
    """What chooses a checkpoint or stops a stage early needs validations inside it, of domains that are scored."""
    block, name = "sft" if stage.kind == "sft" else "grpo", stage.checkpointing.metric_name
    if stage.loop.val_period > 0 and cascade.validation.num_prompts == 0:
        text = "there is no prompt to validate on; set cascade.validation.num_prompts, or this to 0"
        yield f"{where(f'{block}.val_period')}: {text}"
    needing = {f"{block}.val_patience": stage.loop.val_patience > 0, "checkpointing.metric_name": name is not None}
    for key in (key for key, needs in needing.items() if needs and stage.loop.val_period == 0):
        yield f"{where(key)}: without {block}.val_period nothing is validated while a stage trains; set that too"
    known = ["val:reward", *(f"val:{domain}" for domain in cascade.scored(stage.name))]
    if name is not None and name not in known:
        yield f"{where('checkpointing.metric_name')}: {name} is not measured in {stage.name}{did_you_mean(name, known)}"


def _earliest_start(cascade: "CascadeConfig", stage: "StageConfig") -> str | None:
    """The parent, or what rollbacks may make the parent."""
    name = stage.parent
    for _ in cascade.order:
        parent = cascade.stages.get(name)
        if parent is None or parent.parent is None or not parent.gate.domains or parent.gate.on_failure != "rollback":
            break
        name = parent.parent
    return name
