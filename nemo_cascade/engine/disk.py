"""Room on a disk and leave to write on it: asked for beforehand, and what is said when it is missing all the same."""

import errno
import shutil
import tempfile
from pathlib import Path

# What a disk, not a program, is to blame for.
FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


class DiskError(RuntimeError):
    """A disk that is full or may not be written on; the message names the path and what to do."""


def refuse_without_space(folder: Path, needed: int, what: str) -> None:
    """Raises DiskError when fewer than `needed` bytes are free where `folder` is."""
    free = shutil.disk_usage(nearest(folder)).free
    if free < needed:
        raise DiskError(
            f"{folder}: {what} needs {size_text(needed)} and {size_text(free)} are free; make room (an older checkpoint goes "
            "only when the new one is written) or lower checkpointing.keep_top_k, then give the same command again"
        )


def refuse_read_only(folder: Path) -> None:
    """Raises DiskError when nothing can be written below a folder, which need not exist yet; leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise DiskError(
            f"{folder}: cannot be written to ({error.strerror}); mount it writable, mend its permissions or room, or name "
            "another cascade.run_dir"
        ) from error


def failed(error: OSError) -> str:
    """What to say and do about a write that a disk did not take."""
    path = f"{error.filename}: " if error.filename else ""
    return (
        f"{path}{error.strerror}; make room or mend the disk, then give the same command again: it goes on from the last "
        "checkpoint, with the rollouts that are there"
    )


def nearest(folder: Path) -> Path:
    """The folder, or the one above it that exists."""
    folder = Path(folder).absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def size_text(count: int) -> str:
    """ "1.2 GB", "35 MB"."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
