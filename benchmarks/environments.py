"""How many replies a second does each environment verify, in one process and on one core? Beside its bar where it has
one.

    PYTHONPATH=. python benchmarks/environments.py [NAME ...] --out environments.json

A case is a function that makes (row, response) pairs, entered in `CASES` with its bar; replies are of the length that
models write. Calls are counted over processor time as well as by the clock, because the clock also measures whatever
else runs. Rows of NeMo Gym are measured where NEMO_GYM_WHEEL names nemo_gym-0.4.0-py3-none-any.whl. No test looks at what
this prints.
"""

import argparse
import json
import os
import random
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console
from rich.table import Table

from nemo_cascade import environments
from nemo_cascade.data import reasoning_gym
from nemo_cascade.data.demo import ON_REQUEST
from nemo_cascade.environments.instruction_following.examples import IF_RLVR, IFBENCH, IFEVAL, row_of
from nemo_cascade.environments.math import bare
from nemo_cascade.environments.workplace_assistant.data import VARIABLE
from tests.environments import checked_pairs

Pairs = list[tuple[dict, dict]]
SENTENCES = (
    "The river runs past the old stone house, where we lived before the war.",
    "It's cold there in winter; nobody stays for long.",
    "Still, many people (my brother, for one) came back every year!",
    "Why did they?",
    "* A *good* question, which [name] asked: see Section 2.",
)
LOOKUPS = [
    {"name": "company_directory_find_email_address", "arguments": '{"name": "ra"}'},
    {"name": "email_search_emails", "arguments": '{"query": "the", "date_min": "2023-11-01"}'},
    {"name": "calendar_search_events", "arguments": '{"query": "review", "time_min": "2023-11-30 00:00:00"}'},
]


@dataclass(frozen=True)
class Case:
    """What is measured: an environment, pairs for it, and how many calls a second it must manage."""

    environment: str
    pairs: Callable[[random.Random], Pairs]
    bar: int | None = None


CASES: dict[str, Case] = {}


def case(name: str, environment: str, bar: int | None = None):
    """Enters the decorated function as the maker of a case's pairs."""

    def enter(pairs: Callable[[random.Random], Pairs]) -> Callable[[random.Random], Pairs]:
        CASES[name] = Case(environment, pairs, bar)
        return pairs

    return enter


def prose(rng: random.Random, characters: int) -> str:
    text = ""
    while len(text) < characters:
        text += rng.choice(SENTENCES) + rng.choice([" ", " ", "\n", "\n\n"])
    return text


# Instruction following.


@case("instructions, four of IFEval's and IF-RLVR's 54", "instruction_following", bar=1_000)
def four_instructions(rng: random.Random) -> Pairs:
    return [(_instructions(rng, (*IFEVAL, *IF_RLVR), 4), _long_reply(rng)) for _ in range(400)]


@case("instructions, four of IFEval's 25", "instruction_following", bar=1_000)
def four_of_ifeval(rng: random.Random) -> Pairs:
    return [(_instructions(rng, IFEVAL, 4), _long_reply(rng)) for _ in range(400)]


@case("instructions, four of IFEval's 25, real English", "instruction_following", bar=1_000)
def four_of_real_english(rng: random.Random) -> Pairs:
    """Pieces of Python's own manual: no two replies share a sentence often, as those of five sentences do."""
    manual = "\n\n".join(topics.values())

    def piece() -> str:
        begin = rng.randrange(len(manual) - 2_500)
        return manual[begin : begin + rng.randint(300, 2_500)]

    return [(_instructions(rng, IFEVAL, 4), _alone(piece())) for _ in range(400)]


@case("instructions, one of IFBench's 58", "instruction_following")
def one_of_ifbench(rng: random.Random) -> Pairs:
    rows = [_instructions(rng, IFBENCH, 1) for _ in range(400)]
    return [(row, _long_reply(rng)) for row in rows if environments.row_problem(row) is None]


def _instructions(rng: random.Random, family: tuple | list, count: int) -> dict:
    chosen = [row_of(name, kwargs) for name, kwargs, *_ in rng.sample(list(family), count)]
    merged = {key: sum((row[key] for row in chosen), []) for key in ("instruction_id_list", "kwargs")}
    return {**chosen[0], **merged}


def _long_reply(rng: random.Random) -> dict:
    return environments.response_of(f"Let me think.</think>{prose(rng, rng.randint(300, 2_500))}")


# Multiple choice and structured outputs.


@case("multiple choice, a boxed letter", "mcqa", bar=50_000)
def boxed_letter(rng: random.Random) -> Pairs:
    return [(_question(rng), _reply(rng, f"\\boxed{{{rng.choice('ABCDEFGHIJ')}}}")) for _ in range(400)]


@case("multiple choice, the row's own pattern", "mcqa", bar=50_000)
def own_pattern(rng: random.Random) -> Pairs:
    own = {"template_metadata": {"output_regex": r"Option Selected:\s*([A-Za-z])\s*"}}
    return [(_question(rng) | own, _reply(rng, f"Option selected: {rng.choice('ABCDEFGHIJ')}")) for _ in range(400)]


def _question(rng: random.Random) -> dict:
    return {
        "options": [{letter: rng.choice(SENTENCES)} for letter in "ABCDEFGHIJ"],
        "expected_answer": rng.choice("ABCDEFGHIJ"),
    }


@case("multiple choice, Gym's rows", "mcqa", bar=50_000)
def gyms_questions(rng: random.Random) -> Pairs:
    rows = [row for name in ("example", "example_with_template_metadata") for row in gym_rows(f"mcqa/data/{name}.jsonl")]
    ends = ["\\boxed{A}", "\\boxed{B}", "Option Selected: C", "ANSWER IS E"]
    return [(row, _reply(rng, rng.choice(ends))) for row in rows for _ in range(40)]


@case("structured outputs, JSON of a small schema", "structured_outputs", bar=20_000)
def small_schema(rng: random.Random) -> Pairs:
    properties = {"item": {"type": "string"}, "count": {"type": "integer"}, "in_stock": {"type": "boolean"}}
    row = {"schema_str": json.dumps({"type": "object", "properties": properties})}
    documents = [{"item": rng.choice(SENTENCES), "count": rng.choice([1, "1"]), "in_stock": True} for _ in range(400)]
    return [(row, _alone(json.dumps(document))) for document in documents]


@case("structured outputs, all formats and schemas", "structured_outputs")
def formats(rng: random.Random) -> Pairs:
    drawn = checked_pairs.pairs("structured_outputs", 400)
    return [(row, _alone(reply)) for row, reply in drawn if environments.get("structured_outputs").problem(row) is None]


@case("structured outputs, Gym's rows of v4", "structured_outputs", bar=20_000)
def gyms_schemas(rng: random.Random) -> Pairs:
    pairs = []
    for row in gym_rows("structured_outputs/data/structured_outputs_v4_example.jsonl"):
        document = _example_of(json.loads(row["schema_str"]))
        document = {row["tool_payload_key"]: document} if row["tool_payload_key"] else document
        call = {"type": "function_call", "name": row["tool_name"], "arguments": json.dumps(document)}
        pairs.append((row, {"output": [call]}))
    return pairs


def _example_of(schema: dict):
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: _example_of(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [_example_of(schema.get("items", {}))] * 3
    return {"integer": 1, "number": 1.5, "boolean": True}.get(kind, "text")


# Math. Right and wrong answers, each judged anew: that a prompt's replies often agree is not counted.


@case("math, whole numbers", "math", bar=1_000)
def whole_numbers(rng: random.Random) -> Pairs:
    answers = [str(rng.randint(-999, 9999)) for _ in range(400)]
    return [(_asked(answer), _reply(rng, f"$\\boxed{{{rng.choice([answer, '17'])}}}$")) for answer in answers]


@case("math, fractions, roots and sets", "math")
def formulas(rng: random.Random) -> Pairs:
    forms = ["\\frac{%d}{%d}", "%d\\sqrt{%d}", "\\{%d, %d\\}", "(%d, %d)", "x^2+%dx+%d", "\\frac{\\pi+%d}{%d}", "%d.%d"]
    answers = [rng.choice(forms) % (rng.randint(1, 30), rng.randint(2, 30)) for _ in range(400)]
    return [
        (_asked(answer), _reply(rng, f"\\[\\boxed{{{rng.choice([answer, rng.choice(answers)])}}}\\]")) for answer in answers
    ]


@case("math, Gym's 256 of competitions", "math", bar=1_000)
def competitions(rng: random.Random) -> Pairs:
    rows = gym_rows("ns_tools/data/compmath_test.jsonl")
    pairs = []
    for row in rows:
        answers = [bare(one["expected_answer"]) for one in (row, row, rng.choice(rows))]
        pairs.append((row, _reply(rng, f"The final result is $\\boxed{{{rng.choice(answers)}}}$.")))
    return pairs


def _asked(answer: str) -> dict:
    return {"question": "?", "expected_answer": answer}


# Puzzles and tools.


@case("Reasoning Gym, 12 data sets", "reasoning_gym")
def puzzles(rng: random.Random) -> Pairs:
    names = "basic_arithmetic chain_sum coin_flip countdown gcd knights_knaves maze mini_sudoku "
    names += "n_queens number_sorting sudoku syllogism"
    rows = [row for name in names.split() for row in reasoning_gym.rows(name, "train", 10)]
    return [(row, _reply(rng, f"<answer>{rng.choice([row['answer'], '1'])}</answer>")) for row in rows]


@case("workplace assistant, three look-ups and the expected calls", "workplace_assistant", bar=500)
def looking_up(rng: random.Random) -> Pairs:
    return [(row, _calls([*LOOKUPS, *row["ground_truth"]])) for row in ON_REQUEST["workplace_assistant"].rows(300, "train")]


@case("workplace assistant, the expected calls alone", "workplace_assistant", bar=500)
def expected_calls(rng: random.Random) -> Pairs:
    return [(row, _calls(row["ground_truth"])) for row in ON_REQUEST["workplace_assistant"].rows(300, "train")]


@case("workplace assistant, Gym's rows on its data", "workplace_assistant", bar=500)
def gyms_calls(rng: random.Random) -> Pairs:
    """Where NEMO_CASCADE_WORKPLACE_DATA names that data too."""
    rows = gym_rows("workplace_assistant/data/example.jsonl") if os.environ.get(VARIABLE) else []
    return [(row, _calls([*LOOKUPS, *row["ground_truth"]])) for row in rows]


def _calls(calls: list[dict]) -> dict:
    return {"output": [*({"type": "function_call", **call} for call in calls), {"type": "message", "content": []}]}


def gym_rows(file: str) -> list[dict]:
    """Rows out of Gym's wheel, none where NEMO_GYM_WHEEL does not name it."""
    wheel = os.environ.get("NEMO_GYM_WHEEL")
    if not wheel:
        return []
    with zipfile.ZipFile(wheel) as archive:
        return [json.loads(line) for line in archive.read(f"resources_servers/{file}").decode().splitlines()]


def _alone(text: str) -> dict:
    return environments.response_of(f"Let me think.</think>{text}")


def _reply(rng: random.Random, end: str) -> dict:
    return _alone(f"{prose(rng, rng.randint(300, 1_000))} {end}")


def measure(verify: Callable[[dict, dict], dict], pairs: Pairs, seconds: float) -> dict:
    """{"calls", "per_second", "per_cpu_second"}, after one round that is not measured: it loads what is loaded once."""
    forget = environments.get("math").boxed.cache_clear
    for row, response in pairs:
        verify(row, response)
    calls, clock, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - clock < seconds:
        forget()
        for row, response in pairs:
            verify(row, response)
        calls += len(pairs)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {"calls": calls, "per_second": calls / clock, "per_cpu_second": calls / cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="cases whose name or environment contains it; all unless given"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = Table("case", "calls/s", "calls/s of processor time", "bar")
    results = {}
    for name, case in CASES.items():
        if args.names and not any(wanted in name or wanted in case.environment for wanted in args.names):
            continue
        pairs = case.pairs(random.Random(0))
        if not pairs:
            continue
        result = results[name] = measure(environments.get(case.environment).verify, pairs, args.seconds) | {"bar": case.bar}
        table.add_row(name, f"{result['per_second']:,.0f}", f"{result['per_cpu_second']:,.0f}", f"{case.bar or '':}")
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
