"""How many replies a second does the workplace assistant's verifier judge in one process?

    python benchmarks/environments_workplace.py
    NEMO_CASCADE_WORKPLACE_DATA=.../csv_data python benchmarks/environments_workplace.py --rows .../example.jsonl

Each reply makes the row's expected calls, with look-ups before them or without; the second way is how Gym's own rows are
measured, on its data. No test looks at what this prints.
"""

import argparse
import json
import time
from pathlib import Path

from nemo_cascade.data.demo import ON_REQUEST
from nemo_cascade.environments.workplace_assistant import verify

LOOKUPS = [
    {"name": "company_directory_find_email_address", "arguments": '{"name": "ra"}'},
    {"name": "email_search_emails", "arguments": '{"query": "the", "date_min": "2023-11-01"}'},
    {"name": "calendar_search_events", "arguments": '{"query": "review", "time_min": "2023-11-30 00:00:00"}'},
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=Path, help="a file of rows; demo rows unless given")
parser.add_argument("--seconds", type=float, default=3.0)
arguments = parser.parse_args()
if arguments.rows:
    rows = [json.loads(line) for line in arguments.rows.read_text(encoding="utf-8").splitlines()]
else:
    rows = ON_REQUEST["workplace_assistant"].rows(300, "train")

for name, lookups in (("three look-ups and the expected calls", LOOKUPS), ("the expected calls alone", [])):
    cases = []
    for row in rows:
        output = [{"type": "function_call", **call} for call in [*lookups, *row["ground_truth"]]]
        cases.append((row, {"output": [*output, {"type": "message", "content": []}]}))
    assert all(verify(*case)["reward"] == 1.0 for case in cases)
    # The process's own time too: what else the machine does is no part of the speed.
    done, calls, started, busy = 0, 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < arguments.seconds:
        case = cases[done % len(cases)]
        verify(*case)
        done, calls = done + 1, calls + len(case[1]["output"]) - 1
    wall, cpu = time.perf_counter() - started, time.process_time() - busy
    print(f"{name}: {done / wall:,.0f} replies/s ({done / cpu:,.0f} a CPU second), {calls / wall:,.0f} calls/s, {len(rows)} rows")
