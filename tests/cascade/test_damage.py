"""What is damaged or changed on disk is told by its name, with what to do, before anything is trained on it.

The loops are the stand-ins of test_runner; the real ones come at the end.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cascade.cascade.gate import GateError
from nemo_cascade.cascade.manifest import BACKUP, FILE, PENDING, ManifestError
from nemo_cascade.cascade.runner import RunRefused
from nemo_cascade.cascade.strict import ConfigErrors
from nemo_cascade.data.rows import DataError
from nemo_cascade.engine import seal
from tests import disks
from tests.engine.test_checkpoint import DAMAGE, SHARD, truncated
from test_runner import ORDER, Runs, imports_are_not_collected  # noqa: F401 - the fixture is used by being there

ROOT = Path(__file__).parents[2]
# mopd has a parent, teachers and a judge.
SHORT, GOES_ON = ORDER[:7], ["mopd"]
COMMAND = (f"cascade.order=[{','.join(SHORT)}]",)
PARENT, TEACHER, JUDGE = ("multi_domain_rl", "04-multi_domain_rl"), ("math_rl", "05-math_rl"), ("genrm", "01-genrm")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where a run was killed in mopd, and a copy of it with its rows."""
    place = tmp_path_factory.mktemp("work")
    assert Runs(place / "run", place / "data").killed_in("mopd", *COMMAND) == SHORT[:7]
    return place, shutil.copytree(place, tmp_path_factory.mktemp("copy") / "work")


@pytest.fixture
def killed(work):
    """The run that was killed in mopd, as it was then."""
    place, copy = work
    shutil.rmtree(place)
    shutil.copytree(copy, place)
    return Runs(place / "run", place / "data")


def refused(runs, error=RunRefused, **options) -> str:
    """What is said instead of training anything."""
    with pytest.raises(error) as raised:
        runs(*COMMAND, **options)
    assert runs.loops.calls == []
    return str(raised.value)


CASES = [
    *((*PARENT, what) for what in DAMAGE if "optimizer" not in what),
    *((*other, "a flipped bit in a shard") for other in (TEACHER, JUDGE)),
]


@pytest.mark.parametrize("stage, folder, what", CASES)
def test_a_damaged_checkpoint_is_refused_before_it_is_read(stage, folder, what, killed):
    damage, name, said = DAMAGE[what]
    damaged = killed.run_dir / folder / "step_2"
    damage(damaged / name)
    line = refused(killed)
    assert line.startswith(f"stage {stage}: {damaged / name}: ") and line.endswith(f"--from-stage {stage}")
    assert killed.manifest.stages[stage].status == "done", "nothing is undone by the refusal"


def test_a_stage_with_a_damaged_checkpoint_is_repeated_by_from_stage(killed):
    truncated(killed.run_dir / PARENT[1] / "step_2" / SHARD)
    assert killed(*COMMAND, from_stage=PARENT[0]) == SHORT[3:]


def test_a_surplus_shard_is_to_be_moved_away(killed):
    surplus = killed.run_dir / PARENT[1] / "step_2" / "policy" / "weights" / "__9_0.distcp"
    surplus.write_bytes(b"from elsewhere")
    assert refused(killed) == f"stage multi_domain_rl: {surplus}: does not belong to this checkpoint; move it away"
    surplus.unlink()
    assert killed(*COMMAND) == GOES_ON


def test_the_whole_checkpoint_of_another_stage_is_refused(killed):
    place = killed.run_dir / PARENT[1] / "step_2"
    shutil.rmtree(place)
    shutil.copytree(killed.run_dir / JUDGE[1] / "step_2", place)
    line = refused(killed)
    assert line.startswith(f"stage multi_domain_rl: {place} is whole, but not the checkpoint that the manifest names")


def test_an_edited_manifest_is_refused_until_it_is_as_it_was(killed):
    path = killed.run_dir / FILE
    before = path.read_text()
    path.write_text(before.replace('"mean": 0.1', '"mean": 0.9'))
    line = refused(killed, error=ManifestError)
    assert str(path) in line and "edited or damaged" in line and f"mv {killed.run_dir / BACKUP} {path}" in line
    path.write_text(before)
    assert killed(*COMMAND) == GOES_ON


def test_the_manifest_before_the_last_change_goes_on_to_the_same_end(killed):
    at_the_kill = killed.manifest
    (killed.run_dir / BACKUP).rename(killed.run_dir / FILE)
    assert killed.manifest.stages["mopd"].status == PENDING, "it was the start of mopd that changed it last"
    assert killed(*COMMAND) == GOES_ON
    assert [killed.manifest.stages[name] for name in SHORT[:6]] == [at_the_kill.stages[name] for name in SHORT[:6]]


def test_rows_that_changed_under_begun_stages_are_refused_by_the_name_of_their_file(killed):
    path = killed.data / "mcqa" / "train.jsonl"
    before = path.read_text()
    path.write_text("".join(before.splitlines(keepends=True)[1:]))
    (line,) = refused(killed).splitlines()
    assert line.startswith(f"{path}: changed since stage multi_domain_rl") and line.endswith("--from-stage multi_domain_rl")
    path.write_text(before)
    assert killed(*COMMAND) == GOES_ON


def test_scores_that_were_edited_are_refused_by_their_file(killed):
    path = killed.run_dir / "04-multi_domain_rl" / "validation.json"
    before = path.read_text()
    path.write_text(before.replace("0.2", "0.9", 1))
    gate = "+cascade.stages.multi_domain_rl.gate.max_drop.math=0.05"
    with pytest.raises(GateError) as raised:
        killed(*COMMAND, gate)
    assert str(raised.value) == f"{path}: not what multi_domain_rl wrote; put it back, or repeat multi_domain_rl with --from-stage multi_domain_rl"
    assert killed.loops.calls == []
    path.write_text(before)
    assert killed(*COMMAND, gate) == GOES_ON


def test_validation_rows_that_changed_are_refused_in_one_line_for_all_stages(killed):
    path = killed.data / "mcqa" / "validation.jsonl"
    path.write_text(path.read_text().replace(" ", "  ", 1))
    (line,) = refused(killed).splitlines()
    assert line.startswith(f"{path}: changed since stage sft (and if_rl, multi_domain_rl, mopd) began with it; ")


def test_rows_of_stages_that_have_not_begun_may_change(killed, tmp_path):
    runs = Runs(tmp_path / "run", shutil.copytree(killed.data, tmp_path / "data"))
    runs.killed_in("sft", *COMMAND)
    path = runs.data / "mcqa" / "train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert runs(*COMMAND) == SHORT[1:]


def test_demo_rows_that_are_written_again_are_the_same_and_no_change(killed):
    shutil.rmtree(killed.data)
    assert killed(*COMMAND) == GOES_ON


def test_rows_that_are_gone_are_named(killed):
    path = killed.data / "mcqa" / "train.jsonl"
    path.unlink()
    assert str(path) in refused(killed, error=DataError)


def test_a_read_only_directory_is_refused_before_training(killed, tmp_path):
    with disks.tmpfs(tmp_path / "disk", 2**26) as disk:
        there = Runs(shutil.copytree(killed.run_dir, disk / "run"), killed.data)
        disks.remount(disk, "ro")
        with pytest.raises(ConfigErrors, match=f"cascade.run_dir: {there.run_dir}: cannot be written to .Read-only file system"):
            there(*COMMAND)
        assert there.loops.calls == []
        disks.remount(disk, "rw")
        assert there(*COMMAND) == GOES_ON


def test_what_a_kill_left_is_removed_at_the_next_start(killed):
    for name in (
        "tmp_cascade_manifest.json",
        "07-mopd/tmp_validation.json",
        "07-mopd/rollouts/tmp_step_1.jsonl",
        "07-mopd/tmp_step_2/policy/weights/__0_0.distcp",
    ):
        (killed.run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (killed.run_dir / name).write_text("half")
    killed(*COMMAND)
    assert not list(killed.run_dir.rglob("tmp_*"))


# -------------------------------------------------------------------------------- as a user meets it


def start(run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    """Two stages of `smoke` on two processes, a checkpoint every step."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(ROOT / "examples" / "cascade.py"), "--config-name=smoke", f"cascade.run_dir={run_dir}", "~cascade.judge"),
        *("~data.validation.preference", "cascade.order=[sft,math_rl]", "cascade.validation.num_prompts=1"),
        *(f"cascade.demo_data.{kind}_rows=8" for kind in ("train", "validation", "sft")),
        *("~cascade.demo_data.rows_of", f"cascade.demo_data.path={run_dir.parent.parent / 'data'}"),
        *("checkpointing.save_period=1", "checkpointing.keep_top_k=2", *overrides),
    ]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800
    )


def told(done: subprocess.CompletedProcess) -> str:
    """What the refusal says, which is one line and no traceback of ours."""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("nemo-cascade: ")]
    assert done.returncode != 0 and "exitcode  : 2" in done.stderr and "nemo_cascade/" not in done.stderr, done.stderr
    return line


@pytest.mark.slow
def test_on_two_processes_a_full_disk_and_damage_are_lines_and_the_run_ends_as_if_nothing_had_been(tmp_path):
    (tmp_path / "whole").mkdir()
    assert (undisturbed := start(tmp_path / "whole" / "run")).returncode == 0, undisturbed.stderr
    with disks.tmpfs(tmp_path / "disk", 20 * 2**20) as disk:
        run = disk / "run"
        # Room for one checkpoint and no second.
        assert f"{run / '01-sft'}: the next checkpoint needs" in told(start(run))
        assert seal.check(run / "01-sft" / "step_1")["step"] == 1
        assert not list(run.rglob("tmp_*"))
        disks.remount(disk, "size=200m")
        broken = run / "01-sft" / "step_1" / SHARD
        truncated(broken)
        done = start(run, "cascade.order=[sft]")
        assert done.returncode == 0, done.stderr
        assert f"{broken}: " in done.stderr and "none is left, so the stage begins again" in done.stderr
        truncated(run / "01-sft" / "step_2" / SHARD)
        assert f"stage sft: {run / '01-sft' / 'step_2' / SHARD}: " in told(start(run))
        done = start(run, "--from-stage", "sft")
        assert done.returncode == 0, done.stderr
        hashes = [
            {name: record["checkpoint_hash"] for name, record in json.loads((place / FILE).read_text())["stages"].items()}
            for place in (run, tmp_path / "whole" / "run")
        ]
    assert hashes[0] == hashes[1]
