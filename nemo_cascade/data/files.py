"""Files and folders that a kill leaves as they were or as they should be: written to `tmp_NAME`, synced, renamed."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Temporary file in the same folder, fsync, rename, fsync of the folder. A text, or its parts where it is a long one."""
    temporary = path.with_name(f"tmp_{path.name}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    sync_directory(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """`tmp_NAME` beside `path`, to be filled; then synced and renamed. Removed on an error, or if a kill left one."""
    temporary = path.with_name(f"tmp_{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_tree(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(folder: Path) -> None:
    """fsync of a folder's own entries, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """fsync of every file and folder below root, so that a rename never precedes the data on disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            with open(Path(folder) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(folder))
