"""What ends every step of both loops: a checkpoint where one is due, and a stop where one was asked for."""

from nemo_cascade import heartbeat
from nemo_cascade.engine import checkpoint, parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.interruption import Interrupted
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.validations import Validations


def finish_step(
    stage: StageRun, policy: Policy, validations: Validations, remembered: dict, watch: Stopwatch
) -> None:
    """remembered: what the checkpoint keeps for the loop (JSON values). watch: told of the checkpoint's time.

    Raises Interrupted on all ranks, after a checkpoint, when any of them was asked to stop or has no time for another step.
    """
    asked, step = stage.interruption, policy.step
    asked.step_done()
    stop = parallel.first_not_none(asked.why)
    if stop or stage.should_save(step, validations.loop.max_num_steps) or validations.saves(step):
        watch.start()
        checkpoint.save(policy, stage.dir, remembered, **validations.retention)
        watch.lap("checkpointing")
        asked.saved()
    heartbeat.at("begin", step=step + 1)
    if stop:
        raise Interrupted(f"{stop}: saved step {step} of stage {stage.name}; the same command goes on from there")
