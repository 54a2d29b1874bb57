"""Metrics in TensorBoard, Weights & Biases and MLflow, by their real libraries, on this machine alone."""

import json
import logging
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

from nemo_cascade.cascade import operation_checks
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import ConfigErrors, load_config
from nemo_cascade.stages.config import LoggerConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.trackers import FILE

METRICS = {"train/reward": 0.5, "timing/train/total_step_time": 2.0}


def needs(module: str):
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed; pip install it to run this")


def stage_run(folder: Path, **logger) -> StageRun:
    """The second stage of a run called `tiny`, as a new process has it."""
    stage = folder / "tiny" / "02-math_rl"
    stage.mkdir(parents=True, exist_ok=True)
    return StageRun(name="math_rl", config=LoopConfig(logger=LoggerConfig(**logger)), dir=stage, seed=1)


def in_two_attempts(folder: Path, **logger) -> None:
    """Steps 1 to 3; then 3 and 4 from the checkpoint of step 2, and what the cascade says of the stage."""
    first = stage_run(folder, **logger)
    first.rewind(0)
    for step in (1, 2, 3):
        first.log(METRICS | {"train/loss": float(step)}, step)
    first.trackers.close()  # two runs of one id at a time are not for one process
    again = stage_run(folder, **logger)
    again.rewind(2)
    for step in (3, 4):
        again.log(METRICS | {"train/loss": float(step)}, step)
    again.trackers.add({"cascade/score/math": 0.75}, 4)
    again.trackers.close()


@needs("tensorboard")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_tensorboard_has_every_step_once(elsewhere, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    block = {"log_dir": str(tmp_path / "boards")} if elsewhere else {}
    in_two_attempts(tmp_path, tensorboard_enabled=True, tensorboard=block)
    folder = tmp_path / ("boards/tiny/02-math_rl" if elsewhere else "tiny/02-math_rl/tensorboard")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert [(e.step, e.value) for e in events.Scalars("cascade/score/math")] == [(4, 0.75)]


@needs("mlflow")
def test_mlflow_has_one_run_of_a_stage_also_after_a_resume_and_another_when_it_is_repeated(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    block = {"experiment_name": "mine", "tracking_uri": uri}
    in_two_attempts(tmp_path, mlflow_enabled=True, mlflow=block)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "tiny/02-math_rl" and run.info.status == "FINISHED"
    told = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")}
    assert told == {(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)}
    assert run.data.metrics["cascade/score/math"] == 0.75 and run.data.metrics["train/reward"] == 0.5
    (tmp_path / "tiny").rename(tmp_path / "replaced")
    stage_run(tmp_path, mlflow_enabled=True, mlflow=block).log(METRICS, 1)
    assert len(client.search_runs([experiment])) == 2


@needs("wandb")
def test_wandb_offline_has_a_run_of_the_stage_in_the_group_of_the_cascade(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    in_two_attempts(tmp_path, wandb_enabled=True, wandb={"project": "cascades"})
    stage = tmp_path / "tiny" / "02-math_rl"
    known = json.loads((stage / FILE).read_text())["wandb"]
    runs = sorted((stage / "wandb").glob(f"offline-run-*-{known}"))
    assert len(runs) == 2, "an offline run cannot be opened again, but both have the id under which they are one"
    first, second = map(read_wandb, runs)
    assert {step: row["train/loss"] for step, row in first.rows.items()} == {1: 1.0, 2: 2.0, 3: 3.0}
    assert {step: row["train/loss"] for step, row in second.rows.items()} == {3: 3.0, 4: 4.0}
    assert second.rows[4]["cascade/score/math"] == 0.75 and first.rows[1]["train/reward"] == 0.5
    assert (first.run.project, first.run.display_name, first.run.run_group) == ("cascades", "tiny/02-math_rl", "tiny")


@needs("wandb")
def test_a_slip_in_wandbs_block_is_told_by_what_its_library_knows():
    with pytest.raises(ConfigErrors) as caught:
        load_config(compose_config("tiny", ["logger.wandb={projct: mine}"]))
    assert caught.value.problems == ["logger.wandb.projct: unknown key; did you mean project?"]


@dataclass
class WandbFile:
    run: object = None
    rows: dict[int, dict] = field(default_factory=dict)


def read_wandb(folder: Path) -> WandbFile:
    """What an offline run's file holds."""
    from wandb.proto import wandb_internal_pb2

    read = WandbFile()
    (path,) = folder.glob("*.wandb")
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            read.run = record.run
        if record.HasField("history"):
            values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            read.rows.setdefault(record.history.step.num, {}).update(values)
    return read


def records(log: bytes):
    """The records of a log in LevelDB's format: blocks of 32 KiB, each part with its checksum, length and kind before it; W&B's has
    7 bytes of its own in front, which count in the first block."""
    place, begun = 7, b""
    while place + 7 <= len(log):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
            continue
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        begun += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield begun
            begun = b""


@needs("mlflow")
def test_a_service_that_fails_is_told_once_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "store").write_text("no folder")
    run = stage_run(tmp_path, mlflow_enabled=True, mlflow={"tracking_uri": (tmp_path / "store").as_uri()})
    with caplog.at_level(logging.WARNING, logger="nemo_cascade"):
        run.rewind(0)
        for step in (1, 2, 3):
            run.log(METRICS, step)
    (told,) = [record.getMessage() for record in caplog.records if "mlflow" in record.getMessage()]
    assert told.startswith("logger.mlflow_enabled: ") and told.endswith("metrics.jsonl has everything")
    assert len((run.dir / "metrics.jsonl").read_text().splitlines()) == 3


def test_without_trackers_nothing_of_them_is_imported_or_written(tmp_path):
    run = stage_run(tmp_path)
    run.rewind(0)
    run.log(METRICS, 1)
    run.trackers.close()
    assert [path.name for path in run.dir.iterdir()] == ["metrics.jsonl"]


def refused(*overrides: str) -> list[str]:
    with pytest.raises(ConfigErrors) as errors:
        load_config(compose_config("smoke", list(overrides)))
    return errors.value.problems


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_with_its_key(name):
    with patch.object(operation_checks, "find_spec", lambda module: None):
        (told,) = refused(f"+logger.{name}_enabled=true")
    assert told.startswith(f"logger.{name}_enabled: {name} is not installed; pip install {name}")


@pytest.mark.parametrize(
    "override, told",
    [
        ("+logger.wandb.id=x", "logger.wandb.id: set by the stage itself; leave it out"),
        ("+logger.mlflow.experiment_nam=x", "logger.mlflow.experiment_nam: unknown key; did you mean experiment_name?"),
        ("+logger.wandb_enable=true", "logger.wandb_enable: unknown key; did you mean wandb_enabled?"),
    ],
)
def test_a_block_that_cannot_be_is_refused(override, told):
    assert refused(override) == [told]


def test_what_the_cascade_says_of_a_stage():
    from nemo_cascade.cascade.manifest import StageRecord
    from nemo_cascade.cascade.operation import cascade_metrics

    record = StageRecord("02-math_rl", scores={"math": {"mean": 0.5, "n": 8}})
    assert cascade_metrics(2, record) == {"cascade/stage": 2.0, "cascade/score/math": 0.5}
    record.gate = {"action": "rollback", "failed": [["max_drop", "math"]], "differences": {"math": [-0.25, -0.5, 0.0]}}
    assert cascade_metrics(2, record) == {
        "cascade/stage": 2.0,
        "cascade/score/math": 0.5,
        "cascade/verdict": -1.0,
        "cascade/gate/math/delta": -0.25,
    }
