"""What is on disk before anything is trained on it: a run directory that can be written to, checkpoints as they were written,
nothing that a kill left half done.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from nemo_cascade.cascade.config import CascadeConfig
from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.cascade.plan import RunRefused, dependencies
from nemo_cascade.engine import disk, parallel, seal


def refuse_unwritable(folders: list[Path]) -> None:
    """Raises RunRefused on every rank when one of them cannot write below one of the folders, which need not exist."""
    world = parallel.world_size()
    try:
        parallel.share_out(lambda once: [[disk.refuse_read_only(folder) for folder in folders] for _ in once], [None] * world)
    except disk.DiskError as error:
        raise RunRefused(str(error)) from None


def read_by(cascade: CascadeConfig, manifest: Manifest, names: list[str]) -> list[str]:
    """The finished stages whose checkpoints the stages `names` start from, learn from or are judged by, as it stands."""
    read = [other for name in names for other in dependencies(cascade.stages[name])]
    # Those that were found when the stage began, too.
    read += [teacher for name in names for teacher in manifest.stages[name].teachers.values() if teacher in manifest.stages]
    read += [manifest.standing(other) for other in read]
    return [other for other in dict.fromkeys(read) if manifest.stages[other].status == DONE]


def refuse_damaged(manifest: Manifest, names: Iterable[str]) -> None:
    """Raises RunRefused on every rank when the weights of one of these finished stages are not those that it ended with."""
    for name in names:
        checkpoint = manifest.checkpoint(name)
        info = verified(checkpoint, name)
        if info["weights_hash"] != manifest.stages[name].checkpoint_hash:
            raise RunRefused(
                f"stage {name}: {checkpoint} is whole, but not the checkpoint that the manifest names by its hash; {_remedy(name)}"
            )


def verified(checkpoint: Path, name: str) -> dict:
    """The info of a checkpoint that stage `name` wrote, its weights hashed. Raises RunRefused on every rank when it is damaged."""
    try:
        return seal.check(checkpoint, seal.WEIGHTS)
    except seal.Surplus as damage:
        raise RunRefused(f"stage {name}: {damage}") from None
    except seal.Damaged as damage:
        raise RunRefused(f"stage {name}: {damage}; {_remedy(name)}") from None


def remove_stale(run_dir: Path) -> None:
    """Removes temporary files and folders that a kill left: in the run directory, its stages, their folders."""
    for pattern in ("tmp_*", "*/tmp_*", "*/*/tmp_*"):
        for stale in Path(run_dir).glob(pattern):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def _remedy(name: str) -> str:
    return f"put it back from a copy, or repeat that stage and all later ones with --from-stage {name}"
