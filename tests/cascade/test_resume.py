"""Killed at any moment, the same command goes on and ends with bit-identical weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TIMEOUT = 600
RL_DATA = {"if_rl": ["instruction_following"], "math_rl": ["math"], "multi_domain_rl": ["mcqa", "instruction_following"]}


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
        *("+cascade.stages.sft.checkpointing.save_period=5", "+cascade.stages.math_rl.checkpointing.save_period=1"),
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


# Each moment lies in another stage, so that one run can be killed at all of them in turn.
MOMENTS = {
    "inside SFT, after a checkpoint": lambda run: lines(run / "01-sft" / "metrics.jsonl") >= 8,
    "between a rollout and its training step": lambda run: any((run / "02-if_rl" / "rollouts").glob("step_*")),
    "inside a rollout, after a checkpoint": lambda run: (run / "03-math_rl" / "step_1").is_dir(),
    "inside a checkpoint write": lambda run: any((run / "04-multi_domain_rl").glob("tmp_step_*")),
    "inside distillation": lambda run: lines(run / "05-mopd" / "metrics.jsonl") >= 1,
}


def test_a_run_killed_in_every_stage_ends_with_bit_identical_weights(tmp_path):
    unbroken = finish(tmp_path / "unbroken")
    assert len(set(unbroken.values())) == len(unbroken), "a stage that learns nothing cannot show that it resumes"
    broken = tmp_path / "broken"
    for number, (name, moment) in enumerate(MOMENTS.items()):
        kill_when(broken, lambda: moment(broken))
        manifest = json.loads((broken / "cascade_manifest.json").read_text())
        states = [stage["status"] for stage in manifest["stages"].values()]
        assert states == ["done"] * number + ["running"] + ["pending"] * (len(states) - number - 1), name
        if "inside a rollout" in name:
            assert not (broken / "03-math_rl" / "rollouts" / "step_2.jsonl").exists(), "it was killed after the rollout"
    assert finish(broken) == unbroken
