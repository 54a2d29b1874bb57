"""A packed dataset holds every token of its rows, laid out as training reads it; what is not whole is not there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nemo_cascade.data import packed_dataset
from nemo_cascade.data.chat import conversation_to_samples
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.packed_dataset import PackedDataset, write_packed
from nemo_cascade.data.rows import DataError
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.engine.batch import build_pack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    """Conversations of a short and of a long domain; the first has two turns."""
    drawn = {}
    for domain in (DOMAINS["math"], DOMAINS["tool_use"]):
        asked = domain.rows(40, "train", level="demo")
        drawn[domain.name] = [domain.demonstration(row, number) for number, row in enumerate(asked)]
    first = drawn["math"][0]
    first["messages"] = [*first["messages"], *drawn["math"][1]["messages"]]
    return drawn


@pytest.fixture
def files(rows, tmp_path) -> list[Path]:
    paths = []
    for name, conversations in rows.items():
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in conversations))
    return paths


@pytest.fixture(scope="module")
def samples(rows) -> list[tuple]:
    """(tokens, loss mask) of every document, in the files' order."""
    tokenizer = load_tokenizer("tiny")
    return [as_tuple(s) for name in rows for row in rows[name] for s in conversation_to_samples(tokenizer, row)]


def as_tuple(sample) -> tuple:
    return tuple(sample.tokens), tuple(sample.loss_mask)


def table_rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (1, 2), (2, 4)], ids="tp{0[0]}-cp{0[1]}".format)
@pytest.mark.parametrize("shuffle_seed", [None, 0])
def test_what_is_read_back_is_every_document_once(files, samples, tmp_path, layout, shuffle_seed, monkeypatch):
    # Two packs a row group and four a shard, so that packs of several of both are read.
    monkeypatch.setattr(packed_dataset, "ROW_GROUP_TOKENS", 1024)
    monkeypatch.setattr(packed_dataset, "SHARD_TOKENS", 2048)
    tp, cp = layout
    sizes = dict(tensor_model_parallel_size=tp, context_parallel_size=cp)
    write_packed(files, tmp_path / "out", "tiny", 512, **sizes, shuffle_seed=shuffle_seed)
    dataset = PackedDataset(tmp_path / "out")
    packs = [dataset[index] for index in range(len(dataset))]
    assert len(list((tmp_path / "out").glob("*.parquet"))) > 1
    assert sorted(as_tuple(sample) for samples in packs for sample in samples) == sorted(samples)
    assert [as_tuple(sample) for sample in dataset[0]] == [as_tuple(sample) for sample in packs[0]]


@pytest.mark.parametrize("tp, cp", [(1, 1), (4, 1), (1, 2), (4, 4)])
def test_documents_and_packs_have_the_lengths_that_the_layout_needs(files, tmp_path, tp, cp):
    write_packed(files, tmp_path / "out", "tiny", 512, tensor_model_parallel_size=tp, context_parallel_size=cp)
    for row in table_rows(tmp_path / "out"):
        ends = [*row["seq_start_id"][1:], len(row["input_ids"])]
        slots = [end - start - 1 for start, end in zip(row["seq_start_id"], ends)]
        assert sum(slots) <= 512 and sum(slots) // cp % tp == 0
        assert cp == 1 or all(slot % (2 * cp) == 0 for slot in slots)
        assert all(n <= slot + 1 for n, slot in zip(row["seq_length"], slots))


def test_a_row_read_as_nemo_reads_it_is_what_the_engine_builds(files, tmp_path):
    write_packed(files, tmp_path / "out", "tiny", 512)
    dataset = PackedDataset(tmp_path / "out")
    for index, row in enumerate(table_rows(tmp_path / "out")):
        # Inputs are each document's tokens but the last, labels those but the first; the mask is at the label's place.
        spans = list(zip(row["seq_start_id"], [*row["seq_start_id"][1:], len(row["input_ids"])]))
        inputs = [token for start, end in spans for token in row["input_ids"][start : end - 1]]
        labels = [token for start, end in spans for token in row["input_ids"][start + 1 : end]]
        mask = [trained for start, end in spans for trained in row["loss_mask"][start : end - 1]]
        samples = dataset[index]
        built = build_pack(samples, list(range(len(samples))), 1, "cpu")
        assert (built.tokens[0].tolist(), built.labels[0].tolist(), built.mask.tolist()) == (inputs, labels, mask)


def test_the_report_tells_what_the_folder_holds(files, samples, tmp_path):
    write_packed(files, tmp_path / "out", "tiny", 512, tensor_model_parallel_size=2, context_parallel_size=2)
    report = json.loads((tmp_path / "out" / "packing.json").read_text())
    lengths = [len(tokens) - 1 for tokens, _ in samples]
    assert (report["documents"], report["tokens"]) == (len(lengths), sum(lengths))
    assert (report["longest"], report["shortest"]) == (max(lengths), min(lengths))
    assert (report["capacity"], report["document_multiple"], report["pack_multiple"]) == (512, 4, 4)
    assert report["packs"] == len(table_rows(tmp_path / "out"))
    assert report["efficiency"] == pytest.approx(sum(lengths) / (report["packs"] * 512))
    assert report["documents_of"] == {str(files[0]): 41, str(files[1]): 40}
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".parquet"}


def test_packs_are_longest_first_or_with_a_seed_samples_of_all_files(files, samples, tmp_path):
    write_packed(files, tmp_path / "sorted", "tiny", 2048)
    write_packed(files, tmp_path / "mixed", "tiny", 2048, shuffle_seed=0)
    of_first_file = set(samples[:41])
    share = {
        name: [sum(as_tuple(s) in of_first_file for s in pack) / len(pack) for pack in PackedDataset(tmp_path / name)]
        for name in ("sorted", "mixed")
    }
    lengths = [len(sample.tokens) for sample in PackedDataset(tmp_path / "sorted")[0]]
    assert lengths == sorted(lengths, reverse=True)
    assert max(share["sorted"]) - min(share["sorted"]) > max(share["mixed"]) - min(share["mixed"])


def test_a_document_longer_than_a_pack_is_refused_with_its_file_and_row_or_left_out(files, samples, tmp_path):
    longest = max(len(tokens) - 1 for tokens, _ in samples)
    with pytest.raises(DataError) as refused:
        write_packed(files, tmp_path / "out", "tiny", longest - 1)
    *named, remedy = str(refused.value).splitlines()
    assert named and all(f"{longest} tokens, more than the {longest - 1} of a pack" in line for line in named)
    places = [line.split(" ")[0].rsplit(":", 1) for line in named]
    tokenizer = load_tokenizer("tiny")
    for path, number in places:
        row = json.loads(Path(path).read_text().splitlines()[int(number) - 1])
        assert max(len(s.tokens) - 1 for s in conversation_to_samples(tokenizer, row)) == longest
    assert remedy.startswith(f"{len(named)} documents are too long") and "skip" in remedy
    assert not (tmp_path / "out").exists() and not (tmp_path / "tmp_out").exists()
    report = write_packed(files, tmp_path / "out", "tiny", longest - 1, on_too_long="skip")
    assert report.too_long == named and report.documents == len(samples) - len(named)


def test_a_bad_row_is_refused_with_its_file_and_row_or_left_out(files, samples, tmp_path):
    files[0].write_text('{"half": \n' + files[0].read_text())
    with pytest.raises(DataError, match="math.jsonl, row 1: not JSON"):
        write_packed(files, tmp_path / "out", "tiny", 512)
    report = write_packed(files, tmp_path / "out", "tiny", 512, on_bad_row="skip")
    assert len(report.skipped_rows) == 1 and report.documents == len(samples)


def test_what_cannot_be_packed_is_refused_before_anything_is_written(files, tmp_path):
    with pytest.raises(DataError, match="510 is no multiple of 4"):
        write_packed(files, tmp_path / "out", "tiny", 510, context_parallel_size=2)
    with pytest.raises(DataError, match="no document is left to pack"):
        write_packed(files, tmp_path / "out", "tiny", 2, on_too_long="skip")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_packed(files, tmp_path / "out", "tiny", 512)
    assert list((tmp_path / "out").iterdir()) == [] and not (tmp_path / "tmp_out").exists()


@pytest.mark.parametrize("moment", ["pq.ParquetWriter.close", "Report", "Path.rename"])
def test_a_killed_write_leaves_nothing_that_looks_finished(files, samples, tmp_path, moment):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from nemo_cascade.data import packed_dataset\n"
        f"packed_dataset.{moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files = [Path(name) for name in sys.argv[1:]]\n"
        "packed_dataset.write_packed(files, files[0].with_name('out'), 'tiny', 512)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program, *map(str, files)], env=environment, timeout=240)
    assert done.returncode == -signal.SIGKILL and list((tmp_path / "tmp_out").glob("*.parquet"))
    with pytest.raises(DataError, match="no packed dataset"):
        PackedDataset(tmp_path / "out")
    assert write_packed(files, tmp_path / "out", "tiny", 512).documents == len(samples)
    assert len(PackedDataset(tmp_path / "out")) and not (tmp_path / "tmp_out").exists()
