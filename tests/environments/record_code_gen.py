"""Records what NeMo Gym's comparison makes of outputs that are right, nearly right and wrong: the suite's oracle where Gym is not.

    python tests/environments/record_code_gen.py nemo_gym-0.4.0-py3-none-any.whl

Gym's own functions run programs that return or print each value, in a Python with numpy. Run it again when the pairs change.
"""

import hashlib
import importlib
import itertools
import json
import sys
import tempfile
import zipfile
from pathlib import Path

RECORD = Path(__file__).parent / "code_gen_record.json"
SOURCE = "resources_servers/code_gen/lcb_integration/testing_util.py"

# What a function must return, as JSON, and what it returns, as Python; every one of these with every one of those.
EXPECTED = ["2", "2.0", "1", "0", "true", "false", "null", "0.3", "1000000.0", "50000000000000000", '"2"', '"a"', "NaN", "[]"]
EXPECTED += ["[1, 2]", "[0.3, 1]", "[[1], [true]]", '{"1": [2.0]}', '{"a": 1, "b": 2}']
RETURNED = ["2", "2.0", "1", "0", "True", "False", "None", "0.1 + 0.2", "1000000.5", "1000005.0", "50000000000000001", "'2'", "'a'"]
RETURNED += ["float('nan')", "[]", "()", "(1, 2)", "[1.0, 2]", "[0.1 + 0.2, 1.0]", "[(1,), [1]]", "{1: (2,)}", "{'b': 2, 'a': 1}"]
RETURNED += ["{1, 2}", "2 + 0j", "b'a'", "2.0000001"]
# What a program must print, and prints.
WANTED = ["3", "3.0", "0.333333333", "50000000000000000", "007", "1e3", "-0", "1 2", "1.5 2\n3", "a b", "x 3", "nan", "inf", "10", ""]
PRINTED = ["3", "3.0", "+3", "0.33333334", "0.4", "50000000000000001", "5e16", "7", "1000", "0.0", " 1  2.0\n\n", "1.50 2\r\n3.0"]
PRINTED += ["1.5 2 3", "a  b", "a b", "A b", "x 3.0", "NaN", "Infinity", "1_0", "١٠", "1\n2", "", "0"]

CALLS = list(itertools.product(EXPECTED, RETURNED))
PRINTS = list(itertools.product(WANTED, PRINTED))


def recorded(wheel: str) -> dict[str, str]:
    """{"calls", "prints"}: a digit for each pair, 1 where Gym takes it for right."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        (Path(folder) / "gyms_testing_util.py").write_bytes(archive.read(SOURCE))
        sys.path.insert(0, folder)
        gym = importlib.import_module("gyms_testing_util")
    right = {"calls": [], "prints": []}
    for expected, returned in CALLS:
        right["calls"].append(gym.grade_call_based(f"def f(x):\n    return {returned}", ["0"], [expected], "f", 60))
    for wanted, printed in PRINTS:
        right["prints"].append(gym.grade_stdio(f"import sys\nsys.stdout.write({printed!r})", ["0"], [wanted], 60))
    return {kind: "".join(str(int(results[0] is True)) for results, _ in found) for kind, found in right.items()}


def digest() -> str:
    return hashlib.sha256(json.dumps([CALLS, PRINTS]).encode()).hexdigest()[:16]


if __name__ == "__main__":
    RECORD.write_text(json.dumps({"pairs": digest(), **recorded(sys.argv[1])}) + "\n", encoding="utf-8")
