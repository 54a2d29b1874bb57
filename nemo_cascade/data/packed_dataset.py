"""Packed datasets: SFT conversations tokenised and packed once, before any training, into a folder of packed Parquet.

A row of `shard_NNNNNN.parquet` is a pack in the columns of NeMo's packed Parquet, so that Megatron Bridge's
GPTSFTPackedParquetDataset reads the folder: `input_ids`, `loss_mask` (entry t: whether the token after t is trained
on) and `seq_start_id`, where documents begin. `seq_length` is ours: a document's tokens without the padding behind
them. `packing.json` tells what the folder holds.

A document of n tokens predicts n - 1 and counts as that many everywhere here. It has a slot of that size, rounded up
to what the layout needs, and one token more in the row: inputs are all of them but the last, labels all but the first.

Rows are held in memory file by file, tokens on disk. Left out: shares (each document is packed once) and tokenising in
several processes.
"""

import bisect
import dataclasses
import itertools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_cascade.data.chat import conversation_to_samples
from nemo_cascade.data.files import new_folder
from nemo_cascade.data.packing import document_multiple, pack, pack_multiple, round_up
from nemo_cascade.data.rows import DataError, load_rows
from nemo_cascade.data.sample import Sample
from nemo_cascade.data.tokenizer import load_tokenizer

REPORT = "packing.json"
# The widths that NeMo's own writer chose.
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "loss_mask": pa.list_(pa.int8()),
        "seq_start_id": pa.list_(pa.int32()),
        "seq_length": pa.list_(pa.int32()),
    }
)
# A pack is read with its whole row group; a shard is about 1.3 GB before compression.
ROW_GROUP_TOKENS = 2**20
SHARD_TOKENS = 2**28


@dataclass
class Report:
    """`packing.json`. efficiency: tokens / (packs * capacity). longest, shortest: tokens of a document.

    document_multiple and pack_multiple: what slots and packs are rounded up to. shuffle_seed: None for longest first.
    too_long, skipped_rows: what was left out, each as "file:row reason".
    """

    documents: int
    tokens: int
    packs: int
    capacity: int
    efficiency: float
    longest: int
    shortest: int
    document_multiple: int
    pack_multiple: int
    shuffle_seed: int | None
    tokenizer: str
    documents_of: dict[str, int]
    too_long: list[str]
    skipped_rows: list[str]


def write_packed(
    files: list[Path],
    folder: Path,
    tokenizer: str,
    capacity: int,
    *,
    tensor_model_parallel_size: int = 1,
    context_parallel_size: int = 1,
    shuffle_seed: int | None = None,
    on_bad_row: str = "stop",
    on_too_long: str = "stop",
) -> Report:
    """Packs the SFT rows of JSONL files to `capacity` tokens a pack; `folder` is there when all of it is.

    Longest first, or with a seed in shuffled order, so that every pack is a sample of all files. Raises DataError with
    file and row for a bad row or a document longer than a pack, unless told to "skip" it; where `folder` exists or the
    capacity does not fit the layout. Raises ValueError for a tokenizer that cannot be used.
    """
    slot_multiple = document_multiple(context_parallel_size)
    row_multiple = pack_multiple(tensor_model_parallel_size, context_parallel_size)
    if capacity % row_multiple:
        raise DataError(f"a capacity of {capacity} is no multiple of {row_multiple}, as the layout needs; change it")
    if folder.exists():
        raise DataError(f"{folder}: exists already; remove it or name another folder")
    loaded = load_tokenizer(tokenizer)
    with new_folder(folder) as temporary:
        documents = Documents(temporary / "documents", capacity)
        for path in files:
            documents.add_file(path, loaded, on_bad_row)
        documents.close(on_too_long)
        packs = write_shards(temporary, documents, (slot_multiple, row_multiple), shuffle_seed, loaded.eos_token_id)
        report = Report(
            documents=len(documents.lengths),
            tokens=sum(documents.lengths),
            packs=packs,
            capacity=capacity,
            efficiency=sum(documents.lengths) / (packs * capacity),
            longest=max(documents.lengths),
            shortest=min(documents.lengths),
            document_multiple=slot_multiple,
            pack_multiple=row_multiple,
            shuffle_seed=shuffle_seed,
            tokenizer=tokenizer,
            documents_of=documents.count_of,
            too_long=documents.too_long,
            skipped_rows=documents.skipped_rows,
        )
        (temporary / REPORT).write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def plan_order(slots: list[int], capacity: int, shuffle_seed: int | None) -> list[list[int]]:
    """Indices of the documents in each pack: longest first, or as they come in an order shuffled by the seed."""
    if shuffle_seed is None:
        return pack(slots, capacity)
    order = list(range(len(slots)))
    random.Random(shuffle_seed).shuffle(order)
    plan = pack([slots[index] for index in order], capacity, decreasing=False)
    return [[order[place] for place in chosen] for chosen in plan]


class Documents:
    """Token samples end to end in two files, so that a set larger than memory can be packed; only lengths stay."""

    def __init__(self, folder: Path, longest: int):
        folder.mkdir()
        self.folder, self.longest = folder, longest
        self.lengths: list[int] = []
        self.count_of: dict[str, int] = {}
        self.too_long: list[str] = []
        self.skipped_rows: list[str] = []
        self._files = [open(folder / name, "wb") for name in ("ids", "mask")]

    def add_file(self, path: Path, tokenizer, on_bad_row: str) -> None:
        """Tokenises a JSONL file; samples longer than `longest` are named in `too_long` instead."""
        rows, reading = load_rows(path, "sft", on_bad_row)
        before = len(self.lengths)
        for number, row in zip(reading.numbers, rows):
            try:
                samples = conversation_to_samples(tokenizer, row)
            except ValueError as error:
                raise DataError(f"{path}, row {number}: {error}; mend or remove the row") from error
            for sample in samples:
                self.add(sample, f"{path}:{number}")
        self.count_of[str(path)] = len(self.lengths) - before
        self.skipped_rows += reading.skipped

    def add(self, sample: Sample, place: str) -> None:
        """Takes it, or names it in `too_long` by its place."""
        length = len(sample.tokens) - 1
        if length > self.longest:
            self.too_long.append(f"{place} {length} tokens, more than the {self.longest} of a pack")
            return
        ids, mask = self._files
        ids.write(np.array(sample.tokens, np.int32).tobytes())
        mask.write(bytes(sample.loss_mask))
        self.lengths.append(length)

    def close(self, on_too_long: str) -> None:
        """Ends the writing. Raises DataError for documents too long, unless told to "skip", and if none is left."""
        for file in self._files:
            file.close()
        if self.too_long and on_too_long != "skip":
            remedy = "shorten them, raise the capacity or set on_too_long to skip"
            raise DataError("\n".join([*self.too_long, f"{len(self.too_long)} documents are too long; {remedy}"]))
        if not self.lengths:
            raise DataError(f"no document is left to pack ({len(self.too_long)} are too long)")
        self._starts = np.concatenate([[0], np.cumsum(np.array(self.lengths) + 1)])
        self._ids = np.memmap(self.folder / "ids", np.int32, "r")
        self._mask = np.memmap(self.folder / "mask", np.int8, "r")

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids [n], loss mask [n]) of a document."""
        span = slice(self._starts[index], self._starts[index + 1])
        return self._ids[span], self._mask[span]


def _row(documents: Documents, chosen: list[int], slots: list[int], row_multiple: int, pad_id: int) -> dict:
    """A pack in the columns of SCHEMA; its last slot takes what the pack as a whole lacks to a multiple."""
    sizes = [slots[index] for index in chosen]
    sizes[-1] += round_up(sum(sizes), row_multiple) - sum(sizes)
    starts = np.cumsum([0, *(size + 1 for size in sizes)])
    ids = np.full(starts[-1], pad_id, np.int32)
    mask = np.zeros(starts[-1], np.int8)
    for start, index in zip(starts, chosen):
        document, trained = documents[index]
        ids[start : start + len(document)] = document
        mask[start : start + len(document) - 1] = trained[1:]
    lengths = np.array([documents.lengths[index] + 1 for index in chosen], np.int32)
    return {"input_ids": ids, "loss_mask": mask, "seq_start_id": starts[:-1].astype(np.int32), "seq_length": lengths}


def write_shards(
    folder: Path, documents: Documents, multiples: tuple[int, int], shuffle_seed: int | None, pad_id: int
) -> int:
    """The number of packs that closed documents become, in `shard_NNNNNN.parquet`; the documents' own files go.

    multiples: what slots and packs are rounded up to.
    """
    slots = [round_up(length, multiples[0]) for length in documents.lengths]
    plan = plan_order(slots, documents.longest, shuffle_seed)
    _write_plan(folder, plan, lambda chosen: _row(documents, chosen, slots, multiples[1], pad_id), documents.longest)
    shutil.rmtree(documents.folder)
    return len(plan)


def _write_plan(folder: Path, plan: list[list[int]], row: Callable[[list[int]], dict], capacity: int) -> None:
    """The rows of a plan into `shard_NNNNNN.parquet`, as many as hold SHARD_TOKENS in each."""
    group = max(1, ROW_GROUP_TOKENS // capacity)
    per_shard = group * max(1, SHARD_TOKENS // (group * capacity))
    for number, first in enumerate(range(0, len(plan), per_shard)):
        shard = plan[first : first + per_shard]
        with pq.ParquetWriter(folder / f"shard_{number:06}.parquet", SCHEMA, compression="zstd") as writer:
            for at in range(0, len(shard), group):
                writer.write_table(pa.Table.from_pylist([row(chosen) for chosen in shard[at : at + group]], SCHEMA))


def read_report(folder: Path) -> Report:
    """What a folder that `write_packed` made holds. Raises DataError for another folder."""
    try:
        return Report(**json.loads((folder / REPORT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: no packed dataset ({REPORT}: {error}); write one with nemo-cascade pack") from error


class PackedDataset:
    """The packs of a folder that `write_packed` made: dataset[i] is the samples of pack i, without padding.

    Raises DataError for another folder.
    """

    def __init__(self, folder: Path):
        self.report = read_report(folder)
        self._files = [pq.ParquetFile(path) for path in sorted(folder.glob("shard_*.parquet"))]
        self._groups = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._cached: tuple[int, pa.Table | None] = -1, None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> list[Sample]:
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        group = bisect.bisect_right(self._starts, index) - 1
        if self._cached[0] != group:
            file, number = self._groups[group]
            self._cached = group, file.read_row_group(number)
        row = {name: self._cached[1][name][index - self._starts[group]].as_py() for name in SCHEMA.names}
        return [
            # The first token has no prediction, so no entry of the row tells whether it is trained on.
            Sample(row["input_ids"][start : start + n], [0, *row["loss_mask"][start : start + n - 1]])
            for start, n in zip(row["seq_start_id"], row["seq_length"])
        ]
