"""What was said and how it was scored, sample by sample: JSON lines that are only ever added to, each on the disk before anything
goes on from it, so that a run that is killed anywhere goes on without asking for anything twice.

A folder of `NAME_RANK.jsonl`: every process writes one of its own and reads all. A last line that a kill left half written is dropped;
any other that cannot be read is somebody's doing and refused.
"""

import json
import os
import threading
from pathlib import Path

from nemo_cascade.data.rows import DataError


class Journal:
    """known: what `read` gave, the same for all processes; `put` adds to this one's file and to `known`."""

    def __init__(self, folder: Path, name: str, rank: int, known: dict[str, dict]):
        self.known = known
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}_{rank}.jsonl"
        whole = _whole(path.read_bytes()) if path.exists() else b""
        self._file = open(path, "ab")
        self._file.truncate(len(whole))
        self._lock = threading.Lock()

    def put(self, key: str, value: dict, **about) -> None:
        """Keeps a value; about: for those who read the file."""
        line = json.dumps({"key": key, **about, "value": value}).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.known[key] = value

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read(folder: Path, name: str) -> dict[str, dict]:
    """key -> value of all files of that name. Raises DataError naming file and line."""
    known = {}
    for path in sorted(folder.glob(f"{name}_*.jsonl")):
        for number, line in enumerate(_whole(path.read_bytes()).splitlines(), start=1):
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: not as it was written ({type(error).__name__}: {error}); "
                    "delete the line, and what it kept is asked again"
                ) from None
    return known


def _whole(content: bytes) -> bytes:
    """All up to the end of the last line that was written to its end."""
    return content[: content.rfind(b"\n") + 1]
