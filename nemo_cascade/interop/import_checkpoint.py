"""What another program trained, as a finished stage of a run: NeMo RL's step_N, or a Hugging Face folder made of it.

The runner does with it what it does with every stage: rows are checked, the checkpoint is written in our form, read again and
compared (hand-over), scored, and its gate judges it; only the loop is another, which reads weights instead of training them. Where
they come from is sealed in the checkpoint and stands in the manifest (`imported`). Left out: the optimizer, which no other stage reads.
"""

import dataclasses
import json
from pathlib import Path

import yaml

from nemo_cascade.cascade import runner
from nemo_cascade.cascade.config import CascadeConfig
from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.cascade.provenance import refuse_other_network
from nemo_cascade.cascade.strict import flatten
from nemo_cascade.data.hashes import json_hash
from nemo_cascade.data.tokenizer import fingerprint, load_tokenizer
from nemo_cascade.engine import checkpoint, pretrained, seal
from nemo_cascade.engine.policy import Policy
from nemo_cascade.interop import nemo_rl, starts
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.validations import Validations


@dataclasses.dataclass(frozen=True)
class Result:
    """What was found at `path`: its form, the folder of its weights, and what NeMo RL wrote beside them, if it did."""

    path: Path
    form: str
    weights: Path

    @property
    def step(self) -> int | None:
        """Optimizer steps that it was trained for, None where nothing tells."""
        info = _json(self.path / "training_info.json")
        known = [info[key] for key in ("total_steps", "current_step", "step") if isinstance(info.get(key), int)]
        return known[0] if known else None

    @property
    def config(self) -> dict:
        """The config that it was trained with, dotted; empty where there is none."""
        path = self.path / "config.yaml"
        return flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}

    @property
    def tokenizer(self) -> Path | None:
        """The folder of its tokenizer."""
        folders = (self.path / "policy" / "tokenizer", self.path)
        return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)


def find(cascade: CascadeConfig, name: str, folder: Path) -> Result:
    """What is at `folder` for stage `name`. Raises RunRefused where that is no weights, or they cannot be that stage's."""
    stage = cascade.stages[name]
    try:
        form, weights = pretrained.find(folder)
    except ValueError as error:
        raise RunRefused(f"import-checkpoint: {error}") from None
    result = Result(folder.absolute(), form, weights.absolute())
    record = Manifest.load(Path(cascade.run_dir)).stages.get(name)
    if record is not None and (record.status == DONE or trained_here(Path(cascade.run_dir) / record.directory)):
        raise RunRefused(
            f"stage {name} of {cascade.run_dir} is finished, or was trained here for some steps; what is there would be lost: use another "
            "cascade.run_dir, or give the imported weights to a stage of another name"
        )
    if result.tokenizer is not None:
        theirs, ours = (fingerprint(load_tokenizer(str(f))) for f in (result.tokenizer, stage.policy.tokenizer.name))
        if theirs["tokenizer"] != ours["tokenizer"]:
            raise RunRefused(
                f"{result.tokenizer}: the tokenizer has the hash {theirs['tokenizer'][:12]}, that of the run "
                f"(policy.tokenizer.name={stage.policy.tokenizer.name}) {ours['tokenizer'][:12]}; its tokens are other ones"
            )
    return result


def trained_here(directory: Path) -> bool:
    """Whether a stage's folder has checkpoints of its own training."""
    return any("imported" not in _json(directory / f"step_{step}" / seal.INFO) for step in checkpoint.steps(directory))


def differences(result: Result, cascade: CascadeConfig, name: str) -> list[str]:
    """ "key asked -> trained" for what the result's own config has otherwise than the export of the stage."""
    stage, trained = cascade.stages[name], result.config
    nowhere = starts.Starts(model="", tokenizer="", teachers={domain: "" for domain in stage.teachers})
    asked = flatten(nemo_rl.export(cascade, name, nowhere, result.path, "").document)
    # Where things are, and on how many machines.
    ignored = ("defaults", "checkpointing.", "logger.", "cluster.", "data.", "env.", "on_policy_distillation.", "policy.model_name")
    ignored = (*ignored, "policy.tokenizer.", "policy.generation.colocated.")
    return [
        f"{key} {value!r} -> {trained[key]!r}"
        for key, value in asked.items()
        if key in trained and trained[key] != value and not key.startswith(ignored)
    ]


def run(cascade: CascadeConfig, name: str, result: Result, changes: list[str]) -> Manifest:
    """Takes it in; called on all ranks. changes: from `differences`, kept with it. Raises what `runner.run` raises."""

    def read_instead(stage: StageRun) -> None:
        take(stage, result, changes)

    return runner.run(cascade, only=name, loops={"sft": read_instead, "rl": read_instead})


def take(stage: StageRun, result: Result, changes: list[str]) -> None:
    """The loop of a stage that is trained already: its weights, written as its last checkpoint. Raises RunRefused where they do not fit."""
    config, loop = stage.config, stage.config.loop
    digest = weights_digest(result)
    known = checkpoint.latest_whole(stage.dir)
    if known is not None and (checkpoint.read_info(known).get("imported") or {}).get("files_hash") == digest:
        return
    policy = Policy(config.policy, seed=stage.seed)
    try:
        if result.form == pretrained.HF:
            refuse_other_network(policy.preset, str(result.weights))
            policy.load_hf(result.weights)
        else:
            policy.load_weights(result.weights)
    except Exception as error:  # noqa: BLE001 - every reader has errors of its own
        raise RunRefused(f"stage {stage.name}: {result.path} cannot be read: {type(error).__name__}: {error}") from error
    policy.step = loop.max_num_steps
    validations = Validations(stage, loop, done=0)
    measured = validations.after(policy.step, policy)
    if measured:
        stage.log(measured, policy.step)
    source = {"path": str(result.path), "form": result.form, "step": result.step, "files_hash": digest, "differences": changes}
    checkpoint.save(policy, stage.dir, {"imported": source})


def weights_digest(result: Result) -> str:
    """One sha256 over names and contents of all files of the weights, which the ranks hash together."""
    names = seal.sizes(result.weights)
    weights = {name: size for name, size in names.items() if result.form != pretrained.HF or name.endswith((".safetensors", ".json"))}
    return json_hash(seal.hash_files(result.weights, weights))


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
