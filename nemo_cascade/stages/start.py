"""How every stage begins: from its own newest checkpoint, else from its parent's weights, else from a fresh initialisation."""

from nemo_cascade.engine import checkpoint
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.context import StageRun


def resume_or_begin(stage: StageRun, policy: Policy) -> dict | None:
    """Puts weights (and, when resuming, optimizer and schedule) into `policy`; returns what the checkpoint remembers, if any."""
    newest = checkpoint.latest(stage.dir)
    if newest is not None:
        info = checkpoint.load(policy, newest)
    else:
        info = None
        if stage.parent is not None:
            policy.load(stage.parent / "policy", optimizer=False)
    stage.rewind(policy.step)
    return info
