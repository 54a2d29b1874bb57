"""What goes on around the stages of a run: requests to stop are heard, heartbeats are written, a run that hangs ends.

The runner wraps its stages in `attended`.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from nemo_cascade import heartbeat, last_words
from nemo_cascade.cascade.config import CascadeConfig, StageConfig
from nemo_cascade.cascade.gate import ADVANCE, ROLLBACK, STOP, WARN
from nemo_cascade.cascade.manifest import StageRecord
from nemo_cascade.cascade.watchdog import Watchdog
from nemo_cascade.engine import parallel
from nemo_cascade.rollout.engine import EngineError
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.interruption import Interrupted, Interruption

# Below 0 nobody goes on from the stage.
VERDICTS = {ADVANCE: 1.0, WARN: 0.0, ROLLBACK: -1.0, STOP: -2.0}


@contextlib.contextmanager
def attended(cascade: CascadeConfig) -> Iterator[Interruption]:
    """Around all that a run does, on every rank. An Interrupted that comes out is told, and ends the program with code 75."""
    run_dir, rank = Path(cascade.run_dir), parallel.rank()
    with watched(cascade, run_dir), Interruption(run_dir, rank) as interruption:
        try:
            yield interruption
        except Interrupted as stopped:
            interruption.leave_a_note(str(stopped))
            if rank == 0:
                print(stopped, flush=True)
            parallel.shutdown()
            raise
        except Exception as error:
            # A collective that timed out, say, tells nothing of where it was.
            error.add_note(f"rank {rank}: {heartbeat.where()}")
            if isinstance(error, EngineError):
                last_words.leave(f"nemo-cascade: {heartbeat.where()}: {error}")
            raise


def watched(cascade: CascadeConfig, run_dir: Path) -> Watchdog:
    """Ends what hangs inside `with`, after `cluster.collective_timeout_minutes`; heartbeats are in run_dir, those of an earlier start
    are removed. Called on all ranks."""
    parallel.on_rank_0(lambda: heartbeat.forget(run_dir))
    heartbeat.at("start", stage="", number=0, stages=len(cascade.stages), step=0, steps=0)
    minutes = next(iter(cascade.stages.values())).cluster.collective_timeout_minutes
    return Watchdog(run_dir, parallel.rank(), dist.get_world_size(), minutes)


def begin_stage(cascade: CascadeConfig, stage: StageConfig) -> None:
    """What `nemo-cascade status` and the watchdog shall call it."""
    number = cascade.order.index(stage.name) + 1
    heartbeat.at("start", stage=stage.name, number=number, stages=len(cascade.order), step=0, steps=stage.max_num_steps)


def tell_trackers(cascade: CascadeConfig, stage_run: StageRun, record: StageRecord) -> None:
    """What the stage has come to, at its last step; then its trackers' runs are over. On rank 0."""
    stage_run.trackers.add(cascade_metrics(cascade.order.index(stage_run.name) + 1, record), last_step(record, stage_run))
    stage_run.trackers.close()


def last_step(record: StageRecord, stage_run: StageRun) -> int:
    """Of a stage that stopped at a plateau, or hands on an earlier one, the step that it hands on."""
    return int(Path(record.checkpoint).name.removeprefix("step_")) if record.checkpoint else stage_run.config.max_num_steps


def cascade_metrics(number: int, record: StageRecord) -> dict[str, float]:
    """`cascade/...`: the stage's number in the order, its scores, and where it has a gate the verdict and differences by domain."""
    metrics = {"cascade/stage": float(number)}
    metrics |= {f"cascade/score/{domain}": entry["mean"] for domain, entry in record.scores.items()}
    if record.gate is not None:
        metrics["cascade/verdict"] = VERDICTS[record.gate["action"]]
        metrics |= {f"cascade/gate/{domain}/delta": mean for domain, (mean, _, _) in record.gate["differences"].items()}
    return metrics
