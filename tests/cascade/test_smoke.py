"""The stock `smoke` config through the real loops on two processes, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config
from nemo_cascade.data.demo import DOMAINS
from tests.docs.glossary import unexplained

ROOT = Path(__file__).parents[2]


def compared(path: Path) -> bool:
    """Whether a judge said something about every stored reply."""
    *groups, _seal = [json.loads(line) for line in path.read_text().splitlines()]
    rollouts = [rollout for group in groups for rollout in group["rollouts"]]
    return len(rollouts) == 16 and all("judge_readable" in rollout["info"] for rollout in rollouts)


def worked_on(path: Path) -> bool:
    """Whether every stored rollout had a session, whose outcome was judged."""
    *groups, _seal = [json.loads(line) for line in path.read_text().splitlines()]
    rollouts = [rollout for group in groups for rollout in group["rollouts"]]
    return len(rollouts) == 4 and all(
        rollout["info"]["turns"] >= 1 and "outcome" in rollout["info"] and rollout["info"]["failed_tests"] for rollout in rollouts
    )


def test_smoke_runs_every_stage_and_leaves_all_it_promises(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "examples" / "cascade.py"), "--config-name=smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "smoke"
    stages = json.loads((run / "cascade_manifest.json").read_text())["stages"]
    assert list(stages) == list(load_config(compose_config("smoke")).stages)
    scored = set(DOMAINS) - {"preference_pairs"}
    own = {"genrm": {"preference_pairs"}, "math_rl": {"math"}, "preference_rl": {"preference"}}
    for name, stage in stages.items():
        assert stage["status"] == "done"
        assert set(stage["scores"]) == own.get(name, scored | {"swe_agentic"} if name == "swe_agentic_rl" else scored)
        folder = run / stage["directory"]
        for file in ("config.yaml", "metrics.jsonl", "validation.json", "step_2/training_info.json"):
            assert (folder / file).is_file(), folder / file
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) == 2 and unexplained(steps[0] | steps[1]) == set(), "docs/metrics.md explains every metric"
        assert (folder / "rollouts").is_dir() == (name not in ("genrm", "sft"))
        if name in ("preference_rl", "rlhf"):
            # A step whose replies were all cut teaches nothing here (grpo.overlong), so it has no loss and moves nothing.
            first = next(step for step in steps if step["train/truncation_rate"] < 1)
            assert first["train/kl_penalty"] == 0.0, "a stage begins where its reference is"
            assert compared(folder / "rollouts" / "step_1.jsonl"), "the judge was asked about every reply"
        if name == "swe_agentic_rl":
            assert worked_on(folder / "rollouts" / "step_1.jsonl")
            assert all("train/avg_turns_per_sample" in step for step in steps)
    hashes = {name: stage["checkpoint_hash"] for name, stage in stages.items()}
    assert hashes["mopd"] != hashes["multi_domain_rl"], "distillation from a teacher that differs moves the student"
    assert (run / "report" / "scores.md").is_file() and (run / "report" / "index.html").is_file()
    # What a log file of a user holds besides the cascade's own lines; torchrun's remark on threads is its own.
    assert "Warning" not in done.stderr, done.stderr
