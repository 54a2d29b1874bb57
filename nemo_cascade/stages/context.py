"""`StageRun`: all that a training loop gets to know about the run it is part of.

The loops take it as their only argument and import nothing of the pipeline above them. Left out on purpose: other
stages, the manifest, scores. Whoever drives a loop (the runner, a test, a script) builds one.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade import heartbeat
from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.environments.endpoint import EndpointConfig
from nemo_cascade.stages.config import (
    CheckpointingConfig,
    DataConfig,
    EnvConfig,
    GenRMConfig,
    GRPOConfig,
    LoggerConfig,
    LossConfig,
    SandboxConfig,
    SFTConfig,
)
from nemo_cascade.stages.interruption import Interruption
from nemo_cascade.stages.metrics import MetricsLog
from nemo_cascade.stages.progress import Progress
from nemo_cascade.stages.trackers import Trackers

if TYPE_CHECKING:
    from nemo_cascade.engine.checkpoint import Unfinished


@dataclass(kw_only=True)
class LoopConfig:
    """The blocks a loop may read; `sft` or `grpo` and `loss_fn` by its kind."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)
    loss_fn: LossConfig = field(default_factory=LossConfig)
    genrm: GenRMConfig = field(default_factory=GenRMConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    data: DataConfig = field(default_factory=DataConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


@dataclass
class StageRun:
    """One stage being run by one process.

    dir is the stage's own folder, parent the checkpoint it starts from (None: fresh weights), teachers the checkpoint
    that teaches each domain, judge the one that compares replies to preference rows, unless that is a model behind
    judge_endpoint. saved_rollouts: the folder of those to train on, where none are to be drawn. validate scores a policy
    in memory, as `validation.score_policy` does, for loops with a val_period.
    max_logprob_error: how far two readings of one checkpoint may be apart (`cascade.handover`).
    interruption hears of requests to stop. unfinished: a checkpoint that is written while the stage trains on. Only rank 0 writes
    metrics and shows progress; the others may call the same methods.
    """

    name: str
    config: LoopConfig
    dir: Path
    seed: int
    parent: Path | None = None
    teachers: dict[str, Path] = field(default_factory=dict)
    judge: Path | None = None
    judge_endpoint: EndpointConfig | None = None
    saved_rollouts: Path | None = None
    validate: Callable[..., dict[str, dict]] | None = None
    rank: int = 0
    max_logprob_error: float = 0.0
    interruption: Interruption = field(default_factory=Interruption)
    trackers: Trackers = field(init=False, repr=False)
    unfinished: "Unfinished | None" = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self.trackers = Trackers(self.dir, self.config.logger, dataclasses.asdict(self.config))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Appends one line to `metrics.jsonl` (and tells the trackers); step counts optimizer steps of this stage from 1."""
        if self.rank == 0:
            MetricsLog(self.dir / "metrics.jsonl").append(metrics, step)
            self.trackers.add(metrics, step)

    def rewind(self, step: int) -> None:
        """Forgets the metrics of all steps after `step`, because a resumed stage will write them again."""
        if self.rank == 0:
            MetricsLog(self.dir / "metrics.jsonl").rewind(step)
            self.trackers.rewind(step)

    @contextlib.contextmanager
    def progress(self, total: int, description: str, done: int = 0) -> Iterator[Progress]:
        """Around the loop: its `advance(**shown)` counts one of `total` steps; `done` of them are behind already."""
        heartbeat.at("begin", step=done + 1)
        with self.interruption.in_steps(), Progress(total, description, done=done, silent=self.rank != 0) as bar:
            yield bar

    def should_save(self, step: int, max_num_steps: int) -> bool:
        """Whether a checkpoint is due after `step`: at the end, and every `checkpointing.save_period` steps."""
        period = self.config.checkpointing.save_period
        return step == max_num_steps or (period > 0 and step % period == 0)
