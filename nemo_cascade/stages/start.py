"""How every stage begins: from its own newest checkpoint, else from its parent's weights; the first ones from the pretrained
checkpoint or the Hugging Face folder that the config names, else from a fresh initialisation.
"""

from pathlib import Path

from nemo_cascade.data.rows import DataError
from nemo_cascade.engine import checkpoint, pretrained
from nemo_cascade.engine.policy import Policy
from nemo_cascade.models.presets import is_hf_folder
from nemo_cascade.stages.config import PretrainedConfig
from nemo_cascade.stages.context import StageRun


def resume_or_begin(stage: StageRun, policy: Policy) -> dict | None:
    """Puts weights (and, when resuming, optimizer and schedule) into `policy`; returns what the checkpoint remembers, if any.

    Raises DiskError where its first checkpoint would not fit, Surplus as `checkpoint.latest_whole`, and DataError for a checkpoint that
    another program trained, of which no more is known than its weights.
    """
    checkpoint.refuse_without_space(policy, stage.dir)
    newest = checkpoint.latest_whole(stage.dir)
    if newest is not None:
        imported = checkpoint.read_info(newest).get("imported")
        if imported is not None:
            raise DataError(
                f"{newest}: the import of {imported['path']} into stage {stage.name} did not come to its end; give "
                "`nemo-cascade import-checkpoint` again, or train the stage here with --from-stage"
            )
        info = checkpoint.load(policy, newest)
    else:
        info = None
        begin(policy, stage.parent, stage.config.checkpointing.pretrained_checkpoint)
    stage.rewind(policy.step)
    return info


def begin(policy: Policy, parent: Path | None, given: PretrainedConfig | None) -> None:
    """The weights of a stage that has not begun; fresh ones are in `policy` already."""
    if parent is not None:
        policy.load(parent / "policy", optimizer=False)
    elif given is not None:
        form, folder = pretrained.find(Path(given.path), given.format)
        policy.load_hf(folder) if form == pretrained.HF else policy.load_weights(folder)
    elif is_hf_folder(policy.config.model_name):
        policy.load_hf(Path(policy.config.model_name))
