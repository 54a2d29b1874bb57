"""A set worked off in parts, each a folder that is whole or not there, so that a kill costs one part and changes no byte.

OUT/parts/NNNNNN holds what a part became: rows by file or packs in shards, `dropped.jsonl`, and `record.json`, which says where
the next part begins. When there is no next one, the parts are put together and `prepare.json`, the report, ends it.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nemo_cascade.data.files import sync_directory, write_atomically
from nemo_cascade.data.prepare.outcome import Counts
from nemo_cascade.data.prepare.source import Place
from nemo_cascade.data.rows import DataError

PARTS, SETTINGS, RECORD, DROPPED, REPORT = "parts", "settings.json", "record.json", "dropped.jsonl", "prepare.json"


@dataclass
class Record:
    """`record.json` of a part. places: where the next part begins in each subset, None at the end. longest, shortest: documents."""

    places: dict[str, Place | None]
    counts: dict[str, Counts]
    files: list[str] = field(default_factory=list)
    packs: int = 0
    longest: int = 0
    shortest: int = 0
    too_long: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        values = vars(self) | {
            "places": {name: place and asdict(place) for name, place in self.places.items()},
            "counts": {name: counts.as_dict() for name, counts in self.counts.items()},
        }
        (folder / RECORD).write_text(json.dumps(values, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Record":
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        values["places"] = {name: place and Place(**place) for name, place in values["places"].items()}
        values["counts"] = {name: Counts.of(counts) for name, counts in values["counts"].items()}
        return cls(**values)


@contextmanager
def begun(out: Path, settings: dict) -> Iterator[tuple[Path, list[Record]]]:
    """The folder of parts and the records of those that are done; nobody else writes there meanwhile.

    Raises DataError where another process does, where the folder was begun with other settings, or holds something else.
    """
    parts = out / PARTS
    if not parts.is_dir() and out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: holds something else; name a folder that is not there yet")
    parts.mkdir(parents=True, exist_ok=True)
    with open(parts / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{out}: another nemo-cascade data prepare is at work there") from error
        if not (parts / SETTINGS).is_file():
            write_atomically(parts / SETTINGS, json.dumps(settings, indent=1))
        _same(json.loads((parts / SETTINGS).read_text(encoding="utf-8")), settings, out)
        records = []
        while (folder := part(parts, len(records))).is_dir():
            records.append(Record.read(folder))
        yield parts, records


def finished(out: Path, settings: dict) -> dict | None:
    """The report of a folder that is done, None of one that is not. Raises DataError if it was made with other settings."""
    if not (out / REPORT).is_file():
        return None
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    _same(report["settings"], settings, out)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return report


def part(parts: Path, number: int) -> Path:
    return parts / f"{number:06}"


def join(out: Path, records: list[Record]) -> None:
    """Puts the parts' files together in `out`: shards numbered anew, lines one part after the other. May be done again."""
    parts = out / PARTS
    written = [(name, part(parts, number) / name) for number, record in enumerate(records) for name in record.files]
    for number, shard in enumerate(path for name, path in written if name.endswith(".parquet")):
        # One that is not there any more was moved before a kill.
        if shard.exists():
            shard.replace(out / f"shard_{number:06}.parquet")
    sync_directory(out)
    for name in dict.fromkeys(name for name, _ in written if name.endswith(".jsonl")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, _lines(parts, [n for n, record in enumerate(records) if name in record.files], name))
    write_atomically(out / DROPPED, _lines(parts, range(len(records)), DROPPED))


def end(out: Path, report: dict) -> None:
    """Writes the report, by which a folder is done, and takes the parts away."""
    write_atomically(out / REPORT, json.dumps(report, indent=2) + "\n")
    shutil.rmtree(out / PARTS)


def _lines(parts: Path, numbers, name: str) -> Iterator[str]:
    for number in numbers:
        with open(part(parts, number) / name, encoding="utf-8", newline="") as file:
            yield from file


def _same(before: dict, now: dict, out: Path) -> None:
    now = json.loads(json.dumps(now))
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        told = "; ".join(f"{key} was {_short(before.get(key))} and is {_short(now[key])}" for key in changed)
        raise DataError(f"{out}: begun with other settings ({told}); give the same again, or name another folder")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
