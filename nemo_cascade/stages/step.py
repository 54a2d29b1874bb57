"""What ends every step of both loops: a checkpoint where one is due, and a stop where one was asked for.

With `checkpointing.async_save` a checkpoint inside a stage is written while the next steps train, and put in its place at the end of the
first step after its files are written. Whatever ends a stage or a run waits for it, and for its own.
"""

from collections.abc import Callable

from nemo_cascade import heartbeat
from nemo_cascade.engine import checkpoint, parallel
from nemo_cascade.engine.policy import Policy
from nemo_cascade.engine.writes import Writes
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.interruption import Interrupted
from nemo_cascade.stages.stopwatch import Stopwatch
from nemo_cascade.stages.validations import Validations


def finish_step(
    stage: StageRun, policy: Policy, validations: Validations, remembered: Callable[[], dict], watch: Stopwatch
) -> None:
    """remembered: gives what a checkpoint keeps for the loop (JSON values). watch: told of the checkpoint's time and of what was before it.

    Raises Interrupted on all ranks, after a checkpoint, when any of them was asked to stop or has no time for another step.
    """
    asked, step = stage.interruption, policy.step
    asked.step_done()
    stop = parallel.first_not_none(asked.why)
    due = bool(stop) or stage.should_save(step, validations.loop.max_num_steps) or validations.saves(step)
    watch.lap("logging")
    if due or stage.unfinished is not None:
        end_unfinished(stage, wait=due)
        if due:
            kept = remembered()
            last = bool(stop) or step == validations.loop.max_num_steps or validations.stopped
            aside = stage.config.checkpointing.async_save and not last
            stage.unfinished = checkpoint.begin(
                policy, stage.dir, kept, **validations.retention, writes=Writes() if aside else None
            )
            if not aside:
                end_unfinished(stage, wait=True)
        watch.lap("checkpointing")
        asked.saved()
    heartbeat.at("begin", step=step + 1)
    if stop:
        raise Interrupted(f"{stop}: saved step {step} of stage {stage.name}; the same command goes on from there")


def end_unfinished(stage: StageRun, wait: bool) -> None:
    """Puts the checkpoint that is being written, if any, in its place; without wait only when that needs no waiting."""
    unfinished = stage.unfinished
    if unfinished is not None and (wait or unfinished.is_written()):
        unfinished.end()
        stage.unfinished = None
        stage.interruption.saved(unfinished.seconds)
