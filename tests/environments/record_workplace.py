"""Records what NeMo Gym's workplace tools make of 2,000 random call sequences on our data: the suite's oracle where Gym is not.

    python tests/environments/record_workplace.py --wheel nemo_gym-0.4.0-py3-none-any.whl --python python-with-pandas

Run it again, and look at what changed, when the generated data or the random calls change.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from nemo_cascade.environments.workplace_assistant import ROW_KEY, verify
from nemo_cascade.environments.workplace_assistant.data import GENERATED, databases, write
from nemo_cascade.environments.workplace_assistant.office import CannotRun, Office
from nemo_cascade.environments.workplace_assistant.search import Refused
from tests.environments.workplace_calls import Codebook, Corpus, answer_form, hashed, state_form

HERE = Path(__file__).parent
RECORD = HERE / "workplace_record.json"
TABLES = ("emails", "events", "tasks", "customers", "plots")
SEQUENCES, PAIRS, SEED = 2000, 1000, 0


def random_calls(source: str, sequences: int, pairs: int, seed: int = SEED) -> dict:
    """{"sequences", "pairs"} of calls about the records of a source."""
    data = databases(source)
    names = ("emails", "events", "visits", "tasks", "customers")
    corpus = Corpus({name: list(getattr(data, name)) for name in names}, list(data.directory), seed)
    return {"sequences": [corpus.sequence() for _ in range(sequences)], "pairs": [corpus.pair() for _ in range(pairs)]}


def gym(wheel: str, python: str, folder: str, calls: dict) -> dict:
    """What Gym makes of calls on the CSV files of a folder."""
    command = [python, str(HERE / "workplace_oracle.py"), wheel, folder]
    ran = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"Gym's side failed: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout)


def ours(source: str, calls: dict) -> dict:
    """What we make of them, in the same form."""
    fresh = Office(databases(source))
    base = {name: getattr(fresh, name).rows for name in TABLES}
    sequences = []
    for sequence in calls["sequences"]:
        office = Office(databases(source))
        answers = [form_of(office, call) for call in sequence]
        held = {name: getattr(office, name).rows for name in TABLES}
        sequences.append({"answers": answers, "state": state_form(held, base)})
    return {"sequences": sequences, "pairs": [verdict(source, *pair) for pair in calls["pairs"]]}


def form_of(office: Office, call: dict) -> list[str]:
    given = {key: value for key, value in call["arguments"].items() if value is not None}
    try:
        return answer_form(office.run(call["name"], given))
    except Refused as refusal:
        return answer_form(str(refusal))
    except CannotRun as error:
        return ["error", str(error)]


def verdict(source: str, predicted: list[dict], expected: list[dict]) -> float:
    row = {"ground_truth": [written(call) for call in expected], ROW_KEY: source}
    # A message beside the calls, as a rollout ends with one.
    output = [{"type": "function_call", **written(call)} for call in predicted] + [{"type": "message", "content": []}]
    return verify(row, {"output": output})["reward"]


def written(call: dict) -> dict:
    return {**call, "arguments": json.dumps(call["arguments"])}


def digests(calls: dict, made: dict, skipped: set[tuple[int, int]]) -> list[str]:
    """One for each sequence, over its answers and its final state; answers at `skipped` (sequence, call) do not count."""
    codes, found = Codebook(), []
    for number, (sequence, result) in enumerate(zip(calls["sequences"], made["sequences"])):
        answers = [
            codes.of(call["name"], form)
            for place, (call, form) in enumerate(zip(sequence, result["answers"]))
            if (number, place) not in skipped
        ]
        found.append(hashed([answers, result["state"]]))
    return found


def skips(made: dict) -> set[tuple[int, int]]:
    """Where Gym fails because of a cell that the session itself left empty."""
    return {
        (number, place)
        for number, result in enumerate(made["sequences"])
        for place, (kind, _) in enumerate(result["answers"])
        if kind == "skipped"
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--python", required=True)
    options = parser.parse_args()
    asked = random_calls(GENERATED, SEQUENCES, PAIRS)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        made = gym(options.wheel, options.python, folder, asked)
    record = {
        "calls": hashed(asked),
        "skipped": sorted(skips(made)),
        "digests": digests(asked, made, skips(made)),
        # 1 and 0 as Gym judges; x where it does not see that the records are equal.
        "verdicts": "".join("1" if pair["verdict"] else "x" if pair["equal"] else "0" for pair in made["pairs"]),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
