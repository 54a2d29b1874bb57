"""`nemo-cascade check --run`: every stage once, for real, and nothing left behind; what is wrong is found before the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade.manifest import DONE, Manifest
from tests.helpers import run_distributed

SHORT = [
    *("cascade.order=[sft,math_rl]", "~cascade.judge", "~data.validation.preference", "cascade.validation.num_prompts=2"),
    *("~cascade.demo_data.rows_of", "cascade.demo_data.train_rows=8", "cascade.demo_data.validation_rows=2"),
    "cascade.demo_data.sft_rows=16",
]


def check(tmp_path, *arguments: str, processes: int = 0) -> subprocess.CompletedProcess:
    """With processes under torchrun, which knows --run as an abbreviation of an option of its own."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    option = "--preflight" if processes else "--run"
    command = [sys.executable, *torchrun, "-m", "nemo_cascade", "check", option, *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)


def test_two_stages_in_one_process_run_once_and_leave_nothing_but_the_demo_rows(tmp_path):
    done = check(tmp_path, "--config-name=smoke", *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.split("pre-flight")
    for stage in ("sft", "math_rl"):
        assert said[0].count(f"  {stage}: ") == 6 and f"{stage}: ok" in said[0]
    rows = [line.split("│") for line in said[1].splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["sft", "math_rl"]
    assert all(1.0 <= float(row[6]) < 1.001 for row in rows)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke"]
    assert [path.name for path in (tmp_path / "runs" / "smoke").iterdir()] == ["data"]


def test_a_preflight_that_is_asked_to_stop_leaves_no_folder(tmp_path):
    command = [sys.executable, "-m", "nemo_cascade", "check", "--run", "--config-name=smoke", *SHORT]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert any("sft: one step of its loop" in line for line in running.stdout)
        assert [path.name for path in (tmp_path / "runs").glob("tmp_*")] == ["tmp_preflight_smoke"]
        running.terminate()
        running.communicate(timeout=120)
    assert running.returncode == 143
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke"]


def test_a_run_that_has_begun_with_another_config_is_refused_and_left_alone(tmp_path):
    run_dir = tmp_path / "runs" / "smoke"
    manifest = Manifest(run_dir)
    manifest.add("sft").status = DONE
    manifest.save()
    manifest.directory("sft").mkdir()
    (manifest.directory("sft") / "config.yaml").write_text("{cascade: {parent: null, seed: 12}}")
    before = manifest.path.read_bytes()
    done = check(tmp_path, "--config-name=smoke", *SHORT)
    assert done.returncode == 2 and "stage sft was finished with another config" in done.stderr, done.stderr
    assert manifest.path.read_bytes() == before and {p.name for p in run_dir.iterdir()} == {"01-sft", manifest.path.name}


def test_weights_that_do_not_fit_are_told_before_the_run(tmp_path):
    from safetensors.torch import save_file
    import torch

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    save_file({"backbone.norm_f.weight": torch.ones(3)}, tmp_path / "theirs" / "model.safetensors")
    done = check(tmp_path, "--config-name=smoke", *SHORT, "+checkpointing.pretrained_checkpoint.path=theirs")
    assert done.returncode != 0
    assert "failed in one step of its loop of sft" in done.stdout and "theirs does not hold this model" in done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke"]


def mismatch_of_an_engine_over_other_weights():
    import dataclasses

    from nemo_cascade.cascade import preflight
    from nemo_cascade.cascade.compose import compose_config
    from nemo_cascade.cascade.config import load_config
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.rollouts import make_engine

    stage = load_config(compose_config("smoke", SHORT)).stages["math_rl"]
    parallel.init(stage.policy.megatron_cfg)
    stage = preflight.small(stage)
    policy = Policy(stage.policy, seed=1)
    same = preflight.sampling_mismatch(policy, stage)
    other = make_engine(Policy(dataclasses.replace(stage.policy), seed=2))
    preflight.make_engine = lambda policy: other
    try:
        preflight.sampling_mismatch(policy, stage)
    except preflight.RunRefused as error:
        return same, str(error)
    finally:
        preflight.make_engine = make_engine


def test_an_engine_that_samples_from_other_weights_is_refused():
    same, said = run_distributed(mismatch_of_an_engine_over_other_weights, 1)[0]
    assert 1 <= same < 1.0001 and "sampled tokens have other probabilities in training" in said


@pytest.mark.slow
def test_the_whole_cascade_on_two_processes(tmp_path):
    # Its own lengths and batches; fewer rows, whose generation is no part of this.
    few = [f"cascade.demo_data.{kind}_rows=64" for kind in ("train", "validation", "sft")]
    done = check(tmp_path, "--config-name=tiny", "~cascade.demo_data.rows_of", *few, processes=2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count(": ok") == 11
    assert not list((tmp_path / "runs").glob("tmp_*"))


def test_check_asks_the_judges_that_are_served_unless_told_not_to(tmp_path):
    judge = "env.judges={math: {base_url: 'http://127.0.0.1:9/v1', model: judge}}"
    command = [sys.executable, "-m", "nemo_cascade", "check", "--config-name=smoke", judge]
    asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert asked.returncode == 2 and asked.stderr.count("\n") == 1
    assert "env.judges.math: http://127.0.0.1:9/v1/models cannot be reached" in asked.stderr
    assert "Start it, or look at the config alone with --offline" in asked.stderr
    assert subprocess.run([*command, "--offline"], cwd=tmp_path, timeout=120).returncode == 0
