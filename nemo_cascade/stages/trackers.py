"""Where a stage's metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, each as a run of its own for the stage.

Their libraries are imported only where asked for. A resumed stage goes on with its run (`trackers.json` has their ids), a repeated
one begins another. A service that fails is told once and then left alone until the stage is over: no run of weeks ends by that.
"""

import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from nemo_cascade.data.files import write_atomically
from nemo_cascade.stages.config import LoggerConfig

logger = logging.getLogger(__name__)
FILE = "trackers.json"


class Tracker(Protocol):
    """One service's run of a stage."""

    def add(self, metrics: dict[str, float], step: int) -> None:
        """Every metric as a value at a step."""

    def close(self) -> None:
        """The stage is over."""


class TensorBoard:
    """Event files in `tensorboard` of the stage's folder, or in a folder of the stage's name in `logger.tensorboard.log_dir`."""

    def __init__(self, stage_dir: Path, settings: dict[str, Any], ids: dict, first_step: int, config: dict):
        # A second to import, and not a package that training needs.
        from torch.utils.tensorboard import SummaryWriter

        rest = dict(settings)
        own = rest.pop("log_dir", None)
        folder = Path(own) / run_name(stage_dir, None) if own else stage_dir / "tensorboard"
        # What earlier files hold from this step on is not shown any more, because it is written again.
        self.writer = SummaryWriter(str(folder), purge_step=first_step, **rest)

    def add(self, metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """`logger.wandb` goes to wandb.init as it is; the runs of a cascade are a group. WANDB_MODE=offline keeps it on disk."""

    def __init__(self, stage_dir: Path, settings: dict[str, Any], ids: dict, first_step: int, config: dict):
        import wandb

        ids.setdefault("wandb", uuid.uuid4().hex[:12])
        given = {"project": "nemo_cascade", "group": settings.get("name") or stage_dir.parent.name, **settings}
        given["name"] = run_name(stage_dir, settings.get("name"))
        self.run = wandb.init(**given, id=ids["wandb"], resume="allow", dir=str(stage_dir), config=config, reinit="create_new")

    def add(self, metrics: dict[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """`logger.mlflow`: experiment_name, run_name and tracking_uri (without it MLFLOW_TRACKING_URI, else `mlruns` in the run directory)."""

    def __init__(self, stage_dir: Path, settings: dict[str, Any], ids: dict, first_step: int, config: dict):
        from mlflow import MlflowClient

        uri = settings.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
        self.client = MlflowClient(uri or (stage_dir.parent / "mlruns").absolute().as_uri())
        if "mlflow" in ids:
            self.client.update_run(ids["mlflow"], status="RUNNING")
        else:
            name = settings.get("experiment_name", "nemo_cascade")
            known = self.client.get_experiment_by_name(name)
            experiment = known.experiment_id if known is not None else self.client.create_experiment(name)
            run = self.client.create_run(experiment, run_name=run_name(stage_dir, settings.get("run_name")))
            ids["mlflow"] = run.info.run_id
        self.run_id = ids["mlflow"]

    def add(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


KINDS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Trackers:
    """All that are enabled, of one stage; opened with the first metrics or, before, by `rewind`."""

    def __init__(self, stage_dir: Path, settings: LoggerConfig, config: dict):
        """config: what the stage runs with, for services that show it."""
        self.stage_dir, self.settings, self.config = stage_dir, settings, config
        self.open: dict[str, Tracker] | None = None

    def rewind(self, step: int) -> None:
        """What was told of steps after `step` will be told again."""
        self.close()
        self.open = {}
        path = self.stage_dir / FILE
        ids = json.loads(path.read_text()) if path.exists() else {}
        for name, kind in KINDS.items():
            if getattr(self.settings, f"{name}_enabled"):
                settings = getattr(self.settings, name)
                self._try(name, lambda: self.open.__setitem__(name, kind(self.stage_dir, settings, ids, step + 1, self.config)))
        if ids:
            write_atomically(path, json.dumps(ids) + "\n")

    def add(self, metrics: dict[str, float], step: int) -> None:
        if self.open is None:
            self.rewind(step - 1)
        for name in list(self.open):
            self._try(name, lambda: self.open[name].add(metrics, step))

    def close(self) -> None:
        for name in list(self.open or {}):
            self._try(name, lambda: self.open[name].close())
        self.open = None

    def _try(self, name: str, action) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - services fail in their own ways
            self.open.pop(name, None)
            logger.warning(
                "logger.%s_enabled: %s: %s; this stage goes on without it, metrics.jsonl has everything",
                *(name, type(error).__name__, str(error).strip().replace("\n", " ")[:300]),
            )


def run_name(stage_dir: Path, given: str | None) -> str:
    """ "tiny/05-math_rl": the run directory's name, or the one that is given, and the stage's folder."""
    return f"{given or stage_dir.parent.name}/{stage_dir.name}"
