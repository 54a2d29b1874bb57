"""The stock `smoke` config through the real loops on two processes, as a user starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_smoke_runs_every_stage_and_leaves_all_it_promises(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "examples" / "cascade.py"), "--config-name=smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "smoke"
    stages = json.loads((run / "cascade_manifest.json").read_text())["stages"]
    assert list(stages) == ["sft", "if_rl", "math_rl", "multi_domain_rl", "mopd"]
    hashes = [stage["checkpoint_hash"] for stage in stages.values()]
    for stage in stages.values():
        assert stage["status"] == "done" and set(stage["scores"]) == {"instruction_following", "math", "mcqa"}
        folder = run / stage["directory"]
        for name in ("config.yaml", "metrics.jsonl", "validation.json", "step_2/training_info.json"):
            assert (folder / name).is_file(), folder / name
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        assert (folder / "rollouts").is_dir() == (folder.name != "01-sft")
    first = json.loads((run / "02-if_rl" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["train/kl_penalty"] == 0.0, "a stage begins where its reference is"
    assert hashes[0] != hashes[-1], "distillation from a teacher that differs moves the student"
    assert (run / "report" / "scores.md").is_file() and (run / "report" / "rewards.png").is_file()
    # What a log file of a user holds besides the cascade's own lines; torchrun's remark on threads is its own.
    assert "Warning" not in done.stderr, done.stderr
