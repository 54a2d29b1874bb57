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

from nemo_cascade.data.demo import DOMAINS

ROOT = Path(__file__).parents[2]
# Only so that a run that hangs ends.
TIMEOUT = 1800
ORDER = "genrm sft if_rl multi_domain_rl math_rl preference_rl mopd rlhf long_context_rl code_rl swe_rl".split()
ROWS = {
    "if_rl": {"instruction_following": "letters"},
    "multi_domain_rl": {"mcqa": "letters", "instruction_following": "letters"},
    "math_rl": {"math": "letters"},
    "preference_rl": {"preference": "judged"},
    "rlhf": {"preference": "judged"},
    "long_context_rl": {"long_context": "letters"},
    "code_rl": {"code_gen": "programs"},
    "swe_rl": {"swe_repair": "letters"},
}


def start(run_dir: Path) -> subprocess.Popen:
    """`smoke` with enough SFT steps that replies end, and RL rows that a babbling model answers well about half the time."""
    paths = write_rows(run_dir.parent)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"),
        *("--rdzv-endpoint=localhost:0", "examples/cascade.py", "--config-name=smoke", f"cascade.run_dir={run_dir}"),
        *(f"cascade.order=[{','.join(ORDER)}]", "cascade.validation.num_prompts=1", "~cascade.demo_data.rows_of"),
        *(f"cascade.demo_data.{kind}={n}" for kind, n in (("train_rows", 8), ("validation_rows", 1), ("sft_rows", 64))),
        *("cascade.stages.sft.sft.max_num_steps=16", "cascade.stages.sft.policy.megatron_cfg.scheduler.lr_warmup_iters=2"),
        *("cascade.stages.genrm.sft.max_num_steps=6", "+cascade.stages.genrm.checkpointing.save_period=3"),
        *("+cascade.stages.sft.checkpointing.save_period=5", "+cascade.stages.math_rl.checkpointing.save_period=1"),
        *("cascade.stages.if_rl.grpo.use_dynamic_sampling=true", "+cascade.stages.if_rl.checkpointing.save_period=1"),
        *(
            f"cascade.stages.{stage}.data.train.{domain}.data_path={paths[kind]}"
            for stage, domains in ROWS.items()
            for domain, kind in domains.items()
        ),
    ]
    log = open(run_dir.with_suffix(".log"), "a")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def write_rows(folder: Path) -> dict[str, Path]:
    """Files of rows that earn something: verified, compared by the judge, and with programs to be run among them."""
    letters = [row(letter) for letter in "aeiorstn"]
    agent = {"type": "responses_api_agents", "name": "genrm_compare_simple_agent"}
    kinds = {
        "letters": letters,
        "judged": [{**row, "agent_ref": agent, "reference_reply": "Hello"} for row in letters],
        "programs": [*letters[:6], *DOMAINS["code_gen"].rows(2, "train")],
    }
    paths = {kind: folder / f"{kind}.jsonl" for kind in kinds}
    for kind, rows in kinds.items():
        paths[kind].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


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


def rolled_out(folder: Path) -> bool:
    """Whether rollouts with their rewards are on disk."""
    return any((folder / "rollouts").glob("step_*.jsonl"))


# stage -> (what is interrupted, whether the stage's folder shows that it is going on)
MOMENTS = {
    "genrm": ("the judge's training, after a checkpoint", lambda folder: lines(folder / "metrics.jsonl") >= 4),
    "sft": ("SFT, after a checkpoint", lambda folder: lines(folder / "metrics.jsonl") >= 8),
    "if_rl": ("a step whose groups were drawn several times", lambda folder: (folder / "step_1").is_dir()),
    "multi_domain_rl": ("the write of a checkpoint", lambda folder: any(folder.glob("tmp_step_*"))),
    "math_rl": ("a rollout, after a checkpoint", lambda folder: (folder / "step_1").is_dir()),
    "preference_rl": ("a step, after its rollout was judged", rolled_out),
    "mopd": ("distillation", lambda folder: lines(folder / "metrics.jsonl") >= 1),
    "rlhf": ("the second of two judged steps", lambda folder: lines(folder / "metrics.jsonl") >= 1),
    "long_context_rl": ("a step, after its rollout was verified", rolled_out),
    "code_rl": ("a step, after programs were run", rolled_out),
    "swe_rl": ("the last step of all", lambda folder: lines(folder / "metrics.jsonl") >= 1),
}


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_with_bit_identical_weights(tmp_path):
    assert list(MOMENTS) == ORDER, "one run is killed at all moments in turn"
    unbroken = finish(tmp_path / "unbroken")
    assert len(set(unbroken.values())) == len(unbroken), "a stage that learns nothing cannot show that it resumes"
    steps = (tmp_path / "unbroken" / "03-if_rl" / "metrics.jsonl").read_text().splitlines()
    draws = [json.loads(step)["train/dynamic_sampling_num_gen_batches"] for step in steps]
    assert max(draws) > 1, "no group was replaced, so nothing shows that a resumed step draws the same ones again"
    broken = tmp_path / "broken"
    for number, (stage, (interrupted, moment)) in enumerate(MOMENTS.items()):
        folder = broken / f"{number + 1:02d}-{stage}"
        kill_when(broken, lambda: moment(folder))
        manifest = json.loads((broken / "cascade_manifest.json").read_text())
        states = [record["status"] for record in manifest["stages"].values()]
        assert states == ["done"] * number + ["running"] + ["pending"] * (len(states) - number - 1), interrupted
        if stage == "math_rl":
            assert not (folder / "rollouts" / "step_2.jsonl").exists(), "it was killed after the rollout"
    assert finish(broken) == unbroken
