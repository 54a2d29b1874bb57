"""The files that a patch is made for: in the row, or a folder or archive on this host that the row names.

`files` or `relevant_file_contents` {path: text}, the latter perhaps as JSON in a text, as released rows have it. `repository`: the
path of a folder, .tar, .tar.gz or .zip, relative to NEMO_CASCADE_REPOSITORIES. Of an archive with one folder at its top, as a
source distribution is, the files below that. Of a git repository where the row has a `base_commit` the files of that commit, whatever
is checked out. What is no UTF-8 text is left out, and .git.
"""

import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from nemo_cascade.environments.swe_repair.git import files_at
from nemo_cascade.environments.swe_repair.patches import Files

ROOT = "NEMO_CASCADE_REPOSITORIES"
# Bytes of all files: each run gets them anew.
LARGEST = 64 * 2**20
LEFT_OUT = {".git", ".hg", "__pycache__", ".tox", ".venv", "node_modules"}


def files_of(row: dict) -> Files:
    """The files before the patch. Raises ValueError for a row that has none, or none that can be read."""
    if row.get("repository") is not None:
        if not isinstance(row["repository"], str):
            raise ValueError("repository must be the path of a folder or an archive")
        path, commit = Path(os.environ.get(ROOT, ""), row["repository"]), row.get("base_commit")
        if commit is not None and not (isinstance(commit, str) and re.fullmatch("[0-9a-f]{7,64}", commit)):
            raise ValueError(f"base_commit {commit!r} is no hash of a commit")
        try:
            return dict(_read(path, path.stat().st_mtime_ns, commit))
        except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"repository {row['repository']!r} cannot be read ({type(error).__name__}: {error}); it is looked for in "
                f"{path.parent.absolute()}, set {ROOT} to the folder that has them"
            ) from None
    files = row.get("files") if row.get("files") is not None else row.get("relevant_file_contents")
    if isinstance(files, str):
        try:
            files = json.loads(files)
        except ValueError as error:
            raise ValueError(f"relevant_file_contents is no JSON: {error}") from None
    if not isinstance(files, dict) or not files or not all(isinstance(text, str) for text in files.values()):
        raise ValueError("no files (an object {path: text} under files or relevant_file_contents, or a repository)")
    return files


# Many replies are made for one repository, one after the other. The time of its last change is part of the key.
@lru_cache(maxsize=16)
def _read(path: Path, _: int, commit: str | None) -> Files:
    if commit is not None and (path / ".git").exists():
        found = ((name, data) for name, data in files_at(path, commit) if _kept(name))
    elif path.is_dir():
        found = _of_folder(path)
    elif zipfile.is_zipfile(path):
        found = _of_zip(path)
    else:
        found = _of_tar(path)
    files, size = {}, 0
    for name, data in found:
        size += len(data)
        if size > LARGEST:
            raise ValueError(f"repository {str(path)!r} is larger than {LARGEST >> 20} MiB, which each run would be given")
        try:
            files[name] = data.decode()
        except UnicodeDecodeError:
            continue
    tops = {PurePosixPath(name).parts[0] for name in files}
    if not path.is_dir() and len(tops) == 1 and all("/" in name for name in files):
        files = {name.partition("/")[2]: text for name, text in files.items()}
    if not files:
        raise ValueError(f"repository {str(path)!r} has no text file")
    return files


def _of_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        for name in sorted(names):
            file = Path(folder, name)
            # A link may lead anywhere on this host.
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(path).as_posix(), file.read_bytes()


def _of_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and _kept(member.name):
                yield _plain(member.name), archive.extractfile(member).read(LARGEST + 1)


def _of_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir() and _kept(member.filename):
                with archive.open(member) as file:
                    yield _plain(member.filename), file.read(LARGEST + 1)


def _kept(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/") and not LEFT_OUT & set(parts)


def _plain(name: str) -> str:
    return str(PurePosixPath(name))
