"""Rows of a set out of a folder or off the Hugging Face hub: the same files, read the same way, from any place in them.

Files are read as they are, JSON lines or Parquet, through fsspec. The `datasets` package, which streams over the same file
system, was left out: it makes one schema of a file's rows, by which objects get each other's keys as nulls, and it goes on
after a kill by reading a file again from its start. Not read: compressed JSON lines.
"""

import io
import json
import re
from dataclasses import dataclass, field

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_cascade.data.prepare.catalogue import ReleasedSet
from nemo_cascade.data.rows import DataError, parse_line

SUFFIXES = (".jsonl", ".parquet")
COMMIT = re.compile("[0-9a-f]{40}")
READ_AT_ONCE = 2**20


@dataclass(frozen=True)
class Place:
    """Where to go on: a file's number, the offset in it (bytes of JSON lines, rows of Parquet), and how many rows are before that."""

    file: int = 0
    offset: int = 0
    row: int = 0


@dataclass(frozen=True)
class Raw:
    """A row as it was read: a line that is still to be parsed, or an object. number: its line, from 1."""

    subset: str
    file: str
    number: int
    content: bytes | dict

    def parsed(self) -> tuple[dict, str | None]:
        """The row, and what is wrong with its line."""
        if isinstance(self.content, dict):
            return self.content, None
        row, problem = parse_line(self.content)
        if problem is None and b"\\ud" in self.content.lower():
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                return {}, f"half of a surrogate pair, which no file can hold ({error})"
        return row, problem


@dataclass
class Source:
    """The files of a set below `root`; paths are told relative to it."""

    system: fsspec.AbstractFileSystem
    root: str
    _group: tuple = field(default=(None, None), init=False, repr=False)

    def files(self, released: ReleasedSet, subset: str) -> dict[str, int]:
        """path -> bytes of a subset's files, in order. Raises DataError where there are none, or of two kinds."""
        folder = self.root if len(released.subsets) == 1 else f"{self.root}/{subset}"
        try:
            found = self.system.find(folder, detail=True)
        except FileNotFoundError:
            found = {}
        sizes = {path.removeprefix(f"{self.root}/"): found[path]["size"] for path in sorted(found) if path.endswith(SUFFIXES)}
        if not sizes:
            raise DataError(f"{folder}: no {' or '.join(SUFFIXES)} file; a subset's files are in the folder of its name")
        if len({path.rpartition(".")[2] for path in sizes}) > 1:
            raise DataError(f"{folder}: JSON lines and Parquet, which may be the same rows twice; keep one of them")
        return sizes

    def take(self, subset: str, files: list[str], place: Place, count: int) -> tuple[list[Raw], Place | None]:
        """The next `count` rows, fewer at the end, and the place behind them, None where that is the end. Blank lines are none."""
        taken: list[Raw] = []
        while place.file < len(files) and len(taken) < count:
            name = files[place.file]
            read = self._table_rows if name.endswith(".parquet") else self._lines
            place = read(subset, name, place, count - len(taken), taken)
        return taken, place if place.file < len(files) else None

    def _lines(self, subset: str, name: str, place: Place, count: int, taken: list[Raw]) -> Place:
        offset, row, upto = place.offset, place.row, len(taken) + count
        with self.system.open(f"{self.root}/{name}", "rb") as opened:
            file = io.BufferedReader(opened, READ_AT_ONCE)
            file.seek(offset)
            while len(taken) < upto:
                line = file.readline()
                if not line:
                    return Place(place.file + 1)
                offset, row = offset + len(line), row + 1
                if line.strip():
                    taken.append(Raw(subset, name, row, line))
        return Place(place.file, offset, row)

    def _table_rows(self, subset: str, name: str, place: Place, count: int, taken: list[Raw]) -> Place:
        row, upto = place.offset, len(taken) + count
        with self.system.open(f"{self.root}/{name}", "rb") as opened:
            file = pq.ParquetFile(opened)
            before = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if row < before + size and len(taken) < upto:
                    part = self._read_group(file, name, group).slice(row - before, upto - len(taken))
                    rows = part.to_pylist()
                    taken += [Raw(subset, name, row + n, without_nulls(values)) for n, values in enumerate(rows, start=1)]
                    row += len(rows)
                before += size
        return Place(place.file, row, row) if row < before else Place(place.file + 1)

    def _read_group(self, file: pq.ParquetFile, name: str, group: int) -> pa.Table:
        """Kept, since the next part goes on in it."""
        if self._group[0] != (name, group):
            self._group = (name, group), file.read_row_group(group)
        return self._group[1]


def folder(path: str) -> Source:
    """Files on this machine. Raises DataError when the folder is not there."""
    system = fsspec.filesystem("file")
    root = system._strip_protocol(path)
    if not system.isdir(root):
        raise DataError(f"{path}: no such folder; name the one that the set's files are in")
    return Source(system, root)


def hub(released: ReleasedSet, revision: str | None) -> Source:
    """The set's repository at a commit. Raises DataError without one: what is prepared must be what others can prepare again."""
    from huggingface_hub import HfFileSystem

    commit = revision or released.revision
    if commit is None or not COMMIT.fullmatch(commit):
        raise DataError(f"{released.repository}: --revision must be a commit of 40 hexadecimal digits, not {commit}")
    return Source(HfFileSystem(), f"datasets/{released.repository}@{commit}")


def without_nulls(value):
    """A table gives each object the keys of all others, as nulls; such keys are taken away again."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
