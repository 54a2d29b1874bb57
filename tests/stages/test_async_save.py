"""Checkpoints that are written while a stage trains on are those of a stage that waits for them, and none that a kill cut short counts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.helpers import run_distributed

STEPS = 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Demonstrations of arithmetic."""
    from nemo_cascade.data.demo import DOMAINS

    path = tmp_path_factory.mktemp("rows") / "sft.jsonl"
    made = DOMAINS["math"].rows(24, "train", level="demo")
    path.write_text("".join(json.dumps(DOMAINS["math"].demonstration(row, n)) + "\n" for n, row in enumerate(made)))
    return path


def trained(folder, rows, async_save, at=None, then=None, writer=None):
    """An SFT stage on its way to STEPS, a checkpoint a step, all kept: (why it left, step -> info of its checkpoint).

    then(stage) is called in the midst of step `at`, before it is saved. writer: stands before what writes, in the forked process.
    """
    from nemo_cascade.engine import checkpoint, parallel, writes
    from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig
    from nemo_cascade.stages import sft
    from nemo_cascade.stages.config import CheckpointingConfig, DataConfig, DatasetConfig, SFTConfig
    from nemo_cascade.stages.context import LoopConfig, StageRun
    from nemo_cascade.stages.interruption import Interrupted, Interruption

    class Stage(StageRun):
        def log(self, metrics, step):
            super().log(metrics, step)
            if steps and async_save:
                assert self.unfinished.final == folder / f"step_{step - 1}" and not self.unfinished.final.exists()
            steps.append(step)
            (folder / f"trained_{step}").touch()
            if step == at:
                then(self)

    steps: list[int] = []
    megatron = MegatronConfig(optimizer=OptimizerConfig(lr=1e-3))
    parallel.init(megatron)
    config = LoopConfig(
        policy=PolicyConfig(model_name="micro", train_global_batch_size=2, megatron_cfg=megatron),
        sft=SFTConfig(max_num_steps=STEPS),
        data=DataConfig(train={"math": DatasetConfig(data_path=str(rows))}),
        checkpointing=CheckpointingConfig(save_period=1, keep_top_k=0, async_save=async_save),
    )
    folder.mkdir(exist_ok=True)
    write = writes._write
    if writer is not None:

        def first(inner, rank, buckets, results):
            writer(Path(buckets[0][0]))
            inner(rank, buckets, results)

        writes._write = lambda parent, inner, *args: write(parent, partial(first, inner), *args)
    try:
        with Interruption(folder, parallel.rank()) as interruption:
            stage = Stage(name="sft", config=config, dir=folder, seed=1, rank=parallel.rank(), interruption=interruption)
            sft.run(stage)
            why = None
    except Interrupted as stopped:
        why = str(stopped)
    finally:
        writes._write = write
    return why, {step: checkpoint.read_info(folder / f"step_{step}") for step in checkpoint.steps(folder)}


def step_of(file: Path) -> int:
    """.../tmp_step_3/policy/weights/FILE -> 3."""
    return int(file.parents[2].name.removeprefix("tmp_step_"))


def after_the_next_step(file: Path) -> None:
    """A writer so late that the weights it writes are changed already where they are trained."""
    deadline = time.monotonic() + 120
    while not (file.parents[3] / f"trained_{step_of(file) + 1}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def late(folder, rows, signalled=None):
    return trained(folder, rows, True, 3, lambda stage: stage.rank == signalled and ask(), after_the_next_step)


def ask():
    os.kill(os.getpid(), signal.SIGUSR1)


def same(infos: dict) -> dict:
    """What has to be equal: all but the lists of shards, which name their folder, and the seal over them."""
    files = {step: {n: f for n, f in info["files"].items() if not n.endswith(".metadata")} for step, info in infos.items()}
    return {step: {**info, "files": files[step]} for step, info in infos.items()}


@pytest.fixture(scope="module")
def waited(rows, tmp_path_factory):
    """The checkpoints of a stage that waited for each."""
    return run_distributed(trained, 2, tmp_path_factory.mktemp("waited"), rows, False)[0][1]


def test_checkpoints_written_beside_the_next_steps_are_those_of_a_stage_that_waits(waited, rows, tmp_path):
    for why, infos in run_distributed(late, 2, tmp_path, rows):
        assert why is None and same(infos) == same(waited) and list(infos) == [1, 2, 3, 4]
    assert not list(tmp_path.glob("tmp_*"))


def test_a_request_to_stop_waits_for_what_is_being_written(waited, rows, tmp_path):
    for why, infos in run_distributed(late, 2, tmp_path, rows, 1):
        assert why.startswith("SIGUSR1: saved step 3 of stage sft") and list(infos) == [1, 2, 3]
    assert same(run_distributed(late, 2, tmp_path, rows)[0][1]) == same(waited)


def failing(folder, rows, how):
    from nemo_cascade.engine import disk

    def fail(file):
        if step_of(file) == 2:
            how(file)

    with pytest.raises(disk.DiskError) as raised:
        trained(folder, rows, True, writer=fail)
    return str(raised.value)


def die(_file):
    os._exit(1)


def lose_the_folder(file):
    if file.parent.name == "weights":
        file.parent.rename(file.parent.with_name("elsewhere"))


@pytest.mark.parametrize("how, said", [(die, "the process that wrote its part died"), (lose_the_folder, "No such file|FileNotFoundError")])
def test_a_writer_that_fails_is_told_of_and_the_checkpoint_before_stays(how, said, waited, rows, tmp_path):
    (told,) = run_distributed(failing, 1, tmp_path, rows, how)
    assert told.startswith(f"{tmp_path / 'step_2'}: not written") and re.search(said, told), told
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_1"]


def killed(folder: str, rows: str) -> None:
    """Killed in step 3, while the writers of step 2 have not begun yet; they leave their numbers."""

    def stuck(file):
        if step_of(file) == 2:
            (Path(folder) / f"writer_{os.getpid()}").touch()
            time.sleep(600)

    def kill(_stage):
        while len(list(Path(folder).glob("writer_*"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    trained(Path(folder), Path(rows), True, 3, kill, stuck)


@pytest.mark.slow
def test_killed_before_its_files_are_written_a_checkpoint_is_none_and_its_writers_are_gone(rows, tmp_path):
    (_, whole), *_ = run_distributed(trained, 1, tmp_path / "whole", rows, False)
    run = tmp_path / "run"
    command = [sys.executable, "-c", "import sys; from test_async_save import killed; killed(*sys.argv[1:])", str(run), str(rows)]
    places = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}, timeout=600)
    assert done.returncode == -signal.SIGKILL
    writers = [int(path.name.removeprefix("writer_")) for path in run.glob("writer_*")]
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(writer) for writer in writers):
        assert time.monotonic() < deadline, "a writer outlived its rank"
        time.sleep(0.05)
    assert sorted(path.name for path in run.glob("*step_*")) == ["step_1", "tmp_step_2"]
    for mark in run.glob("trained_*"):
        mark.unlink()
    assert same(run_distributed(trained, 1, run, rows, True)[0][1]) == same(whole)
