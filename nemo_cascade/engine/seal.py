"""A checkpoint's seal: size and sha256 of each of its files, and of the info file that lists them, so that damage is seen before
anything is trained on it.

Every function is called on all ranks together, which share the hashing, each in a few threads. What was found whole is not hashed
again by the same process while sizes and times of its files stay as they are.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.hashes import file_hash, json_hash
from nemo_cascade.engine import parallel

INFO = "training_info.json"
WEIGHTS = "policy/weights/"
# Hashing lets go of the interpreter's lock; more threads would only wait for the disk.
THREADS = 4

_found_whole: dict[tuple[Path, str], list] = {}


class Damaged(ValueError):
    """A checkpoint that is not as it was written; the message names the file and what is wrong with it."""


class Surplus(Damaged):
    """A file in a checkpoint that does not belong to it, whose own files are all there."""


def seal(folder: Path, info: dict) -> None:
    """Writes the info file of a checkpoint, whose other files are there already, with `files` and `seal` added to `info`."""
    listed = parallel.broadcast(sizes(folder))
    digests = hash_files(folder, listed)
    document = {**info, "files": {name: {"size": listed[name], "sha256": digests[name]} for name in sorted(listed)}}
    document["seal"] = json_hash(document)
    parallel.on_rank_0(lambda: write_atomically(folder / INFO, json.dumps(document)))


def check(folder: Path, part: str = "") -> dict:
    """The info of a checkpoint, whose files below `part` (WEIGHTS; "" is all) were hashed and are as sealed.

    Sizes are looked at, and surplus files for, in all of it. Raises Damaged or Surplus on every rank.
    """
    info, known = parallel.on_rank_0(lambda: (_look(folder), _known(folder, part)))
    if not known:
        sealed = {name: entry["sha256"] for name, entry in info["files"].items() if name.startswith(part)}
        digests = hash_files(folder, {name: info["files"][name]["size"] for name in sealed})
        for name, digest in digests.items():
            if digest != sealed[name]:
                raise Damaged(f"{folder / name}: its content changed since it was written (another sha256)")
        _found_whole[folder, part] = _stamp(folder)
    return info


def read_info(folder: Path) -> dict:
    """The info file of a checkpoint, its own seal checked and nothing else. Raises Damaged."""
    path = Path(folder) / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        digest = info.pop("seal")
    except FileNotFoundError:
        raise Damaged(f"{path}: the file is gone") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise Damaged(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    if digest != json_hash(info):
        raise Damaged(f"{path}: its content changed since it was written (its seal does not fit)")
    return info


def hash_files(folder: Path, sizes: dict[str, int]) -> dict[str, str]:
    """sha256 of files below `folder`, by name, hashed by all ranks together; sizes tell how to share them."""
    names = sorted(sizes, key=lambda name: (-sizes[name], name))

    def share(mine: list[str]) -> list[str]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda name: file_hash(folder / name), mine))

    return dict(zip(names, parallel.share_out(share, names)))


def sizes(folder: Path) -> dict[str, int]:
    """Size of every file of a checkpoint but its info file, by its name below the folder."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    found.pop(INFO, None)
    return found


def _look(folder: Path) -> dict:
    """What can be told without hashing; returns the info. Raises Damaged or Surplus."""
    info, there = read_info(folder), sizes(folder)
    for name, entry in info["files"].items():
        if name not in there:
            raise Damaged(f"{folder / name}: the file is gone")
        if there[name] != entry["size"]:
            raise Damaged(f"{folder / name}: {there[name]:,} bytes, but {entry['size']:,} were written")
    for name in there:
        if name not in info["files"]:
            raise Surplus(f"{folder / name}: does not belong to this checkpoint; move it away")
    return info


def _known(folder: Path, part: str) -> bool:
    """Whether this process found it whole before and no file was touched since."""
    stamp = _stamp(folder)
    return stamp in (_found_whole.get((folder, part)), _found_whole.get((folder, "")))


def _stamp(folder: Path) -> list:
    """Names, sizes and times of all files."""
    paths = sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
