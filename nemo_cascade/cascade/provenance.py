"""Where a teacher comes from, and whether it may teach: hashes of weights, tokenizer and chat template, and its parents.

A teacher and its student must read the same tokens, or their log-probs mean different texts; and a teacher with the student's own
weights teaches nothing, so it must be called an anchor. Teachers from outside of the run, a Hugging Face folder or a checkpoint of
another run, are loaded once for their hash: whatever is wrong with them shows before the first step.
"""

import dataclasses
import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade.cascade import teachers
from nemo_cascade.cascade.checks import AUTO
from nemo_cascade.cascade.gate import GateError
from nemo_cascade.cascade.manifest import FILE, PENDING, Manifest, StageRecord
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.tokenizer import fingerprint, load_tokenizer
from nemo_cascade.engine import pretrained
from nemo_cascade.models.presets import get_preset, is_hf_folder

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import StageConfig

Chain = list[tuple[str, str | None]]


def of_outside(manifest: Manifest, stage: "StageConfig") -> dict[str, str]:
    """path -> hash of the weights of what a stage's record names outside of the run, and of what the student starts from if that
    is outside too; called on all ranks. Raises RunRefused."""
    record = manifest.stages[stage.name]
    paths = sorted(set(record.teachers.values()) - set(manifest.stages))
    start = start_outside(stage) if record.parent is None else None
    return {path: weights_of_path(stage, path) for path in dict.fromkeys(paths + ([start] if paths and start else []))}


def start_outside(stage: "StageConfig") -> str | None:
    """Where the weights lie that a stage without a parent starts from; None where they are fresh ones."""
    given = stage.checkpointing.pretrained_checkpoint
    if given is not None:
        return given.path
    return stage.policy.model_name if is_hf_folder(stage.policy.model_name) else None


def of_teachers(manifest: Manifest, stage: "StageConfig", outside: dict[str, str]) -> dict[str, dict]:
    """What `StageRecord.teacher_facts` keeps of each domain's teacher, once the record has parent, teachers and fingerprint.

    outside: from `of_outside`. Raises RunRefused, one line for each teacher that may not teach, and GateError where the best was
    looked for among scores that cannot be compared.
    """
    record, facts, problems = manifest.stages[stage.name], {}, []
    in_run = record.parent is not None
    start_hash = manifest.stages[record.parent].checkpoint_hash if in_run else outside.get(start_outside(stage))
    for domain, name in record.teachers.items():
        own, teacher = manifest.stages.get(name), stage.teachers[domain]
        weights = own.checkpoint_hash if own is not None else outside[name]
        entry = {
            "teacher": name,
            "auto": teacher.stage == AUTO,
            "candidates": len(teachers.candidates(manifest, stage.name, domain)),
            "anchor": weights == start_hash,
            "start": record.parent or stage.start,
            "margin": None,
            "warning": None,
            "weights_hash": weights,
            # All stages of a run have one tokenizer; what no older version kept is that.
            **((own.fingerprint or record.fingerprint if own is not None else fingerprint_of_path(name, teacher.tokenizer)) or {}),
            "chain": chain(manifest, name) if own is not None else chain_of_path(name),
        }
        try:
            known = teachers.margin(manifest, record.parent, name, domain)
            entry["margin"] = dataclasses.asdict(known) if known is not None else None
            entry["warning"] = warning(domain, entry, known)
        except GateError as error:
            if entry["auto"]:
                raise
            entry["warning"] = f"how good the teacher {name} of {domain} is cannot be said: {error}"
        before = record.teacher_facts.get(domain) if record.status != PENDING else None
        problems += [f"stage {stage.name}: {told}" for told in problems_of(domain, entry, teacher.anchor, record, before)]
        facts[domain] = entry
    if problems:
        raise RunRefused("\n".join(problems))
    return facts


def problems_of(domain: str, facts: dict, may_anchor: bool, record, before: dict | None) -> list[str]:
    """What keeps a teacher from teaching. before: its facts when a stage that goes on began."""
    name, found = facts["teacher"], []
    student = record.fingerprint
    for part, remedy in (("tokenizer", "tokens of one are not those of the other"), ("template", "they see other prompts")):
        if student and part not in facts:
            found.append(
                f"teachers.{domain}: nothing tells the {part} of {name}; name its folder with teachers.{domain}.tokenizer, or put "
                "tokenizer.json, tokenizer_config.json and chat_template.jinja beside the weights"
            )
        elif student and facts[part] != student[part]:
            found.append(
                f"teachers.{domain}: the {part} of {name} has the hash {facts[part][:12]}, the student's "
                f"{student[part][:12]}, so {remedy}; name a teacher with the student's {part}"
            )
    if facts["anchor"] and not may_anchor:
        best = f"nothing before it is better in {domain}: {name}" if facts["auto"] else name
        found.append(
            f"teachers.{domain}: {best} has the weights that the student starts from ({facts['start']}), so it has nothing to "
            f"teach; name another teacher, or write {{..., anchor: true}} to hold the student in place"
        )
    if before is not None and before["weights_hash"] != facts["weights_hash"]:
        found.append(
            f"teachers.{domain}: the weights of {name} changed since the stage began, from {before['weights_hash'][:12]} to "
            f"{facts['weights_hash'][:12]}; put them back, or repeat the stage with --from-stage"
        )
    return found


def warning(domain: str, facts: dict, known: teachers.Margin | None) -> str | None:
    """What is odd about a teacher that may teach nevertheless, in words."""
    if known is None or facts["anchor"]:
        return None
    told = f"the teacher {facts['teacher']} of {domain}, {known} beside the student's start {facts['start']},"
    if known.mean < 0:
        return f"{told} is worse than it"
    by_noise = f"{told} may be no better than it: noise gains as much with a chance of {known.chance:.2g}"
    return by_noise if known.chance > teachers.LEVEL else None


def chain(manifest: Manifest, name: str) -> Chain:
    """(stage, hash of its weights) of a stage, its parent and so on to the first."""
    found: Chain = []
    while name is not None and name in manifest.stages:
        found.append((name, manifest.stages[name].checkpoint_hash))
        name = manifest.stages[name].parent
    return found


# -------------------------------------------------------------------------------- from outside of the run


def weights_of_path(stage: "StageConfig", path: str) -> str:
    """The hash of a teacher's weights as the student's model holds them; called on all ranks. Raises RunRefused."""
    from nemo_cascade.engine.policy import Policy

    policy = Policy(stage.policy, seed=0)
    try:
        form, folder = pretrained.find(Path(path))
        if form == pretrained.MEGATRON:
            policy.load_weights(folder)
        else:
            refuse_other_network(policy.preset, str(folder))
            policy.load_hf(folder)
    except Exception as error:  # noqa: BLE001 - every reader has errors of its own
        raise RunRefused(f"stage {stage.name}: the teacher {path} cannot be read: {type(error).__name__}: {error}") from error
    found = policy.weights_hash()
    del policy
    gc.collect()  # two models at once would double the memory
    if found != written_hash(Path(path), found):
        raise RunRefused(f"stage {stage.name}: the weights of the teacher {path} are not those that were written there")
    return found


def written_hash(step: Path, unknown: str) -> str:
    """The hash that a step_N of another run remembers of its weights; `unknown` where there is none, as in those of NeMo RL."""
    try:
        return json.loads((step / "training_info.json").read_text(encoding="utf-8")).get("weights_hash", unknown)
    except (OSError, ValueError):
        return unknown


def refuse_other_network(preset, path: str) -> None:
    """Raises ValueError where tensors of equal shapes would be used otherwise (experts a token, scales, epsilons)."""
    theirs, ours = (dataclasses.asdict(one) for one in (get_preset(path), preset))
    mattering = ours.keys() - {"name", "init_method_std", "max_sequence_length", "mamba_chunk_size"}
    other = [f"{key} {theirs[key]}, not {ours[key]}" for key in sorted(mattering) if theirs[key] != ours[key]]
    if other:
        raise ValueError(f"another network: {'; '.join(other)}")


def fingerprint_of_path(path: str, tokenizer: str | None = None) -> dict | None:
    """The hashes of a teacher's tokenizer and template: of the folder that is named for them, as the checkpoint's own run keeps
    them, or of the files beside the weights; None where there are none."""
    if tokenizer is None and (record := _record_of(path)) is not None:
        return record.fingerprint
    try:
        return fingerprint(load_tokenizer(tokenizer or path))
    except (ValueError, OSError):
        return None


def chain_of_path(path: str) -> Chain:
    """The parents of a checkpoint of another run, in it; else the path alone."""
    record = _record_of(path)
    if record is None:
        return [(path, None)]
    manifest = Manifest.load(Path(path).resolve().parents[1])
    return chain(manifest, next(name for name, other in manifest.stages.items() if other.directory == record.directory))


def _record_of(path: str) -> StageRecord | None:
    """The record, in its own run, of the stage whose checkpoint (step_N) this is."""
    step = Path(path).resolve()
    if len(step.parents) < 2 or not (step.parents[1] / FILE).is_file():
        return None
    records = Manifest.load(step.parents[1]).stages.values()
    return next((record for record in records if record.directory == step.parent.name), None)
