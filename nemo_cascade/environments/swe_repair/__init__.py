"""Repair of a few files, or of a repository: the reply's patch is applied, then tested, compared or judged.

Row: the files before (`repository`), and by `reward_mode`

    tests       `tests`, `test_patch`, fail_to_pass and pass_to_pass (`hidden_tests`): 1 when all of them pass, else 0. What a row with
                tests or fail_to_pass has unless it says otherwise
    similarity  `golden_patch`: how alike both changes are (`similarity`); 0 for a patch that changes nothing, -1 for none or one that
                cannot be read or applied [SWE-RL, arXiv 2502.18449]
    judge       the same, but where the changes are not equal the word of the model of env.judges.swe_repair (`judge`)
                [Nemotron-Cascade, section 4.7.2]. What all other rows have, as those released for Nemotron-Cascade's agentless stage

How a patch is written is said in `patches`. Left out: tests in other languages than Python, and repositories that must be built.
"""

from nemo_cascade import sandbox
from nemo_cascade.environments.endpoint import Said
from nemo_cascade.environments.response import answer_of
from nemo_cascade.environments.swe_repair import hidden_tests, judge, patches
from nemo_cascade.environments.swe_repair.judge import usable
from nemo_cascade.environments.swe_repair.patches import Files
from nemo_cascade.environments.swe_repair.repository import files_of
from nemo_cascade.environments.swe_repair.similarity import changed, similarity

__all__ = [
    "EXAMPLES",
    "IN_THREADS",
    "REWARD_RANGE",
    "judged",
    "least",
    "needs_judge",
    "problem",
    "question",
    "reference",
    "usable",
    "verify",
]

# What a reply can earn by any mode; `least` has what one earns that cannot be verified.
REWARD_RANGE = (-1.0, 1.0)
# Verifying waits for a process of its own.
IN_THREADS = True
MODES = ("tests", "similarity", "judge")
UNREADABLE, UNCHANGED = -1.0, 0.0

_FILES = {"sums.py": "def add(a, b):\n    return a - b\n\ndef one():\n    return 1\n"}
_ADD = {
    "files": _FILES,
    "tests": {
        "test_sums.py": "from sums import add, one\n"
        "def test_add():\n    assert add(2, 3) == 5\ndef test_one():\n    assert one() == 1\n"
    },
    "fail_to_pass": ["test_sums.py::test_add"],
    "pass_to_pass": ["test_sums.py::test_one"],
}
_DIFF = "--- a/sums.py\n+++ b/sums.py\n@@ -1,3 +1,3 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n \n"
_LIKE = {"relevant_file_contents": _FILES, "golden_patch": _DIFF, "reward_mode": "similarity"}
_PATCH = "sums.py\n<<<<<<< SEARCH\n    return a - b\n=======\n    return a + b\n>>>>>>> REPLACE"
EXAMPLES = [
    (_ADD, _PATCH, 1.0),
    (_ADD, f"<solution>\n```diff\n### {_PATCH}\n```\n</solution>", 1.0),
    (_ADD, f"```diff\n{_DIFF}```", 1.0),
    (_ADD, _PATCH.replace("a + b", "a * b"), 0.0),
    (_ADD, _PATCH.replace("a - b", "a-b"), 0.0),
    (_ADD, "return a + b", 0.0),
    (_LIKE, _PATCH, 1.0),
    (_LIKE, _PATCH.replace("a + b", "a - b"), UNCHANGED),
    (_LIKE, _PATCH.replace("a - b", "a-b"), UNREADABLE),
    (_LIKE, "return a + b", UNREADABLE),
]


def mode_of(row: dict) -> str:
    """What gives the row's replies their reward, out of MODES."""
    if row.get("reward_mode") is not None:
        return row["reward_mode"]
    return "tests" if any(row.get(key) is not None for key in ("fail_to_pass", "FAIL_TO_PASS", "tests")) else "judge"


def least(row: dict) -> float:
    """What a reply to the row earns that cannot be verified."""
    return UNREADABLE if mode_of(row) != "tests" else 0.0


def needs_judge(row: dict) -> bool:
    """Whether a judge must be there to verify replies to the row."""
    return mode_of(row) == "judge"


def problem(row: dict) -> str | None:
    """What keeps the row from being verified. Raises SandboxUnavailable where no program can be run."""
    mode = mode_of(row)
    if mode not in MODES:
        return f"reward_mode {mode!r} is none of {', '.join(MODES)}"
    try:
        before = files_of(row)
        if mode == "tests":
            told = hidden_tests.problem(row, before)
            if told is None:
                sandbox.get().probe()
            return told
    except ValueError as error:
        return str(error)
    golden = row.get("golden_patch")
    if not isinstance(golden, str):
        return "no golden_patch (a text), nor fail_to_pass for reward_mode tests"
    after = patches.apply(before, patches.read(golden))
    if after is None:
        return "golden_patch is no patch that applies to the files"
    return None if changed(before, after) else "golden_patch changes nothing"


def reference(row: dict) -> str | None:
    """The golden patch, of a row that has one."""
    golden = row.get("golden_patch")
    return golden if isinstance(golden, str) and golden.strip() else None


def verify(row: dict, response: dict) -> dict:
    """{"reward", "applied": bool}, with "failed_tests": [name, ...] by tests, else with "similarity" where it changes something.

    Raises ValueError for a row that has a `problem`.
    """
    before, mode = files_of(row), mode_of(row)
    patched = patches.apply(before, patches.read(answer_of(response)))
    if mode == "tests":
        if patched is None:
            return {"reward": 0.0, "applied": False, "failed_tests": sum(hidden_tests.names_of(row), [])}
        failed = hidden_tests.failed(row, before, patched)
        return {"reward": float(not failed), "applied": True, "failed_tests": failed}
    if patched is None:
        return {"reward": UNREADABLE, "applied": False}
    if not changed(before, patched):
        return {"reward": UNCHANGED, "applied": True}
    alike = similarity(before, patched, _golden(row, before))
    # By a judge, until it has spoken: what an equal change earns, and else nothing.
    return {"reward": alike if mode == "similarity" else float(alike == 1.0), "applied": True, "similarity": alike}


def question(row: dict, response: dict, verdict: dict, answers: list[Said]) -> list[dict] | None:
    """What to ask the judge, once, about a patch that changes the files otherwise than the golden one."""
    if not needs_judge(row) or answers or verdict.get("similarity", 1.0) == 1.0:
        return None
    before = files_of(row)
    patched = patches.apply(before, patches.read(answer_of(response)))
    return judge.question(row, before, patched, _golden(row, before))


def judged(row: dict, response: dict, verdict: dict, answers: list[Said | None]) -> dict:
    """The verdict with the judge's probability as its reward; no answer is worth as much as a patch that changes nothing."""
    return {**verdict, "reward": judge.probability(answers[0]) if answers[0] is not None else UNCHANGED}


def _golden(row: dict, before: Files) -> Files:
    after = patches.apply(before, patches.read(row["golden_patch"]))
    if after is None:
        raise ValueError("golden_patch is no patch that applies to the files")
    return after
