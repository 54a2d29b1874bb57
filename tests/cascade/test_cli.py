"""The commands as a user starts them: exit codes, what is said on which stream, and that nothing was touched."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest
from nemo_cascade.stages.metrics import MetricsLog

ROOT = Path(__file__).parents[2]
TYPO = "cascade.stages.mopd.grpo.max_num_stepz=30"
TYPO_LINE = "nemo-cascade: cascade.stages.mopd.grpo.max_num_stepz: unknown key; did you mean max_num_steps?\n"


def call(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def cascade(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return call(str(ROOT / "examples" / "cascade.py"), *arguments, cwd=cwd, **environment)


def module(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return call("-m", "nemo_cascade", *arguments, cwd=cwd, **environment)


def test_a_typo_ends_with_one_line_and_code_2_before_anything_is_started(tmp_path):
    done = cascade("--config-name=tiny", TYPO, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", TYPO_LINE)
    assert list(tmp_path.iterdir()) == []


def test_a_typo_is_found_without_importing_torch(tmp_path):
    program = (
        "import sys\n"
        "from nemo_cascade.cascade.cli import load\n"
        "try:\n    load('tiny', None, None, ['policy.precison=x'], 2)\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, 'megatron' in sys.modules)\n"
    )
    assert call("-c", program, cwd=tmp_path).stdout == "2 False False\n"


def test_under_torchrun_one_rank_speaks(tmp_path):
    script = str(ROOT / "examples" / "cascade.py")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = call(*torchrun, script, "--config-name=tiny", TYPO, cwd=tmp_path)
    assert done.returncode != 0
    before, _, last = done.stderr.partition("Root Cause")
    assert TYPO_LINE in before and before.count("unknown key") == 1
    # torchrun's own pages end with the reason.
    assert "exitcode  : 2" in last and f"traceback : {TYPO_LINE}" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"half": ', "row 1: not JSON"),
        (json.dumps({"responses_create_params": {"input": "2+2 " * 600}, "expected_answer": "4"}), "row 1: the prompt has"),
    ],
)
def test_under_torchrun_a_bad_row_is_one_line_before_anything_is_trained(line, said, tmp_path):
    (tmp_path / "own.jsonl").write_text(f"{line}\n")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "examples" / "cascade.py"))
    own = "cascade.stages.math_rl.data.train.math.data_path=own.jsonl"
    done = call(*torchrun, "--config-name=smoke", own, cwd=tmp_path, OMP_NUM_THREADS="1")
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("nemo-cascade: ")]
    assert done.returncode != 0 and f"own.jsonl, {said}" in told
    # torchrun shows a traceback of its own; none of a rank's may stand beside it.
    assert "nemo_cascade/" not in done.stderr, done.stderr
    assert not list((tmp_path / "runs" / "smoke").glob("[0-9]*"))


@pytest.mark.parametrize("name, more", [("moe_router_topkk", "did you mean moe_router_topk?"), ("moe_aux_loss_coeff", "set by")])
def test_a_model_override_that_cannot_be_is_one_line(tmp_path, name, more):
    done = cascade("--config-name=smoke", f"policy.megatron_cfg.model_overrides={{{name}: 1}}", cwd=tmp_path)
    assert done.returncode == 2 and f"model_overrides.{name}" in done.stderr
    assert more in done.stderr and "Traceback" not in done.stderr


def test_the_world_size_of_the_launcher_is_checked(tmp_path):
    layout = ["policy.megatron_cfg.tensor_model_parallel_size=2", "policy.megatron_cfg.sequence_parallel=true"]
    done = cascade("--config-name", "tiny", *layout, cwd=tmp_path, WORLD_SIZE="3", RANK="0")
    assert done.returncode == 2
    assert "does not divide the 3 started processes" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config-name", "tiny"],
        ["--config-name=tiny", "cascade.seed=3"],
        ["cascade.seed=3", "--config-name=smoke.yaml"],
        ["--config-dir", "own", "--config-name", "mine"],
        ["--config", "own/mine.yaml"],
    ],
)
def test_every_spelling_of_a_config_is_accepted(arguments, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text("defaults: [tiny, _self_]\n")
    done = module("check", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    stages = 12 if "--config-name=smoke.yaml" in arguments else 11
    domains = "mcqa, tool_use, structured_outputs, instruction_following"
    assert f"4  multi_domain_rl: rl on {domains}, from if_rl" in done.stdout
    assert "1  genrm: sft on preference_pairs, from fresh weights" in done.stdout and f"ok: {stages} stages" in done.stdout


def test_check_lists_all_problems(tmp_path):
    done = module("check", TYPO, "policy.precision=int4", "--world-size=2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--config-name=tinyy"], ["--config", "nowhere.yaml"], ["--config-dir=nowhere"]])
def test_a_config_that_is_not_there_is_one_line(arguments, tmp_path):
    done = module("check", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_status_shows_the_table_of_a_run(tmp_path):
    manifest = Manifest(tmp_path / "run")
    record = manifest.add("sft")
    record.status, record.scores = DONE, {"math": {"mean": 0.25, "n": 300}}
    manifest.save()
    done = module("status", "run", cwd=tmp_path)
    assert done.returncode == 0 and "0.250" in done.stdout and "sft" in done.stdout


def test_status_cuts_no_figure_off_and_tells_the_step_of_a_running_stage(tmp_path):
    manifest = Manifest(tmp_path / "run")
    scores = {f"a_domain_of_a_long_name_{n}": {"mean": n / 16, "n": 300} for n in range(12)}
    for name, status in (("sft", DONE), ("if_rl", RUNNING)):
        record = manifest.add(name)
        record.status, record.scores = status, scores
    manifest.save()
    log = MetricsLog(manifest.directory("if_rl") / "metrics.jsonl")
    log.path.parent.mkdir(parents=True)
    log.append({"train/reward": 0.5}, 7)
    shown = module("status", "run", cwd=tmp_path).stdout
    assert all(f"{score['mean']:.3f}" in shown and name in shown for name, score in scores.items())
    assert "running, step 7" in shown and "…" not in shown


def test_status_of_no_run_says_so(tmp_path):
    done = module("status", "run", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("nemo-cascade: run: no cascade_manifest.json")


def test_status_of_a_broken_manifest_says_so(tmp_path):
    (tmp_path / "cascade_manifest.json").write_text("{")
    done = module("status", ".", cwd=tmp_path)
    assert done.returncode == 2 and "not a manifest" in done.stderr and "Traceback" not in done.stderr


def test_pack_writes_a_folder_and_says_how_full_its_packs_are(tmp_path):
    row = {"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 9)
    done = module("pack", "rows.jsonl", "--out", "packed", "--capacity", "64", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "ok: 9 documents" in done.stdout and "packed" in done.stdout
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {"packing.json", "shard_000000.parquet"}


def test_pack_refuses_a_document_longer_than_a_pack_in_a_line_a_document_and_leaves_out_what_it_is_told_to(tmp_path):
    rows = [[{"role": "user", "content": "2 " * n}, {"role": "assistant", "content": "4"}] for n in (1, 90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    command = ("pack", "rows.jsonl", "--out", "packed", "--capacity", "64")
    done = module(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("nemo-cascade: rows.jsonl:2 ")
    assert "Traceback" not in done.stderr and not (tmp_path / "packed").exists()
    done = module(*command, "--on-too-long", "skip", cwd=tmp_path)
    assert done.returncode == 0 and "left out: 1 documents longer than a pack and 0 bad rows" in done.stdout


def test_a_port_in_use_is_told_before_anything_is_served(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = module("gym-serve", "math", "--port", str(port), cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert f"--port {port}: Address already in use" in done.stderr and "choose another" in done.stderr and "Traceback" not in done.stderr
