"""Outputs are right where NeMo Gym takes them for right, by its record and by itself, but for what is explained here.

NEMO_GYM_WHEEL: path of nemo_gym-0.4.0-py3-none-any.whl, with which the record is made anew and must be the same.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_cascade.environments.outputs import same_output, same_value
from nemo_cascade.sandbox.inside import values
from tests.environments import record_code_gen
from tests.environments.record_code_gen import CALLS, PRINTS, RECORD

# (expected, returned) that differ, by the reason.
ONLY_GYM_CALLS = {
    "Gym reads a text alone as a number": [
        ("2", "'2'"), ("2.0", "'2'"), *(('"2"', value) for value in ("2", "2.0", "2.0000001")),
    ],
    "Gym takes whole numbers and decimals for equal that are close; here whole ones are exact": [
        ("2", "2.0000001"), ("50000000000000000", "50000000000000001"),
    ],
    "Gym's tolerance for a value alone is 1e-5, ours 1e-6": [("1000000.0", "1000005.0")],
    "Gym's Python takes a complex number without an imaginary part for a number": [("2", "2 + 0j"), ("2.0", "2 + 0j")],
}  # fmt: skip
ONLY_OUR_CALLS = {
    "Gym has no tolerance within a list or an object": [("[0.3, 1]", "[0.1 + 0.2, 1.0]")],
    "Gym compares objects as Python or as JSON, never a part by the one and a part by the other": [('{"1": [2.0]}', "{1: (2,)}")],
    "Gym takes a tuple for a list and 1 for true, but not within each other": [("[[1], [true]]", "[(1,), [1]]")],
}
ONLY_GYM_PRINTS = {"numbers are written in Gym as in Python, here in digits": [("inf", "Infinity"), ("10", "1_0"), ("10", "١٠")]}
ONLY_OUR_PRINTS = {
    "Gym has no tolerance": [("0.333333333", "0.33333334")],
    "Gym compares lines with a word in them as texts, blanks too": [("a b", "a  b"), ("x 3", "x 3.0")],
}


def ours(kind: str) -> list[bool]:
    if kind == "prints":
        return [same_output(wanted, printed) for wanted, printed in PRINTS]
    # As it passes the wall of the sandbox.
    return [same_value(json.loads(expected), values.decode(values.encode(eval(returned)))) for expected, returned in CALLS]


@pytest.mark.parametrize(
    "kind, pairs, only_gym, only_ours",
    [("calls", CALLS, ONLY_GYM_CALLS, ONLY_OUR_CALLS), ("prints", PRINTS, ONLY_GYM_PRINTS, ONLY_OUR_PRINTS)],
)
def test_outputs_are_right_where_gym_takes_them_for_right_by_the_record(kind, pairs, only_gym, only_ours):
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["pairs"] == record_code_gen.digest(), "other pairs: record them (record_code_gen.py)"
    gyms = [digit == "1" for digit in record[kind]]
    assert len(pairs) > 300 and 15 < sum(gyms) < len(pairs) - 15
    differ = {pair: mine for pair, mine, theirs in zip(pairs, ours(kind), gyms, strict=True) if mine != theirs}
    assert {pair for pair, mine in differ.items() if not mine} == set().union(*only_gym.values())
    assert {pair for pair, mine in differ.items() if mine} == set().union(*only_ours.values())


@pytest.mark.slow
def test_the_record_is_what_gym_says(tmp_path):
    wheel = os.environ.get("NEMO_GYM_WHEEL", "")
    if not Path(wheel).is_file():
        pytest.skip("NEMO_GYM_WHEEL names no wheel")
    code = f"import json; from tests.environments.record_code_gen import recorded; print(json.dumps(recorded({wheel!r})))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    record = json.loads(record_code_gen.RECORD.read_text(encoding="utf-8"))
    assert {"pairs": record["pairs"], **json.loads(ran.stdout)} == record
