"""What an exported stage starts from and is taught by, as folders that NeMo RL opens, and the commands that make those it cannot open.

NeMo RL begins with a Hugging Face folder. A checkpoint of a run is written as one by examples/convert.py, whose command is given
and not carried out: it takes minutes and a place to write to.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from nemo_cascade.cascade.config import CascadeConfig, StageConfig
from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.data.tokenizer import SHIPPED
from nemo_cascade.engine import pretrained
from nemo_cascade.models.presets import PRESETS, is_hf_folder

FOLDER = "nemo_rl"


@dataclass
class Starts:
    """model, tokenizer: folders. pretrained: NeMo RL's `checkpointing.pretrained_checkpoint`. teachers: domain -> folder.

    commands: what has to be run first, so that the folders are there.
    """

    model: str
    tokenizer: str
    pretrained: dict | None = None
    teachers: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)


def find(cascade: CascadeConfig, name: str, model: Path | None = None) -> Starts:
    """Where stage `name` starts and who teaches it, as the run directory has it now. model: a Hugging Face folder to start from instead.

    Raises RunRefused, a line each, for what has no folder yet.
    """
    stage, manifest, problems = cascade.stages[name], Manifest.load(Path(cascade.run_dir)), []
    shipped = SHIPPED / stage.policy.tokenizer.name
    starts = Starts("", str(shipped if shipped.is_dir() else Path(stage.policy.tokenizer.name).absolute()))
    if model is not None:
        starts.model = str(model.absolute())
    elif stage.parent is not None:
        starts.model = of_stage(manifest, stage.parent, starts, stage) or ""
        if not starts.model:
            problems.append(
                f"stage {name} starts from {stage.parent}, which {manifest.run_dir} has not finished; run it first, or name a "
                "Hugging Face folder with --model"
            )
    else:
        starts.model, starts.pretrained = of_config(stage)
        if not starts.model:
            problems.append(
                f"policy.model_name={stage.policy.model_name}: NeMo RL knows a network by its Hugging Face folder only; name one "
                "with --model"
            )
    for domain, teacher in stage.teachers.items():
        path = teacher.path or of_stage(manifest, teacher.stage, starts, stage)
        if path is None:
            problems.append(
                f"teachers.{domain}: {teacher.stage} is no finished stage of {manifest.run_dir}; run it first, or name a folder: "
                f"cascade.stages.{name}.teachers.{domain}={{path: FOLDER}}"
            )
        else:
            starts.teachers[domain] = str(Path(path).absolute())
    if problems:
        raise RunRefused("\n".join(problems))
    return starts


def of_config(stage: StageConfig) -> tuple[str, dict | None]:
    """(Hugging Face folder or "", `pretrained_checkpoint` or None) of a stage without a parent."""
    given, name = stage.checkpointing.pretrained_checkpoint, stage.policy.model_name
    network = str(Path(name).absolute()) if name not in PRESETS else ""
    if given is None:
        return network, None
    form, folder = (given.format, Path(given.path)) if not Path(given.path).is_dir() else pretrained.find(Path(given.path), given.format)
    if form == pretrained.HF:
        return str(folder.absolute()), None
    saved_by = "megatron_bridge" if (folder / "run_config.yaml").is_file() else "megatron_lm"
    return network, {"path": str(folder.absolute()), "format": saved_by}


def of_stage(manifest: Manifest, name: str | None, starts: Starts, stage: StageConfig) -> str | None:
    """The folder in which a finished stage's weights will be, whose commands are added; None where it is not finished."""
    if name not in manifest.stages or manifest.stages[name].status != DONE:
        return None
    name = manifest.standing(name)
    target = (manifest.run_dir / FOLDER / name).absolute()
    if not is_hf_folder(str(target)):
        weights = manifest.checkpoint(name).absolute() / "policy" / "weights"
        convert = ["python", "examples/convert.py", "--from", "megatron", "--to", "hf", "--model", stage.policy.model_name]
        commands = [shlex.join([*convert, str(weights), str(target)])]
        # vLLM and NeMo RL look for the tokenizer beside the weights.
        beside = sorted(str(path) for pattern in ("*token*", "*.jinja") for path in Path(starts.tokenizer).glob(pattern))
        commands.append(shlex.join(["cp", *beside, str(target)]))
        starts.commands += [command for command in commands if command not in starts.commands]
    return str(target)
