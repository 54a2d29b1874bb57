"""Checkpoints of a stage: written to `tmp_step_N`, the weights verified against memory, renamed to `step_N`.

Layout (NeMo RL's): `step_N/{training_info.json, probe.json, policy/weights, policy/optimizer}`. A kill at any moment leaves either the
old set of complete checkpoints or the new one; what begins with tmp_ is never read and is removed by the next save.
"""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from nemo_cascade import heartbeat
from nemo_cascade.data.files import sync_directory, sync_tree
from nemo_cascade.engine import parallel, probe
from nemo_cascade.engine.policy import Policy


def save(policy: Policy, stage_dir: Path, info: dict, keep: int = 1, protect: Collection[int] = ()) -> Path:
    """Writes `step_<policy.step>` with `info` (JSON values: loader state and the like) and returns its path.

    Of all that are there the newest `keep` stay (0: all), and those of the steps in `protect`.

    Raises RuntimeError when what can be read back is not bit-equal to the weights in memory.
    """
    heartbeat.at("saving a checkpoint")
    final = Path(stage_dir) / f"step_{policy.step}"
    temporary = final.with_name(f"tmp_{final.name}")
    if parallel.rank() == 0:
        for leftover in Path(stage_dir).glob("tmp_step_*"):
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
    parallel.barrier()
    policy.save(temporary / "policy")
    if not policy.matches(temporary / "policy"):
        raise RuntimeError(f"{temporary}: the written weights differ from those in memory; the disk or its cache is at fault")
    digest, known = policy.weights_hash(), probe.take(policy)
    if parallel.rank() == 0:
        probe.write(known, temporary)
        (temporary / "training_info.json").write_text(json.dumps({"step": policy.step, "weights_hash": digest, **info}))
        sync_tree(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_directory(final.parent)
        for old in set(steps(stage_dir)[:-keep] if keep else []).difference(protect):
            shutil.rmtree(Path(stage_dir) / f"step_{old}")
    parallel.barrier()
    return final


def load(policy: Policy, checkpoint: Path) -> dict:
    """Weights, optimizer and schedule back into `policy`; returns the `info` that was saved."""
    policy.load(Path(checkpoint) / "policy")
    return read_info(checkpoint)


def read_info(checkpoint: Path) -> dict:
    """training_info.json of a checkpoint."""
    return json.loads((Path(checkpoint) / "training_info.json").read_text())


def latest(stage_dir: Path) -> Path | None:
    """The newest complete checkpoint of a stage, None when there is none. The same on every rank (rank 0 looks)."""
    found = parallel.broadcast(steps(stage_dir) if parallel.rank() == 0 else None)
    return Path(stage_dir) / f"step_{found[-1]}" if found else None


def steps(stage_dir: Path) -> list[int]:
    """Steps of all complete checkpoints of a stage, ascending."""
    names = (re.fullmatch(r"step_(\d+)", path.name) for path in Path(stage_dir).glob("step_*"))
    return sorted(int(match[1]) for match in names if match)
