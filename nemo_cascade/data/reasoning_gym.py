"""Writes RL rows of Reasoning Gym's puzzles: python -m nemo_cascade.data.reasoning_gym --out DIR --data-sets NAME ...

Writes DIR/{train,validation}.jsonl, with so many rows of each data set. The same arguments write the same rows (but for a
few data sets that go through sets of texts, word_ladder for one, only under the same PYTHONHASHSEED); training and validation
are disjoint by a hash of the question. Needs the extra `reasoning-gym`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from nemo_cascade.data.demo import is_validation
from nemo_cascade.data.files import write_atomically
from nemo_cascade.environments import response_of
from nemo_cascade.environments.reasoning_gym import EXTRA, FAULTY, problem, verify

AGENT = {"type": "responses_api_agents", "name": "reasoning_gym_simple_agent"}
INSTRUCTION = "Write the final answer, and nothing else, between <answer> and </answer>."
SPLITS = ("train", "validation")
# Puzzles drawn for each that is wanted, before a data set counts as one that has no more.
DRAWS = 30


def rows(name: str, split: str, number: int, seed: int = 0, settings: dict | None = None) -> list[dict]:
    """So many rows of a data set. Raises ValueError for a faulty or unknown one, and when it has not so many.

    settings: what the data set's own configuration takes, as {"min_terms": 3}.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    found, seen = [], set()
    for entry in _entries(name, DRAWS * number + 100, seed, settings or {}):
        if len(found) == number:
            break
        question = entry["question"]
        if question in seen or is_validation(question) != (split == "validation"):
            continue
        seen.add(question)
        row = _row(entry)
        # A few entries are not right by their own data set's scorer.
        if (
            problem(row) is None
            and verify(row, response_of(f"<answer>{row['answer']}</answer>", thinking=False))["reward"] == 1.0
        ):
            found.append(row)
    if len(found) < number:
        raise ValueError(
            f"{name}: found only {len(found)} {split} rows, not {number}; ask for fewer, or for harder ones by settings"
        )
    return found


def write(
    directory: Path,
    names: list[str],
    *,
    train_rows: int,
    validation_rows: int,
    seed: int = 0,
    settings: dict[str, dict] | None = None,
) -> None:
    """Writes both files. settings: those of single data sets, by their name."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for split, number in zip(SPLITS, (train_rows, validation_rows)):
        written = [row for name in names for row in rows(name, split, number, seed, (settings or {}).get(name))]
        write_atomically(Path(directory) / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in written))


def names() -> list[str]:
    """All data sets that rows can be made of."""
    return sorted(set(_package().factory.DATASETS) - set(FAULTY))


def _entries(name: str, number: int, seed: int, settings: dict) -> Iterator[dict]:
    """Entries of a data set, as JSON keeps them."""
    if name in FAULTY:
        raise ValueError(f"{name}: {FAULTY[name]}; choose another data set")
    if name not in names():
        raise ValueError(f"{name!r} is no data set of Reasoning Gym; --list names them all")
    try:
        drawn = _package().create_dataset(name, seed=seed, size=number, **settings)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name} does not take the settings {settings}: {error}") from None
    for place in range(number):
        yield json.loads(json.dumps(drawn[place]))


def _row(entry: dict) -> dict:
    message = {"role": "user", "content": f"{entry['question'].rstrip()}\n\n{INSTRUCTION}"}
    kept = {key: entry[key] for key in ("question", "answer", "metadata")}
    return {"responses_create_params": {"input": [message]}, **kept, "agent_ref": AGENT}


def _package():
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(f"Reasoning Gym is not installed; pip install {EXTRA}") from None
    return reasoning_gym


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nemo_cascade.data.reasoning_gym", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the data sets and write nothing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data-sets", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--train-rows", type=int, default=500, help="of each data set")
    parser.add_argument("--validation-rows", type=int, default=50, help="of each data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={}, help='of single data sets: {"chain_sum": {"min_terms": 3}}')
    chosen = parser.parse_args(arguments)
    try:
        if chosen.list:
            print("\n".join(names()))
        elif chosen.out is None or not chosen.data_sets:
            parser.error("--out and --data-sets say what to write and where")
        else:
            write(
                chosen.out,
                chosen.data_sets,
                train_rows=chosen.train_rows,
                validation_rows=chosen.validation_rows,
                seed=chosen.seed,
                settings=chosen.settings,
            )
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
