"""Records what NeMo Gym's servers make of random replies to random rows of ours: the suite's oracle where Gym is not.

    python tests/environments/record_checked.py --wheel nemo_gym-0.4.0-py3-none-any.whl --python python-as-in-checked_oracle

Run it again, and look at what changed, when the pairs change.
"""

import argparse
import hashlib
import json
import subprocess
from pathlib import Path

from jsonschema import SchemaError

from nemo_cascade.environments import get, response_of
from tests.environments.checked_pairs import pairs

HERE = Path(__file__).parent
RECORD = HERE / "checked_record.json"
NAMES = ("mcqa", "structured_outputs", "math", "reasoning_gym")
PAIRS = 2000


def gym(wheel: str, python: str, asked: list[tuple[str, dict, dict]]) -> list[dict]:
    """Gym's verdicts on (environment, row, response)."""
    command = [python, str(HERE / "checked_oracle.py"), wheel]
    ran = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"Gym's side failed: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout)


def theirs(wheel: str, python: str, name: str, drawn: list[tuple[dict, str]]) -> list[str]:
    """Gym's verdicts in short; no reward where its server fails."""
    return [
        short(name, found) for found in gym(wheel, python, [(name, row, response_of(reply, False)) for row, reply in drawn])
    ]


def ours(name: str, drawn: list[tuple[dict, str]]) -> list[str]:
    """Our verdicts in short; no reward for a schema that is none, as Gym has it."""
    return [short(name, _verdict(name, row, reply)) for row, reply in drawn]


def _verdict(name: str, row: dict, reply: str) -> dict:
    try:
        return get(name).verify(row, response_of(reply, thinking=False))
    except SchemaError:
        return {}


def short(name: str, verdict: dict) -> str:
    """The reward, and for multiple choice the letter too: of ten letters most are as wrong as each other."""
    letter = verdict.get("extracted_answer") if name == "mcqa" else None
    return f"{round(verdict.get('reward', 0.0), 6):g}{letter or ''}"


def digest(drawn: list[tuple[dict, str]]) -> str:
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--python", required=True)
    options = parser.parse_args()
    record = {}
    for name in NAMES:
        drawn = pairs(name, PAIRS)
        record[name] = {"pairs": digest(drawn), "verdicts": " ".join(theirs(options.wheel, options.python, name, drawn))}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
