"""A set prepared: what goes in comes out or is listed, whatever it is read from, and a kill changes no byte."""

import dataclasses
import fcntl
import functools
import json

import huggingface_hub
import huggingface_hub.constants as hub_constants
import pytest
from hub_server import serving
from killed import killed_at
from released_files import (
    RL,
    SFT,
    chat,
    contents,
    dropped,
    follow,
    gym_row,
    rl_folder,
    sentence,
    sft_folder,
    with_tools,
    write_lines,
    write_table,
)

from nemo_cascade import environments
from nemo_cascade.data.chat import conversation_to_samples
from nemo_cascade.data.packed_dataset import PackedDataset
from nemo_cascade.data.prepare import source
from nemo_cascade.data.prepare.convert import Rules
from nemo_cascade.data.prepare.conversations import to_conversation
from nemo_cascade.data.prepare.run import Job, prepare
from nemo_cascade.data.rows import DataError, load_rows
from nemo_cascade.data.tokenizer import load_tokenizer
from nemo_cascade.environments.workplace_assistant.data import VARIABLE

CAPACITY = 1024


def sft_job(folder, **changes) -> Job:
    rules = Rules(tokenizer="tiny", capacity=CAPACITY)
    return dataclasses.replace(Job(SFT, ("chat", "conversational_agent"), rules, folder=str(folder), part_rows=10), **changes)


def rl_job(folder, **changes) -> Job:
    rules = Rules(validation_share=0.3, gym_servers=("openhands",))
    return dataclasses.replace(Job(RL, ("IF-RL", "SWE-RL"), rules, folder=str(folder), part_rows=12), **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    return {"sft": sft_folder(root / "sft"), "rl": rl_folder(root / "rl")}


@pytest.fixture(scope="module")
def prepared(folders, tmp_path_factory):
    """kind -> (job, folder, report) of an undisturbed run, made when it is first asked for."""
    out = tmp_path_factory.mktemp("prepared")

    @functools.cache
    def made(kind: str):
        job = {"sft": sft_job, "rl": rl_job}[kind](folders[kind])
        return job, out / kind, prepare(job, out / kind)

    return made


def test_packs_hold_every_sample_of_the_conversations_and_nothing_else(folders, prepared):
    _, out, report = prepared("sft")
    tokenizer = load_tokenizer("tiny")
    rows = [chat(n, turns=1 + n % 3, thinking=n % 2 == 0) for n in range(24) if n not in (6, 13)] + [with_tools(5000 + n) for n in range(6)]
    expected = sorted((s.tokens, s.loss_mask) for row in rows for s in conversation_to_samples(tokenizer, to_conversation(row)[0]))
    packs = PackedDataset(out)
    assert sorted((s.tokens, s.loss_mask) for pack in packs for s in pack) == expected
    assert (len(packs), packs.report.documents) == (report["packs"], len(expected))
    assert packs.report.tokens == sum(len(tokens) - 1 for tokens, _ in expected) == sum(c["tokens"] for c in report["subsets"].values())
    assert packs.report.longest == max(len(tokens) - 1 for tokens, _ in expected)
    assert dropped(out) == [("chat", "chat/part_0.jsonl", 7, "no_answer"), ("chat", "chat/part_1.jsonl", 3, "unreadable")]
    assert [report["subsets"]["chat"][key] for key in ("rows_in", "rows_out", "dropped")] == [24, 22, {"no_answer": 1, "unreadable": 1}]
    assert report["subsets"]["conversational_agent"]["mended"] == {"calls_inline": 6, "tool_results": 6}


def test_rl_rows_are_those_that_the_stages_loader_takes_in_two_splits(folders, prepared):
    _, out, report = prepared("rl")
    rows = {split: [] for split in ("train", "validation")}
    for name in report["files"]:
        known = {*environments.names(), "openhands"}
        problem = environments.row_problem if "IF-RL" in name else lambda row: None
        loaded, _ = load_rows(out / name, "rl", environments=known, unverifiable=lambda rows: [problem(row) for row in rows])
        rows[name.rsplit("/")[-1].removesuffix(".jsonl")] += loaded
        assert name.split("/")[1] == ("instruction_following" if "IF-RL" in name else "openhands")
    ids = sorted(row["id"] for split in rows.values() for row in split)
    assert ids == sorted([*(n for n in range(40) if n not in (3, 30)), *range(9000, 9006)])
    assert all(rows.values()) and all(row["agent_ref"]["name"] for split in rows.values() for row in split)
    assert dropped(out) == [("IF-RL", "IF-RL/train.jsonl", 4, "unverifiable"), ("IF-RL", "IF-RL/train.jsonl", 31, "no_environment")]
    assert report["subsets"]["IF-RL"]["mended"] == {"agent_ref": 1, "arguments": 1}


@pytest.mark.parametrize("kind", ["rl", "sft"])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(kind, folders, prepared, tmp_path):
    job, undisturbed, _ = prepared(kind)
    moments = [("record", 0), ("record", 1), ("move", 1), ("report", 0), ("clean", 0)]
    if kind == "sft":
        moments = [("shard", 1), *moments[1:3], ("packing", 0), *moments[3:]]
    done = 0
    for moment, passing in moments:
        killed_at(moment, passing, job, tmp_path / "out")
        whole = len(list((tmp_path / "out" / "parts").glob("*/record.json")))
        assert whole >= done
        done = max(done, whole)
    told = []
    prepare(job, tmp_path / "out", advance=told.append)
    assert told == [] and contents(tmp_path / "out") == contents(undisturbed)


def test_what_was_done_is_not_done_again(folders, prepared, tmp_path):
    job, _, report = prepared("rl")
    killed_at("record", 2, job, tmp_path / "out")
    told = []
    assert prepare(job, tmp_path / "out", advance=told.append) == report
    # Two parts of 12 rows at once, the others row by row.
    assert told[0] > 12 and set(told[1:]) == {1} and sum(told) == 46


@pytest.mark.parametrize("kind", ["rl", "sft"])
def test_streamed_from_the_hub_it_is_what_a_folder_gives(kind, folders, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    job, undisturbed, _ = prepared(kind)
    with serving(folders[kind], job.released.repository, job.released.revision) as (address, seen):
        monkeypatch.setattr(huggingface_hub, "HfFileSystem", functools.partial(huggingface_hub.HfFileSystem, endpoint=address))
        prepare(dataclasses.replace(job, folder=None), tmp_path / "out")
    assert any("resolve" in request for request in seen)
    streamed, local = contents(tmp_path / "out"), contents(undisturbed)
    reports = [json.loads(each.pop("prepare.json")) for each in (streamed, local)]
    sources = [report["settings"].pop("source") for report in reports]
    assert sources == [f"datasets/{job.released.repository}@{job.released.revision}", str(folders[kind])]
    assert streamed == local and reports[0] == reports[1]


def test_tables_give_what_lines_give(tmp_path):
    """A table puts every key into every object; the rows that come out have their own."""
    rows = [follow(n) for n in range(9)]
    rows[4] = follow(4, instruction_id_list=["length_constraints:number_words"], kwargs=[{"num_words": 50, "relation": "at least"}])
    write_lines(tmp_path / "lines" / "IF-RL" / "train.jsonl", rows)
    write_table(tmp_path / "table" / "IF-RL" / "train.parquet", rows)
    for name in ("lines", "table"):
        # Parts begin within a row group and go over its end.
        prepare(rl_job(tmp_path / name, subsets=("IF-RL",), part_rows=3), tmp_path / f"out_{name}")
    read = [
        [json.loads(line) for path in sorted((tmp_path / f"out_{name}").rglob("IF-RL/*/*.jsonl")) for line in open(path)]
        for name in ("lines", "table")
    ]
    for row in (row for rows in read for row in rows):
        row["responses_create_params"].pop("tools", None)
    assert read[0] == read[1] and len(read[0]) == 9


def test_a_limit_is_of_each_subset(folders, tmp_path):
    report = prepare(rl_job(folders["rl"], limit=5, part_rows=4), tmp_path / "out")
    assert [counts["rows_in"] for counts in report["subsets"].values()] == [5, 5]


@pytest.mark.slow
def test_how_many_processes_convert_changes_no_byte(folders, prepared, tmp_path):
    job, alone, _ = prepared("sft")
    prepare(job, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(alone)


def test_each_part_is_a_sample_of_all_subsets(tmp_path):
    """Of 40 rows of chat and 4 of safety, whose sizes in the catalogue are thousands to one, every part has both until one ends."""
    write_lines(tmp_path / "chat" / "train.jsonl", [chat(n) for n in range(40)])
    write_lines(tmp_path / "safety" / "train.jsonl", [chat(900 + n) for n in range(4)])
    job = sft_job(tmp_path, subsets=("chat", "safety"), part_rows=8)
    killed_at("record", 2, job, tmp_path / "out")
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "parts").glob("*/record.json"))]
    assert [[c["rows_in"] for c in record["counts"].values()] for record in records] == [[7, 1], [7, 1]]


def test_samples_too_long_and_near_duplicates_of_evaluations_are_left_out_and_told(folders, tmp_path):
    write_lines(tmp_path / "evaluation" / "e.jsonl", [{"question": sentence(2)}, {"question": sentence(1004)}])
    long = {"messages": [*chat(70)["messages"], *chat(71)["messages"][1:2], {"role": "assistant", "content": "word " * 900}]}
    too_long = {"messages": [chat(72)["messages"][1], {"role": "assistant", "content": "word " * 900}]}
    odd = {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}, chat(73)["messages"][2]], "tools": [{"a": 1}]}
    write_lines(tmp_path / "in" / "chat" / "train.jsonl", [*(chat(n, turns=2) for n in range(6)), long, too_long, odd, '{"messages": "\\ud800"}'])
    rules = Rules(tokenizer="tiny", capacity=512, evaluation=tmp_path / "evaluation")
    report = prepare(sft_job(tmp_path / "in", subsets=("chat",), rules=rules), tmp_path / "out")
    reasons = [(row, reason) for _, _, row, reason in dropped(tmp_path / "out")]
    assert reasons == [(3, "evaluation"), (5, "evaluation"), (8, "too_long"), (9, "template"), (10, "unreadable")]
    assert report["too_long"] == 2 and len(PackedDataset(tmp_path / "out").report.too_long) == 2
    assert len([s for pack in PackedDataset(tmp_path / "out") for s in pack]) == 4 * 2 + 1
    write_lines(tmp_path / "rl" / "IF-RL" / "train.jsonl", [follow(n) for n in range(5)])
    rules = Rules(evaluation=tmp_path / "evaluation")
    prepare(rl_job(tmp_path / "rl", subsets=("IF-RL",), rules=rules), tmp_path / "rl_out")
    assert dropped(tmp_path / "rl_out") == [("IF-RL", "IF-RL/train.jsonl", 3, "evaluation")]


def test_what_cannot_be_prepared_is_refused_in_a_line(folders, prepared, tmp_path, monkeypatch):
    job, out, _ = prepared("rl")
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    write_lines(tmp_path / "both" / "IF-RL" / "a.jsonl", [follow(1)])
    write_table(tmp_path / "both" / "IF-RL" / "b.parquet", [follow(1)])
    write_lines(tmp_path / "none" / "IF-RL" / "a.jsonl", [gym_row(1)])
    for changes, folder, told in [
        ({"limit": 3}, out, "begun with other settings .limit was null and is 3."),
        ({}, tmp_path / "mine", "holds something else"),
        ({"folder": str(tmp_path / "absent")}, tmp_path / "o", "no such folder"),
        ({"folder": str(folders["sft"])}, tmp_path / "o", "IF-RL: no .jsonl or .parquet file"),
        ({"folder": str(tmp_path / "both"), "subsets": ("IF-RL",)}, tmp_path / "o", "the same rows twice"),
        ({"folder": str(tmp_path / "none"), "subsets": ("IF-RL",)}, tmp_path / "o", "nothing is left .*no_environment"),
        ({"subsets": ("MOPD",)}, tmp_path / "o2", f"set {VARIABLE} .* or leave these rows out with --without workplace_assistant"),
        ({"folder": None, "revision": "main"}, tmp_path / "o2", "--revision must be a commit"),
    ]:
        with pytest.raises(DataError, match=told):
            prepare(dataclasses.replace(job, **changes), folder)
    with pytest.raises(DataError, match="1023 is no multiple of 4"):
        rules = Rules(tokenizer="tiny", capacity=1023)
        prepare(sft_job(folders["sft"], rules=rules, context_parallel_size=2), tmp_path / "o2")
    (tmp_path / "busy" / "parts").mkdir(parents=True)
    with open(tmp_path / "busy" / "parts" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another nemo-cascade data prepare"):
            prepare(job, tmp_path / "busy")


def test_lines_are_read_from_any_place_as_from_the_start(folders):
    where = source.folder(str(folders["sft"]))
    files = list(where.files(SFT, "chat"))
    whole, end = where.take("chat", files, source.Place(), 100)
    place, pieces = source.Place(), []
    while place is not None:
        taken, place = where.take("chat", files, place, 5)
        pieces += taken
    assert pieces == whole and end is None and len(whole) == 24
