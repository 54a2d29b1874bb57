"""What a run has generated and graded, a JSON line each, on disk before anything follows from it.

The first line says what the run is; a run with other settings is refused, because its prompts would not be those that were answered.
A line that a kill tore is cut off. One process at a time has the file (a POSIX record lock, which ends with the process).
"""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from nemo_cascade.data.files import sync_directory
from nemo_cascade.scaling.types import ScalingRefused


class Journal:
    """`get` what is known of a key, `put` what is new. settings: JSON values that must be those of the journal that is there."""

    def __init__(self, path: Path, settings: dict):
        """Raises ScalingRefused when another process has the file, it has a damaged line, or it is of another run."""
        self.path = path
        self._known: dict[tuple[str, str], dict] = {}
        self._elapsed: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Read and written by one handle: closing another one would give the lock away.
        self._file = open(path, "a+b")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ScalingRefused(f"{path}: another process is writing it; wait for its end, or name another --out") from None
        try:
            self._read(settings)
        except BaseException:
            self._file.close()
            raise

    def get(self, kind: str, key: str, digest: str) -> dict | None:
        """The record of that kind and key. Raises ScalingRefused when it is of something else that was asked or graded."""
        record = self._known.get((kind, key))
        if record is not None and record["digest"] != digest:
            raise ScalingRefused(
                f"{self.path}: {key} was a {kind} of something else; the problem or the code has changed: name a new --out"
            )
        return record

    def put(self, kind: str, key: str, digest: str, problem: str, elapsed: float, **values) -> None:
        """On disk when this returns. problem, elapsed: the problem's name, and seconds of work on it so far."""
        record = {"kind": kind, "key": key, "digest": digest, "problem": problem, "elapsed": round(elapsed, 3), **values}
        self._append(record)
        self._remember(record)

    def elapsed(self, problem: str) -> float:
        """Seconds of work on a problem up to its last record."""
        return self._elapsed.get(problem, 0.0)

    def close(self) -> None:
        self._file.close()

    def _read(self, settings: dict) -> None:
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            record = self._parsed(number, line)
            if number == 1:
                self._refuse_others(record, settings)
            else:
                self._remember(record)
        self._file.truncate(whole)
        if not whole:
            self._append({"kind": "run", "settings": settings})
            sync_directory(self.path.parent)

    def _parsed(self, number: int, line: bytes) -> dict:
        try:
            record = json.loads(line)
            missing = {"kind"} if number == 1 else {"kind", "key", "digest", "problem", "elapsed"}
            if missing <= record.keys():
                return record
        except (ValueError, AttributeError):
            pass
        raise ScalingRefused(f"{self.path}, line {number}: damaged; delete that line (what it says is asked for again) or name a new --out")

    def _refuse_others(self, record: dict, settings: dict) -> None:
        before = record.get("settings")
        # As they are read back: JSON has lists only.
        settings = json.loads(json.dumps(settings))
        if before != settings:
            told = "; ".join(_differences(before, settings)) if isinstance(before, dict) else "it does not begin with settings"
            raise ScalingRefused(f"{self.path}: a run with other settings ({told}); put them back, or name a new --out")

    def _append(self, record: dict) -> None:
        # ASCII: a reply may hold a lone surrogate, which UTF-8 has not.
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _remember(self, record: dict) -> None:
        # Thoughts are most of what is written, and nothing follows from them.
        self._known[record["kind"], record["key"]] = {key: value for key, value in record.items() if key != "thought"}
        self._elapsed[record["problem"]] = max(self.elapsed(record["problem"]), record["elapsed"])


class Memory(Journal):
    """The same without a file, for loops that are simulated."""

    def __init__(self):
        self._known, self._elapsed, self.path = {}, {}, Path("memory")

    def _append(self, record: dict) -> None:
        pass

    def close(self) -> None:
        pass


def _differences(before: dict, now: dict) -> Iterator[str]:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
