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
RL_DATA = {"if_rl": ["instruction_following"], "math_rl": ["math"], "multi_domain_rl": ["math", "mcqa"]}


def start(run_dir: Path) -> subprocess.Popen:
    """`smoke` with enough SFT steps that replies end, and RL rows that a babbling model answers well about half the time."""
    rows = run_dir.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row(letter)) + "\n" for letter in "aeiorstn"))
    paths = [
        f"cascade.stages.{stage}.data.train.{domain}.data_path={rows}" for stage, domains in RL_DATA.items() for domain in domains
    ]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=localhost:0", "examples/cascade.py", "--config-name=smoke", f"cascade.run_dir={run_dir}"),
        *("cascade.stages.sft.sft.max_num_steps=16", "cascade.stages.sft.policy.megatron_cfg.scheduler.lr_warmup_iters=2"),
        *paths,
    ]
    log = open(run_dir.with_suffix(".log"), "a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def row(letter: str) -> dict:
    """An instruction that says nothing about thinking, length or sense."""
    prompt = f"Avoid the letter {letter} ."
    return {
        "responses_create_params": {"input": [{"role": "user", "content": prompt}]},
        "agent_ref": {"type": "responses_api_agents", "name": "instruction_following_simple_agent"},
        "prompt": prompt,
        "enable_thinking": False,
        "instruction_id_list": ["keywords:letter_frequency"],
        "kwargs": [{"letter": letter, "let_frequency": 1, "let_relation": "less than"}],
    }


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
    """Final hashes of a run that nobody killed, in which every stage changed the weights."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    hashes = finish(run_dir)
    assert len(set(hashes.values())) == len(hashes), "a stage that learns nothing cannot show that it resumes"
    return hashes


MOMENTS = {
    "inside SFT": lambda run: lines(run / "01-sft" / "metrics.jsonl") >= 3,
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
