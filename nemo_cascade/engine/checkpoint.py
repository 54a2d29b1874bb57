"""Checkpoints of a stage: written to `tmp_step_N`, the weights verified against memory, every file sealed, renamed to `step_N`.

Layout (NeMo RL's): `step_N/{training_info.json, probe.json, policy/weights, policy/optimizer}`. A kill or a full disk at any moment
leaves either the old set of complete checkpoints or the new one, for what goes is renamed before it is deleted; what begins with tmp_
is never read and is removed by the next save.
"""

import contextlib
import logging
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.checkpoint import CheckpointException

from nemo_cascade import heartbeat
from nemo_cascade.data.files import sync_directory, sync_tree
from nemo_cascade.engine import disk, parallel, probe, seal
from nemo_cascade.engine.policy import Policy
from nemo_cascade.engine.writes import Writes

logger = logging.getLogger(__name__)

TORCH_WRITER = ("inline_container", "iostream error")


def save(policy: Policy, stage_dir: Path, info: dict, keep: int = 1, protect: Collection[int] = ()) -> Path:
    """Writes `step_<policy.step>` with `info` (JSON values: loader state and the like) and returns its path.

    Of all that are there the newest `keep` stay (0: all), and those of the steps in `protect`.

    Raises RuntimeError when what can be read back is not bit-equal to the weights in memory, DiskError when there is not room
    enough or writing fails; the checkpoints that were there are untouched then.
    """
    return begin(policy, stage_dir, info, keep, protect).end()


def begin(
    policy: Policy, stage_dir: Path, info: dict, keep: int = 1, protect: Collection[int] = (), writes: Writes | None = None
) -> "Unfinished":
    """The first part of `save`: everything that needs the policy as it is now. With `writes` training may go on before the second.

    Only one checkpoint of a stage may be unfinished at a time.
    """
    started = time.monotonic()
    heartbeat.at("saving a checkpoint")
    final = Path(stage_dir) / f"step_{policy.step}"
    temporary = final.with_name(f"tmp_{final.name}")
    refuse_without_space(policy, stage_dir)
    parallel.on_rank_0(lambda: _begin(temporary))
    with _whole_or_gone(temporary, final):
        policy.save(temporary / "policy", optimizer=policy.trains, writes=writes)
        known = probe.take(policy)
        parallel.on_rank_0(lambda: probe.write(known, temporary))
        info = {"step": policy.step, "weights_hash": policy.weights_hash(), **info}
        weights = policy.host_copy() if writes is not None else None
    return Unfinished(policy, temporary, final, info, weights, writes, keep, protect, started)


@dataclass
class Unfinished:
    """A checkpoint whose files are being written. weights: what has to be read back from them, None where the policy has it still."""

    policy: Policy
    temporary: Path
    final: Path
    info: dict
    weights: dict | None
    writes: Writes | None
    keep: int
    protect: Collection[int]
    started: float
    seconds: float = 0.0

    def is_written(self) -> bool:
        """Whether `end` would not have to wait for any file; the same on all ranks, which all ask."""
        with _whole_or_gone(self.temporary, self.final):
            return self.writes is None or self.writes.ended(wait=False)

    def end(self) -> Path:
        """The second part of `save`: waits for the files, verifies and seals them and puts the checkpoint in its place.

        `seconds` says afterwards how long this rank took for all of it, without what it waited to be asked.
        """
        with _whole_or_gone(self.temporary, self.final):
            if self.writes is not None:
                self.writes.ended(wait=True)
            asked = time.monotonic()
            written = max(self.started, self.writes.last_ended()) if self.writes is not None else asked
            heartbeat.at("sealing a checkpoint")
            if not self.policy.matches(self.temporary / "policy", self.weights):
                raise RuntimeError(
                    f"{self.temporary}: the written weights differ from those in memory; the disk or its cache is at fault"
                )
            seal.seal(self.temporary, self.info)
            parallel.on_rank_0(lambda: sync_tree(self.temporary))
        parallel.on_rank_0(lambda: _put_in_place(self.temporary, self.final, self.keep, self.protect))
        self.seconds = written - self.started + time.monotonic() - asked
        return self.final


@contextlib.contextmanager
def _whole_or_gone(temporary: Path, final: Path) -> Iterator[None]:
    """Around what writes a checkpoint: on an error nothing is left of it. Raises DiskError where a disk is to blame."""
    try:
        yield
    except BaseException as error:
        if parallel.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if _blames_disk(error):
            raise disk.DiskError(_not_written(final, error)) from error
        raise


def load(policy: Policy, checkpoint: Path) -> dict:
    """Weights, optimizer and schedule back into `policy`; returns the `info` that was saved."""
    policy.load(Path(checkpoint) / "policy")
    return read_info(checkpoint)


def read_info(checkpoint: Path) -> dict:
    """training_info.json of a checkpoint. Raises Damaged when it is not as it was written."""
    return seal.read_info(checkpoint)


def latest(stage_dir: Path) -> Path | None:
    """The newest complete checkpoint of a stage, None when there is none. The same on every rank (rank 0 looks)."""
    found = parallel.broadcast(steps(stage_dir) if parallel.rank() == 0 else None)
    return Path(stage_dir) / f"step_{found[-1]}" if found else None


def latest_whole(stage_dir: Path) -> Path | None:
    """The newest checkpoint of a stage that is as it was written, None when there is none; called on all ranks together.

    Damaged ones above it are renamed to `damaged_step_N`, and it is said so. Raises Surplus where all that is wrong is a file
    too many: that one is to go, not the steps since the checkpoint before.
    """
    while (newest := latest(stage_dir)) is not None:
        try:
            seal.check(newest)
            return newest
        except seal.Surplus:
            raise
        except seal.Damaged as damage:
            aside = newest.with_name(f"damaged_{newest.name}")
            parallel.on_rank_0(lambda: _replace(newest, aside))
            before = latest(stage_dir)
            going_on = f"going back to {before}" if before is not None else "none is left, so the stage begins again"
            logger.warning("%s; %s (what is damaged is now %s, and may be deleted)", damage, going_on, aside)
    return None


def refuse_without_space(policy: Policy, stage_dir: Path) -> None:
    """Raises DiskError on every rank when the next checkpoint would not fit beside those that are there."""
    estimate = policy.checkpoint_bytes()

    def needed() -> int:
        try:
            (*_, newest) = steps(stage_dir)
            return sum(entry["size"] for entry in read_info(Path(stage_dir) / f"step_{newest}")["files"].values())
        except ValueError:  # there is none yet, or it is damaged
            return estimate

    # A little more than the last one took: lists of shards and loader states differ in length.
    parallel.on_rank_0(lambda: disk.refuse_without_space(stage_dir, int(1.02 * needed()), "the next checkpoint"))


def steps(stage_dir: Path) -> list[int]:
    """Steps of all complete checkpoints of a stage, ascending."""
    names = (re.fullmatch(r"step_(\d+)", path.name) for path in Path(stage_dir).glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def _begin(temporary: Path) -> None:
    for leftover in temporary.parent.glob("tmp_step_*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)


def _put_in_place(temporary: Path, final: Path, keep: int, protect: Collection[int]) -> None:
    """Renames; then removes what is not to be kept."""
    _replace(temporary, final)
    for old in set(steps(final.parent)[:-keep] if keep else []).difference(protect):
        shutil.rmtree(_rename_away(final.with_name(f"step_{old}")))


def _replace(folder: Path, name: Path) -> None:
    """Gives a folder another name; what had it before is deleted."""
    gone = _rename_away(name) if name.exists() else None
    folder.rename(name)
    sync_directory(name.parent)
    if gone is not None:
        shutil.rmtree(gone)


def _rename_away(folder: Path) -> Path:
    """To be done before a deletion: a kill while files go must leave no folder that looks whole."""
    gone = folder.with_name(f"tmp_{folder.name}_gone")
    if gone.exists():
        shutil.rmtree(gone)
    folder.rename(gone)
    sync_directory(folder.parent)
    return gone


def _not_written(final: Path, error: BaseException) -> str:
    """What happened to a write, in words; of a failure on another rank, as megatron-core tells it."""
    failures = getattr(error, "failures", None) or {}
    reason = "; ".join(f"rank {rank}: {wrapped[0]}" for rank, wrapped in failures.items()) or str(error)
    free = disk.size_text(shutil.disk_usage(final.parent).free)
    return (
        f"{final}: not written ({reason}; {free} are free); nothing of it was left and earlier checkpoints are as they were: make "
        "room or mend the disk, then give the same command again"
    )


def _blames_disk(error: BaseException) -> bool:
    """Whether a write failed for the disk's sake, which torch's own writer tells by words alone."""
    return isinstance(error, (OSError, CheckpointException)) or any(words in str(error) for words in TORCH_WRITER)
