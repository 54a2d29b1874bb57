"""A checkpoint is as it was written or it is not read; the one before it is not lost, whatever happens to disk or process."""

import os
import shutil
from pathlib import Path

import pytest

from nemo_cascade.engine import checkpoint, seal
from tests import disks
from tests.engine.test_policy import build, train
from tests.helpers import run_distributed

SHARD = "policy/weights/__0_0.distcp"


def two_steps(directory, _):
    """Checkpoints of two steps; what a policy of that size is estimated to need."""
    policy = build()
    for _ in range(2):
        train(policy, 1)
        checkpoint.save(policy, directory, {"note": policy.step}, keep=0)
    return policy.checkpoint_bytes()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(stage folder with step_1 and step_2, the estimated size of one); not to be changed."""
    folder = tmp_path_factory.mktemp("written")
    (estimate,) = run_distributed(two_steps, 1, folder, None)
    return folder, estimate


@pytest.fixture
def stage(written, tmp_path):
    """A copy of the stage folder."""
    return shutil.copytree(written[0], tmp_path / "stage")


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def deleted(path: Path) -> None:
    path.unlink()


# (what happens to a file, which file, what is said of it)
DAMAGE = {
    "a truncated shard": (truncated, SHARD, "[0-9,]+ bytes, but .* were written"),
    "a flipped bit in a shard": (flipped, SHARD, "its content changed since it was written"),
    "a flipped bit in the optimizer": (flipped, "policy/optimizer/__0_0.distcp", "its content changed"),
    "a deleted shard": (deleted, SHARD, "the file is gone"),
    "a truncated info file": (truncated, seal.INFO, "cannot be read"),
    "a deleted info file": (deleted, seal.INFO, "the file is gone"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_the_checkpoint_before_is_gone_back_to(what, stage, caplog):
    damage, name, said = DAMAGE[what]
    damage(stage / "step_2" / name)
    with pytest.raises(seal.Damaged, match=f"step_2/{name}: {said}"):
        seal.check(stage / "step_2")
    assert checkpoint.latest_whole(stage) == stage / "step_1"
    (line,) = caplog.messages
    assert f"step_2/{name}" in line and f"going back to {stage / 'step_1'}" in line and "damaged_step_2" in line
    assert (stage / "damaged_step_2").is_dir() and checkpoint.steps(stage) == [1]


def test_an_edited_info_file_is_damage(stage):
    path = stage / "step_2" / seal.INFO
    path.write_text(path.read_text().replace('"note": 2', '"note": 3'))
    with pytest.raises(seal.Damaged, match=f"{path}: its content changed since it was written .its seal does not fit"):
        checkpoint.read_info(stage / "step_2")


def test_where_all_are_damaged_the_stage_begins_again(stage, caplog):
    for step in (1, 2):
        truncated(stage / f"step_{step}" / SHARD)
    assert checkpoint.latest_whole(stage) is None
    assert "none is left, so the stage begins again" in caplog.messages[-1]


def test_a_surplus_file_is_to_be_moved_away_and_costs_no_step(stage):
    surplus = stage / "step_2" / "policy" / "weights" / "__7_0.distcp"
    surplus.write_bytes(b"from elsewhere")
    with pytest.raises(seal.Surplus, match="__7_0.distcp: does not belong to this checkpoint; move it away"):
        checkpoint.latest_whole(stage)
    surplus.unlink()
    assert checkpoint.latest_whole(stage) == stage / "step_2"


def test_only_what_is_read_is_hashed_and_only_once(stage, monkeypatch):
    hashed = []
    honest = seal.file_hash
    monkeypatch.setattr(seal, "file_hash", lambda path: hashed.append(path.name) or honest(path))
    flipped(stage / "step_2/policy/optimizer/__0_0.distcp")
    for _ in range(2):
        assert seal.check(stage / "step_2", seal.WEIGHTS)["step"] == 2
    assert sorted(hashed) == sorted(path.name for path in (stage / "step_2" / "policy" / "weights").iterdir())
    flipped(stage / "step_2" / SHARD)
    with pytest.raises(seal.Damaged, match="its content changed"):
        seal.check(stage / "step_2", seal.WEIGHTS)


def killed_while_deleting(directory, _):
    """A third step of which two are kept, killed among the deletions; then a fourth."""
    policy = build()
    checkpoint.load(policy, checkpoint.latest_whole(directory))
    train(policy, 1)
    honest = shutil.rmtree

    def killed(path, *args, **kwargs):
        (path / seal.INFO).unlink()
        raise KeyboardInterrupt

    shutil.rmtree = killed
    try:
        checkpoint.save(policy, directory, {}, keep=2)
    except KeyboardInterrupt:
        pass
    finally:
        shutil.rmtree = honest
    after_kill = sorted(path.name for path in directory.iterdir())
    train(policy, 1)
    checkpoint.save(policy, directory, {}, keep=1, protect=[2])
    return after_kill, sorted(path.name for path in directory.iterdir())


def test_a_kill_among_deletions_leaves_no_folder_that_looks_whole(stage):
    ((after_kill, at_the_end),) = run_distributed(killed_while_deleting, 1, stage, None)
    assert after_kill == ["step_2", "step_3", "tmp_step_1_gone"]
    assert at_the_end == ["step_2", "step_4"], "what a kill left is removed by the next save, what is protected stays"


# -------------------------------------------------------------------------------- a disk that is full


def saved_on(directory, leave):
    """What a third save says, and what is there afterwards. leave: bytes free as the writing begins (None: all the time)."""
    from nemo_cascade.engine.disk import DiskError

    policy = build()
    checkpoint.load(policy, checkpoint.latest_whole(directory))
    train(policy, 1)
    honest = policy.save

    def on_a_disk_that_filled_up(path, **options):
        disks.fill(directory.parent, leave)
        honest(path, **options)

    if leave is not None:
        policy.save = on_a_disk_that_filled_up
    said = None
    try:
        checkpoint.save(policy, directory, {}, keep=1)
    except DiskError as error:
        said = str(error)
    return said, sorted(path.name for path in directory.iterdir()), seal.check(checkpoint.latest_whole(directory))["step"]


def test_a_save_that_would_not_fit_is_refused_with_numbers_before_it_begins(written, tmp_path):
    source, _ = written
    with disks.tmpfs(tmp_path / "disk", 60 * 2**20) as disk:
        shutil.copytree(source, disk / "stage")
        size = sum(seal.sizes(source / "step_2").values())
        disks.fill(disk, leave=size // 2)
        ((said, there, step),) = run_distributed(saved_on, 1, disk / "stage", None)
    assert f"{disk / 'stage'}: the next checkpoint needs" in said and "are free; make room" in said
    assert there == ["step_1", "step_2"] and step == 2


@pytest.mark.parametrize("part", [0.0, 0.02, 0.4, 0.999], ids=["at once", "in the weights", "in the optimizer", "at the end"])
def test_a_disk_that_fills_up_while_saving_leaves_nothing_half_written(part, written, tmp_path):
    source, _ = written
    size = sum(seal.sizes(source / "step_2").values())
    with disks.tmpfs(tmp_path / "disk", 60 * 2**20) as disk:
        shutil.copytree(source, disk / "stage")
        ((said, there, step),) = run_distributed(saved_on, 1, disk / "stage", int(part * size))
    assert "step_3: not written (" in said and "make room" in said, said
    assert there == ["step_1", "step_2"] and step == 2


def test_the_estimate_of_a_first_checkpoint_is_near_what_is_written(written):
    source, estimate = written
    really = sum(seal.sizes(source / "step_1").values())
    assert 0.7 * really < estimate < 1.3 * really, "what is around each tensor is much only for a model as small as this one"
