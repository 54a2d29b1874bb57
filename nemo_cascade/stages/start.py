"""How every stage begins: from its own newest checkpoint, else from its parent's weights; the first ones from a Hugging
Face folder where the model is one, else from a fresh initialisation.
"""

from pathlib import Path

from nemo_cascade.engine import checkpoint
from nemo_cascade.engine.policy import Policy
from nemo_cascade.models.presets import is_hf_folder
from nemo_cascade.stages.context import StageRun


def resume_or_begin(stage: StageRun, policy: Policy) -> dict | None:
    """Puts weights (and, when resuming, optimizer and schedule) into `policy`; returns what the checkpoint remembers, if any.

    Raises DiskError where its first checkpoint would not fit, and Surplus as `checkpoint.latest_whole`.
    """
    checkpoint.refuse_without_space(policy, stage.dir)
    newest = checkpoint.latest_whole(stage.dir)
    if newest is not None:
        info = checkpoint.load(policy, newest)
    else:
        info = None
        if stage.parent is not None:
            policy.load(stage.parent / "policy", optimizer=False)
        elif is_hf_folder(policy.config.model_name):
            policy.load_hf(Path(policy.config.model_name))
    stage.rewind(policy.step)
    return info
