"""What must hold of the keys by which a run is left alone: its time limit, its trackers.

As in checks.py, every function yields lines "key: what is wrong; what to do".
"""

import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nemo_cascade.cascade.strict import did_you_mean
from nemo_cascade.stages.interruption import seconds_of

# By the module that is imported, what to install.
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny (or all of mlflow)"}
OWN = {"tensorboard": {"purge_step"}, "wandb": {"id", "resume", "dir", "config", "reinit"}, "mlflow": set()}
SETTINGS = {
    "tensorboard": {"log_dir", "comment", "max_queue", "flush_secs", "filename_suffix"},
    "mlflow": {"experiment_name", "run_name", "tracking_uri"},
}

if TYPE_CHECKING:
    from nemo_cascade.cascade.config import StageConfig


def operation_problems(stage: "StageConfig", where) -> Iterator[str]:
    """All of a stage's."""
    yield from limit_problems(stage, where)


def limit_problems(stage: "StageConfig", where) -> Iterator[str]:
    """`checkpoint_must_save_by` is a time."""
    limit = stage.checkpointing.checkpoint_must_save_by
    if limit is None:
        return
    try:
        seconds = seconds_of(limit)
    except ValueError as error:
        key = where("checkpointing.checkpoint_must_save_by")
        yield f'{key}: {error}; write days, hours, minutes and seconds, in quotes, as "00:03:45:00"'
    else:
        if seconds == 0:
            yield f"{where('checkpointing.checkpoint_must_save_by')}: nothing can be saved in no time; null is no limit"


def tracker_problems(stage: "StageConfig", where) -> Iterator[str]:
    """Their libraries are installed, and their blocks say nothing that the stage says itself."""
    for name in TRACKERS:
        block, key = getattr(stage.logger, name), f"logger.{name}_enabled"
        if getattr(stage.logger, key.removeprefix("logger.")) and find_spec(name) is None:
            yield f"{where(key)}: {name} is not installed; pip install {TRACKERS[name]}, or set it to false"
        for own in sorted(set(block) & OWN[name]):
            yield f"{where(f'logger.{name}.{own}')}: set by the stage itself; leave it out"
        known = known_settings(name) if block else None
        for unknown in [] if known is None else [setting for setting in block if setting not in known and setting not in OWN[name]]:
            yield f"{where(f'logger.{name}.{unknown}')}: unknown key{did_you_mean(unknown, sorted(known))}"


def known_settings(name: str) -> set[str] | None:
    """What a tracker's block may say; None where only its library knows, which is not there."""
    if name != "wandb":
        return SETTINGS[name]
    if find_spec("wandb") is None:
        return None
    import wandb

    return {*inspect.signature(wandb.init).parameters} - OWN["wandb"]
