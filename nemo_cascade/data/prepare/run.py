"""A released set, or some of it, from its files to packed shards (SFT) or JSONL with splits (RL), and a report.

Each part has rows of every subset in the proportion of their sizes, so that packs, which are shuffled within a part, are
samples of the mixture. Left out: joining nearly empty packs of different parts (each part ends in about one).
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nemo_cascade.data.files import new_folder, write_atomically
from nemo_cascade.data.hashes import file_hash, json_hash
from nemo_cascade.data.packed_dataset import REPORT as PACKING
from nemo_cascade.data.packed_dataset import Documents, Report, write_shards
from nemo_cascade.data.packing import document_multiple, pack_multiple
from nemo_cascade.data.prepare import parts, source
from nemo_cascade.data.prepare.catalogue import WORKPLACE, ReleasedSet
from nemo_cascade.data.prepare.convert import Outcome, Rules, converting
from nemo_cascade.data.prepare.outcome import Counts
from nemo_cascade.data.prepare.parts import DROPPED, Record
from nemo_cascade.data.prepare.source import Place, Raw, Source
from nemo_cascade.data.rows import DataError
from nemo_cascade.data.tokenizer import fingerprint, load_tokenizer
from nemo_cascade.environments.workplace_assistant.data import VARIABLE, source_of


@dataclass(frozen=True)
class Job:
    """What to prepare. folder: read there, not on the hub. limit: rows read of each subset. part_rows: of all together."""

    released: ReleasedSet
    subsets: tuple[str, ...]
    rules: Rules = field(default_factory=Rules)
    folder: str | None = None
    revision: str | None = None
    limit: int | None = None
    part_rows: int = 20_000
    tensor_model_parallel_size: int = 1
    context_parallel_size: int = 1
    shuffle_seed: int | None = 0

    @property
    def multiples(self) -> tuple[int, int]:
        """What slots and packs are rounded up to."""
        size = self.context_parallel_size
        return document_multiple(size), pack_multiple(self.tensor_model_parallel_size, size)


def prepare(job: Job, out: Path, workers: int = 1, advance: Callable[[int], None] = lambda rows: None) -> dict:
    """The report, which `out` holds too; goes on where an earlier call was killed. `advance` is told of rows that are done.

    Raises DataError when nothing is left, and for what cannot be begun: see `parts.begun`, `Source.files` and `_look`.
    """
    _look(job)
    where = source.folder(job.folder) if job.folder is not None else source.hub(job.released, job.revision)
    files = {name: where.files(job.released, name) for name in job.subsets}
    tokenizer = load_tokenizer(job.rules.tokenizer) if job.rules.tokenizer is not None else None
    settings = _settings(job, where, files, tokenizer)
    done = parts.finished(out, settings)
    if done is not None:
        return done
    with ExitStack() as stack:
        folder, records = stack.enter_context(parts.begun(out, settings))
        advance(sum(counts.rows_in for record in records for counts in record.counts.values()))
        convert = None
        while (places := _next(job, records)) is not None:
            if convert is None:
                convert = stack.enter_context(converting(job.rules, workers))
            raws, ends = _read(job, where, files, places, records)
            with new_folder(parts.part(folder, len(records))) as temporary:
                outcomes = _counted(convert(raws), advance)
                record = _write(job, temporary, raws, outcomes, ends, tokenizer)
                record.write(temporary)
            records.append(record)
        report = _report(job, settings, records)
        parts.join(out, records)
        if job.released.kind == "sft":
            write_atomically(out / PACKING, json.dumps(asdict(_packing(job, records)), indent=2) + "\n")
        parts.end(out, report)
    return report


def _look(job: Job) -> None:
    """Raises DataError for what would drop rows that are good, or could not be packed."""
    multiple = job.multiples[1]
    if job.released.kind == "sft" and job.rules.capacity % multiple:
        raise DataError(f"a capacity of {job.rules.capacity} is no multiple of {multiple}, as the layout needs; change it")
    elsewhere = {*job.rules.without, *job.rules.gym_servers}
    for name in job.subsets:
        if WORKPLACE in job.released.subset(name).needs and WORKPLACE not in elsewhere and source_of({}) is None:
            raise DataError(
                f"{name}: its rows of {WORKPLACE} are for databases that it does not hold; set {VARIABLE} to the folder of "
                f"NeMo Gym's csv_data, or leave these rows out with --without {WORKPLACE}"
            )


def _settings(job: Job, where: Source, files: dict[str, dict[str, int]], tokenizer) -> dict:
    """All that decides over the output, so that what was begun with other settings is not gone on with."""
    evaluation = job.rules.evaluation
    evaluations = [path for path in sorted(evaluation.rglob("*")) if path.is_file()] if evaluation is not None else []
    rules = asdict(job.rules) | {"evaluation": evaluation and str(evaluation)}
    return {
        "set": job.released.name,
        "source": where.root,
        "subsets": list(job.subsets),
        "files": files,
        **rules,
        "evaluation_hash": json_hash({str(path): file_hash(path) for path in evaluations}),
        "tokenizer_hash": json_hash(fingerprint(tokenizer)) if tokenizer is not None else None,
        "limit": job.limit,
        "part_rows": job.part_rows,
        "multiples": list(job.multiples),
        "shuffle_seed": job.shuffle_seed,
    }


def _next(job: Job, records: list[Record]) -> dict[str, Place] | None:
    """Where the next part begins in the subsets that are not at their end; None when all are."""
    places = records[-1].places if records else {name: Place() for name in job.subsets}
    left = {name: place for name, place in places.items() if place is not None}
    return left or None


def _read(
    job: Job, where: Source, files: dict, places: dict[str, Place], records: list[Record]
) -> tuple[list[Raw], dict[str, Place | None]]:
    """The rows of the next part, and where the one after it begins."""
    left = {name: _left(job, name, records) for name in places}
    weights = {name: min(job.released.subset(name).rows or 1, job.limit or sys.maxsize) for name in places}
    raws: list[Raw] = []
    ends: dict[str, Place | None] = dict.fromkeys(job.subsets)
    for name, place in places.items():
        count = min(left[name], max(1, job.part_rows * weights[name] // sum(weights.values())))
        taken, end = where.take(name, list(files[name]), place, count)
        raws += taken
        ends[name] = end if len(taken) < left[name] else None
    return raws, ends


def _left(job: Job, name: str, records: list[Record]) -> int:
    """Rows of a subset that may still be read."""
    return sys.maxsize if job.limit is None else job.limit - sum(record.counts[name].rows_in for record in records)


def _counted(outcomes: Iterator[Outcome], advance: Callable[[int], None]) -> Iterator[Outcome]:
    for outcome in outcomes:
        yield outcome
        advance(1)


def _write(
    job: Job, folder: Path, raws: list[Raw], outcomes: Iterator[Outcome], ends: dict[str, Place | None], tokenizer
) -> Record:
    """What the rows of a part became, in its folder, and its record."""
    record = Record(ends, {name: Counts() for name in job.subsets})
    documents: Documents | None = None
    with ExitStack() as stack:
        dropped = stack.enter_context(open(folder / DROPPED, "w", encoding="utf-8"))
        opened = {}
        for raw, outcome in zip(raws, outcomes, strict=True):
            counts = record.counts[raw.subset]
            counts.rows_in += 1
            counts.rows_out += outcome.dropped is None
            counts.mended += outcome.mended
            record.too_long += outcome.too_long
            if outcome.dropped is not None:
                counts.dropped[outcome.dropped.reason] += 1
                dropped.write(json.dumps(asdict(outcome.dropped)) + "\n")
            if outcome.samples and documents is None:
                documents = Documents(folder / "documents", job.rules.capacity)
            for sample in outcome.samples:
                documents.add(sample, "")
                counts.documents += 1
                counts.tokens += len(sample.tokens) - 1
            if outcome.task is not None:
                name = f"{raw.subset}/{outcome.task.domain}/{outcome.task.split}.jsonl"
                if name not in opened:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    opened[name] = stack.enter_context(open(folder / name, "w", encoding="utf-8"))
                opened[name].write(json.dumps(outcome.task.row, ensure_ascii=False) + "\n")
    record.files = sorted(opened)
    if documents is not None:
        record.longest, record.shortest = max(documents.lengths), min(documents.lengths)
        documents.close("skip")
        record.packs = write_shards(folder, documents, job.multiples, job.shuffle_seed, tokenizer.eos_token_id)
        record.files = sorted(path.name for path in folder.glob("shard_*.parquet"))
    return record


def _report(job: Job, settings: dict, records: list[Record]) -> dict:
    """`prepare.json`. Raises DataError when nothing is left."""
    counts = {name: Counts() for name in job.subsets}
    for record in records:
        for name, part in record.counts.items():
            counts[name].add(part)
    if not any(part.rows_out for part in counts.values()):
        reasons = "; ".join(f"{name}: {dict(part.dropped)} of {part.rows_in} rows" for name, part in counts.items())
        raise DataError(f"nothing is left ({reasons}); {parts.part(Path(parts.PARTS), 0) / DROPPED} in the folder says why")
    return {
        "set": job.released.name,
        "repository": job.released.repository,
        "subsets": {
            name: part.as_dict() | {"expected_rows": job.released.subset(name).rows} for name, part in counts.items()
        },
        "packs": sum(record.packs for record in records),
        "too_long": sum(len(record.too_long) for record in records),
        "files": sorted({name for record in records for name in record.files if name.endswith(".jsonl")}),
        "settings": settings,
    }


def _packing(job: Job, records: list[Record]) -> Report:
    """`packing.json`, as `nemo-cascade pack` writes it; dropped rows are in a file of their own."""
    documents_of = {
        name: sum(record.counts[name].documents for record in records) for name in job.subsets
    }
    tokens = sum(counts.tokens for record in records for counts in record.counts.values())
    packs = sum(record.packs for record in records)
    packed = [record for record in records if record.packs]
    return Report(
        documents=sum(documents_of.values()),
        tokens=tokens,
        packs=packs,
        capacity=job.rules.capacity,
        efficiency=tokens / (packs * job.rules.capacity),
        longest=max(record.longest for record in packed),
        shortest=min(record.shortest for record in packed),
        document_multiple=job.multiples[0],
        pack_multiple=job.multiples[1],
        shuffle_seed=job.shuffle_seed,
        tokenizer=job.rules.tokenizer,
        documents_of=documents_of,
        too_long=[line for record in records for line in record.too_long],
        skipped_rows=[],
    )
