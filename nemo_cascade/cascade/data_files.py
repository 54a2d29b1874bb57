"""Which files of rows a stage trains and is scored on, and whether they are still those that it began with.

Reads files only, on one rank; knows nothing of what is in them.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from nemo_cascade.cascade.config import CascadeConfig
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.data.hashes import file_hash


def hashes(cascade: CascadeConfig, name: str) -> dict[str, str]:
    """sha256 of every file that a stage's rows come from, by its path as the config names it; a packed folder's files one by one."""
    scored = cascade.scored(name) if cascade.validation.num_prompts > 0 else {}
    places = [Path(dataset.data_path) for dataset in (*cascade.stages[name].data.train.values(), *scored.values())]
    paths = [path for place in dict.fromkeys(places) for path in (sorted(place.iterdir()) if place.is_dir() else [place])]
    return dict(zip(map(str, paths), _hash_all(paths)))


def changed(manifest: Manifest, names: list[str]) -> dict[str, list[str]]:
    """path -> those of the stages `names` that began with another content of it. Files that are not there are not looked at:
    checks.py refuses their paths, and demo rows are about to be written again."""
    paths = list(dict.fromkeys(path for name in names for path in manifest.stages[name].data))
    there = [path for path in paths if Path(path).is_file()]
    now = dict(zip(there, _hash_all([Path(path) for path in there])))
    found: dict[str, list[str]] = {}
    for name in names:
        for path, digest in manifest.stages[name].data.items():
            if now.get(path, digest) != digest:
                found.setdefault(path, []).append(name)
    return found


def problems(manifest: Manifest, names: list[str]) -> list[str]:
    """A line for each changed file: who began with another one, and what to do."""
    return [
        f"{path}: changed since stage {stages[0]}{_more(stages[1:])} began with it; put the file back as it was, or repeat that "
        f"stage and all later ones with --from-stage {stages[0]}"
        for path, stages in changed(manifest, names).items()
    ]


def _more(stages: list[str]) -> str:
    return f" (and {', '.join(stages)})" if stages else ""


def _hash_all(paths: list[Path]) -> list[str]:
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_hash, paths))


def _hash(path: Path) -> str:
    status = path.stat()
    return _hash_once(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=None)
def _hash_once(path: Path, _size: int, _time: int) -> str:
    """Stages share files, of which each is read once."""
    return file_hash(path)
