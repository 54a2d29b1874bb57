"""Killed at any moment, the same command goes on and ends with bit-identical weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT = 300


def start(run_dir: Path) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=localhost:0", "examples/cascade.py", "--config-name=smoke", f"cascade.run_dir={run_dir}"),
    ]
    log = open(run_dir.with_suffix(".log"), "a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(run_dir: Path) -> dict:
    """Runs to the end; returns stage -> hash of its final weights."""
    code = start(run_dir).wait(timeout=TIMEOUT)
    assert code == 0, run_dir.with_suffix(".log").read_text()[-4000:]
    stages = json.loads((run_dir / "cascade_manifest.json").read_text())["stages"]
    return {name: stage["checkpoint_hash"] for name, stage in stages.items()}


def kill_when(run_dir: Path, moment) -> None:
    """Starts the run and kills every process of it with SIGKILL as soon as moment() is true."""
    process = start(run_dir)
    deadline = time.monotonic() + TIMEOUT
    while not moment():
        assert process.poll() is None, f"ended before the moment:\n{run_dir.with_suffix('.log').read_text()[-4000:]}"
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.001)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(family, timeout=10)
    process.wait(timeout=10)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("unbroken") / "run")


MOMENTS = {
    "inside SFT": lambda run: lines(run / "01-sft" / "metrics.jsonl") >= 1,
    "inside a rollout": lambda run: lines(run / "02-if_rl" / "metrics.jsonl") >= 1,
    "between a rollout and its training step": lambda run: any((run / "02-if_rl" / "rollouts").glob("step_*")),
    "inside a checkpoint write": lambda run: any((run / "03-math_rl").glob("tmp_step_*")),
    "inside distillation": lambda run: lines(run / "05-mopd" / "metrics.jsonl") >= 1,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_resumes_to_bit_identical_weights(moment, unbroken, tmp_path):
    run_dir = tmp_path / "run"
    kill_when(run_dir, lambda: MOMENTS[moment](run_dir))
    manifest = json.loads((run_dir / "cascade_manifest.json").read_text())
    assert any(stage["status"] != "done" for stage in manifest["stages"].values()), "it was killed too late to show anything"
    assert finish(run_dir) == unbroken
