"""Real programs in the real sandbox, and real replies of a network with fresh weights."""

import json
import subprocess
import sys

import pytest

from nemo_cascade.environments.workers import Verifiers
from nemo_cascade.scaling.config import load_scale_config
from nemo_cascade.scaling.graders import EnvironmentGrader
from nemo_cascade.scaling.problems import load_problems
from nemo_cascade.scaling.run import JOURNAL, run
from tests.helpers import run_distributed
from tests.scaling.simulated import Simulated
from tests.scaling.test_commands import ENDPOINT, without_seconds


def sums(*pairs) -> dict:
    return {"inputs": [f"{a} {b}\n" for a, b in pairs], "outputs": [f"{a + b}\n" for a, b in pairs]}


SUMS = {
    "id": "sums",
    "statement": "Read a and b, print a + b.",
    "samples": sums((1, 2)),
    "subtasks": [
        {"name": "small", "points": 30, "statement": "a, b < 100", "tests": sums((40, 2), (99, 99))},
        {"name": "large", "points": 50, "tests": sums((5_000_000_000, 1), (2, 2))},
        {"name": "mixed", "points": 20, "partial": True, "tests": sums((1, 1), (2**40, 1), (2**70, 1), (5, 5))},
    ],
}
BROKEN, THREE = "```cpp\nint main() { return 0 }\n```", "```cpp\n#include <cstdio>\nint main() { puts(\"3\"); }\n```"
CPP = "Thus:\n```cpp\n#include <iostream>\nint main() {{ {type} a, b; std::cin >> a >> b; std::cout << a + b; }}\n```\n"
PYTHON = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
SAID = {
    # The first subtask takes one round: ints are enough for it. The second overflows, then does not.
    "small/r1": [CPP.format(type="int"), BROKEN, THREE],
    "large/r1": [CPP.format(type="int"), BROKEN, CPP.format(type="unsigned")],
    "large/r2": [CPP.format(type="long long"), "I cannot solve this.", "```python\nprint(3)\n```"],
    "mixed/r1": [PYTHON, "", ""],
}


def test_ioi_with_real_programs_scores_shows_history_and_stops_at_full_score(tmp_path):
    prompts = {}

    def say(ask):
        _, subtask, number, candidate = ask.key.split("/")
        prompts[f"{subtask}/{number}"] = ask.messages[0]["content"]
        return SAID[f"{subtask}/{number}"][int(candidate[1:])]

    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(SUMS) + "\n")
    config = load_scale_config("ioi", None, [*ENDPOINT, "ioi.candidates=3", "ioi.rounds=3"])
    proposer = Simulated(say)
    with Verifiers() as verifiers:
        results = run("ioi", load_problems(path, "ioi"), config, proposer, EnvironmentGrader(verifiers), tmp_path / "out")
    one = results["problems"]["sums"]
    assert list(prompts) == ["small/r1", "large/r1", "large/r2", "mixed/r1"]
    assert {name: (entry["points"], entry["chosen"], entry["rounds"]) for name, entry in one["subtasks"].items()} == {
        "small": (30, "small/r1/c0", 1),
        "large": (50, "large/r2/c0", 2),
        "mixed": (20, "mixed/r1/c0", 1),
    }
    assert one["score"] == one["full"] == 100 and one["submissions"] == 6
    # Samples keep out what does not compile, and what prints 3 passes them only.
    submitted = ["small/r1/c0", "small/r1/c2", "large/r1/c2", "large/r2/c0", "large/r2/c2", "mixed/r1/c0"]
    assert [entry["key"] for entry in one["tried"]] == submitted
    # An overflow gave half of the last subtask's points, before it had its turn.
    assert one["tried"][0]["points"] == {"small": 30, "large": 0, "mixed": 10}
    assert "A program that solves subtask small" in prompts["large/r1"] and "int a, b" in prompts["large/r1"]
    assert "Earlier submission 1: wrong answer, 0 of 50 points\n\n```cpp" in prompts["large/r2"] and "unsigned" in prompts["large/r2"]
    assert "A program that solves subtask large" in prompts["mixed/r1"] and "long long" in prompts["mixed/r1"]


def refined_by_a_network(folder):
    """(results of a run, of one that goes on from the middle of its journal, the replies of the first)."""
    from nemo_cascade.scaling.proposers import engine_proposer

    overrides = ["policy.model_name=micro", "policy.generation.max_new_tokens=12", "policy.max_total_sequence_length=2048"]
    overrides += ["refine.candidates=3", "refine.verifications=2", "refine.keep=2", "refine.refinements=2", "refine.rounds=2"]
    config = load_scale_config("refine", None, [*overrides, "thinking=false", "budget.max_tokens=200", "seed=5"])
    problems = {"one": {"statement": "Show that 1 + 1 = 2."}}
    proposer = engine_proposer(config.policy, None, config.seed, config.thinking)
    whole = run("refine", problems, config, proposer, None, folder / "whole")
    lines = (folder / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    (folder / "half").mkdir()
    (folder / "half" / JOURNAL).write_bytes(b"".join(lines[: len(lines) // 2]))
    half = run("refine", problems, config, proposer, None, folder / "half")
    return whole, half, [json.loads(line) for line in lines[1:]]


def test_a_real_network_proves_verifies_and_refines_within_its_budget_and_the_same_after_a_kill(tmp_path):
    ((whole, half, replies),) = run_distributed(refined_by_a_network, 1, tmp_path)
    assert without_seconds(whole) == without_seconds(half)
    one = whole["problems"]["one"]
    assert one["spent"]["tokens"] == sum(reply["tokens"] for reply in replies) <= 200
    assert one["stopped"] == "max_tokens" or len(one["rounds"]) == 2
    texts = [reply["text"] for reply in replies]
    assert len(set(texts)) > 10 and one["text"] in texts and len(one["tried"]) >= 3


@pytest.mark.slow
def test_the_command_chooses_the_best_of_n_replies_of_the_tiny_model(tmp_path):
    row = {
        "id": "sum",
        "responses_create_params": {"input": "What is 1 + 1? Put it in a box."},
        "agent_ref": {"name": "math_simple_agent"},
        "expected_answer": "2",
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    overrides = ["policy.model_name=tiny", "policy.generation.max_new_tokens=32", "best_of_n.n=8", "thinking=false"]
    command = [sys.executable, "-m", "nemo_cascade", "scale", "best-of-n", "rows.jsonl", "--out", "out", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "ok: 1 problems, mean score 0; 8 generations" in done.stdout, done.stderr
