"""The workplace tools do what NeMo Gym's do: by what was recorded of Gym, and by Gym itself where its wheel is at hand.

NEMO_GYM_WHEEL: path of nemo_gym-0.4.0-py3-none-any.whl; NEMO_GYM_PYTHON: a Python that has pandas, below 3.

What is known to differ, none of it a final state of good calls:
- Messages are in our own words; each of Gym's answers to one of ours and the other way round, tool by tool.
- Gym also compares at which place a record came into being: mail sent and then another deleted is not equal to the same the
  other way round. We compare records.
- In Gym a search fails once the session has added a customer without an address, and a visitor's seconds turn from text into a
  number once an average was asked for. Here a missing cell does not match, and texts stay texts.
- Times: numbers, and phrases that only pandas reads, are refused. So are lists and objects as values, pages of fewer than one
  record, texts of more than 20,000 characters and patterns that could take exponential time.
- E-mails of the same second come in no fixed order in Gym; here the older record comes first.
"""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from nemo_cascade.data.rows import tools_of
from nemo_cascade.environments.workplace_assistant import DEFINITIONS, problem, session, verify
from nemo_cascade.environments.workplace_assistant.data import GENERATED, VARIABLE
from tests.environments.record_workplace import PAIRS, RECORD, SEQUENCES, digests, gym, ours, random_calls, skips, written
from tests.environments.workplace_calls import hashed, plain

WHEEL, PYTHON = os.environ.get("NEMO_GYM_WHEEL", ""), os.environ.get("NEMO_GYM_PYTHON", sys.executable)
INSIDE = "resources_servers/workplace_assistant"


def test_calls_do_what_they_do_in_gym_by_the_record():
    record, calls = json.loads(RECORD.read_text(encoding="utf-8")), random_calls(GENERATED, SEQUENCES, PAIRS)
    assert hashed(calls) == record["calls"], "other calls or data: record them (record_workplace.py)"
    made = ours(GENERATED, calls)
    found = digests(calls, made, {tuple(place) for place in record["skipped"]})
    assert [n for n, (a, b) in enumerate(zip(found, record["digests"], strict=True)) if a != b] == []
    assert made["pairs"] == [float(said != "0") for said in record["verdicts"]]
    # Few enough not to hide anything, and both verdicts often enough to mean something.
    assert len(record["skipped"]) < 20 and record["verdicts"].count("x") < 20
    assert min(record["verdicts"].count(said) for said in "01") > 100


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Gym's data, out of the wheel."""
    if not Path(WHEEL).is_file():
        pytest.skip("NEMO_GYM_WHEEL names no wheel")
    folder = tmp_path_factory.mktemp("gym")
    with zipfile.ZipFile(WHEEL) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(f"{INSIDE}/")])
    return str(folder / INSIDE / "csv_data")


@pytest.fixture
def rows(data_folder, monkeypatch):
    """Gym's five example rows, which do not say what data they are for."""
    monkeypatch.setenv(VARIABLE, data_folder)
    lines = Path(data_folder, "../data/example.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def needs_pandas():
    has = "import importlib.util, sys; sys.exit(not importlib.util.find_spec('pandas'))"
    found = importlib.util.find_spec("pandas") if PYTHON == sys.executable else not subprocess.run([PYTHON, "-c", has]).returncode
    if not found:
        pytest.skip("NEMO_GYM_PYTHON names no Python with pandas")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_calls_do_what_they_do_in_gym_on_its_own_data(data_folder, seed):
    needs_pandas()
    calls = random_calls(data_folder, 500, 250, seed)
    theirs, made = gym(WHEEL, PYTHON, data_folder, calls), ours(data_folder, calls)
    left_out = skips(theirs)
    found, expected = digests(calls, made, left_out), digests(calls, theirs, left_out)
    assert [
        (c, a, b) for c, a, b, x, y in zip(calls["sequences"], made["sequences"], theirs["sequences"], found, expected) if x != y
    ] == []
    assert [result["state"] for result in made["sequences"]] == [result["state"] for result in theirs["sequences"]]
    assert made["pairs"] == [float(pair["equal"]) for pair in theirs["pairs"]]
    assert all(pair["equal"] or not pair["verdict"] for pair in theirs["pairs"])
    assert len(left_out) < 10 and sum(pair["equal"] != pair["verdict"] for pair in theirs["pairs"]) < 10


def test_gyms_example_rows_are_judged_as_gym_judges_them(rows, data_folder):
    needs_pandas()
    expected = [[{"name": c["name"], "arguments": json.loads(c["arguments"])} for c in row["ground_truth"]] for row in rows]
    loud = [
        [
            {**c, "arguments": {k: v.upper() if k in ("body", "new_value") else v for k, v in c["arguments"].items()}}
            for c in calls
        ]
        for calls in expected
    ]
    replies = [
        expected,
        loud,
        [calls[:-1] for calls in expected],
        [calls[::-1] for calls in expected],
        expected[1:] + expected[:1],
    ]
    pairs = [(made, right) for reply in replies for made, right in zip(reply, expected)]
    theirs = gym(WHEEL, PYTHON, data_folder, {"sequences": [], "pairs": pairs})["pairs"]
    message = {"type": "message", "content": []}
    mine = [
        verify(row, {"output": [*({"type": "function_call", **written(call)} for call in made), message]})["reward"]
        for row, (made, _) in zip(rows * len(replies), pairs)
    ]
    assert mine == [float(pair["verdict"]) for pair in theirs] and 0.0 in mine and mine[: len(rows)] == [1.0] * len(rows)


def test_gyms_example_rows_can_be_verified_and_only_on_gyms_data(rows, monkeypatch):
    assert [problem(row) for row in rows] == [None] * len(rows)
    monkeypatch.setenv(VARIABLE, GENERATED)
    assert all("a call of ground_truth fails" in problem(row) for row in rows)
    monkeypatch.delenv(VARIABLE)
    assert all(f"set {VARIABLE}" in problem(row) for row in rows)


def test_the_tools_have_gyms_names_and_parameters(rows):
    def shape(tool):
        parameters = tool["function"]["parameters"]
        types = {name: schema["type"] for name, schema in parameters["properties"].items()}
        return tool["function"]["name"], types, parameters["required"], parameters["additionalProperties"]

    for row in rows:
        assert list(map(shape, tools_of(row))) == list(map(shape, tools_of({"tools": DEFINITIONS})))


def test_a_session_tells_what_gyms_server_told_in_its_recorded_rollouts(rows, data_folder):
    lines = Path(data_folder, "../data/example_rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    compared = 0
    for line in lines:
        office, made = session(rows[0]), {}
        for item in json.loads(line)["response"]["output"]:
            if item["type"] == "function_call":
                made[item["call_id"]] = json.loads(office.call(item["name"], item["arguments"]))["output"]
            elif item["type"] == "function_call_output":
                said = json.loads(item["output"])["output"]
                data = not isinstance(said, str) or said.isdigit() or said.startswith("plots/")
                compared += data
                assert not data or plain(made[item["call_id"]]) == plain(said)
    assert compared >= 5
