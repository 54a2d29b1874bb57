"""The evidence's page tells what the scores are made to say: effects, costs up to a level, and what is not measured."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from evidence import curves, record  # noqa: E402 - scripts, not a package
from evidence import report as page_of  # noqa: E402
from evidence.record import DOMAINS  # noqa: E402

PROMPTS = 100
LAST = {"sft": 0.4, "preferred": 0.6, "mopd_end": 0.72, "grpo_end": 0.72}  # all others 0.7


def scores(share: float, domains=DOMAINS) -> dict:
    """The first prompts are answered right."""
    return {domain: "1" * round(PROMPTS * share) + "0" * (PROMPTS - round(PROMPTS * share)) for domain in domains}


def stage(last: float, course: list[float] = (), domains=DOMAINS, **more) -> dict:
    """A step a point of the course; each costs 10 rollouts, 100 tokens and 1 second."""
    steps = max(len(course), 1)
    return {
        "kind": "rl",
        "parent": "sft",
        "teachers": {},
        "shape": [steps, 5, 2],
        **{cost: [amount] * steps for cost, amount in zip(curves.COSTS, (10, 100, 1.0))},
        "scores": scores(last, domains),
        "history": [{"step": n, "scores": scores(value, domains)} for n, value in enumerate(course, start=1)],
        "metrics": {name: 1.0 for name in record.METRICS},
        **more,
    }


def document(seed: int, mopd_course=(0.5, 0.69, 0.75), mixed_course=(0.5, 0.6, 0.69, 0.7)) -> dict:
    """All teachers end at 0.7; by the courses MOPD is there after 2 steps, GRPO after 3."""
    names = {name for part in page_of.COMPARED.values() for _, first, second in part for name in (first, second)}
    made = {name: stage(LAST.get(name, 0.7), [0.5]) for name in sorted(names - {page_of.TEACHERS})}
    made |= {"sft": stage(0.4, [0.4]), "mopd": stage(0.75, mopd_course)}
    made |= {"mixed": stage(0.7, mixed_course), "mixed_on": stage(0.8, [0.8])}
    for domain, name in curves.TEACHERS.items():
        made[name] = stage(0.7, [0.5, 0.7], DOMAINS if name == "if_rl" else (domain,))
    made["mopd_end"]["teachers"] = {"math": "math_rl"}
    return {"format": record.FORMAT, "seed": seed, "prompts": {}, "versions": {}, "stages": made}


def test_a_level_costs_what_was_spent_until_then_and_what_teachers_took_where_that_is_counted():
    made = document(1)
    assert [curves.cost_to_level(made, "MOPD", cost) for cost in curves.COSTS] == [20, 200, 2]
    assert curves.cost_to_level(made, "GRPO, mixed", "rollouts") == 30
    assert curves.cost_to_level(made, "MOPD", "rollouts", counted=True) == 20 + 3 * 20
    assert curves.cost_to_level(document(1, mixed_course=(0.5, 0.6)), "GRPO, mixed", "rollouts") == 30, "the stage after counts on"
    never = document(1, mopd_course=(0.5, 0.6))
    assert curves.cost_to_level(never, "MOPD", "rollouts") is None


def test_every_comparison_has_its_row_with_the_effect_that_is_there():
    text = page_of.generated([document(seed) for seed in page_of.SEEDS], "evidence.png")
    asked = [name for part in page_of.COMPARED.values() for name, _, _ in part]
    assert all(text.count(f"| {name} |") == 1 for name in asked)
    row = next(line for line in text.splitlines() if "MOPD less GRPO, equal rollouts" in line)
    assert row.count("+0.050 [+0.0") == 4 and "| more | 5 of 5 | 0.0" in row
    row = next(line for line in text.splitlines() if "MOPD less GRPO after the cascade" in line)
    assert "| open | 0 of 5 |" in row
    assert "rollouts, teachers' own not counted: MOPD first in 5 of 5 seeds, not first in 0" in text
    assert "rollouts, teachers' own counted: MOPD first in 0 of 5 seeds, not first in 5" in text
    assert "Not yet measured" not in text and "fewer rollouts than GRPO **holds**" in text
    slow = [document(seed, mopd_course=(0.5, 0.6, 0.6, 0.6, 0.75)) for seed in (1, 2)] + [document(seed) for seed in (3, 4, 5)]
    text = page_of.generated(slow, "evidence.png")
    assert "MOPD first in 3 of 5 seeds, not first in 2" in text and "fewer rollouts than GRPO **does not hold**" in text


def test_what_is_not_measured_is_said_and_a_single_seed_says_so():
    assert "Not yet measured: seeds 1, 2, 3, 4, 5." in page_of.generated([], "evidence.png")
    text = page_of.generated([document(2)], "evidence.png")
    assert "Not yet measured: seeds 1, 3, 4, 5." in text and "nothing of other seeds" in text


def test_only_what_stands_between_the_markers_is_replaced():
    page = f"before\n{page_of.BEGIN}\nold\n{page_of.END}\nafter\n"
    once = page_of.replaced(page, "new")
    assert once == f"before\n{page_of.BEGIN}\nnew\n{page_of.END}\nafter\n" and page_of.replaced(once, "new") == once
    with pytest.raises(ValueError, match="needs one line"):
        page_of.replaced("no markers", "new")


def test_the_page_in_the_repository_has_its_markers():
    assert page_of.replaced((page_of.ROOT / "docs" / "evidence.md").read_text(), "new")


def test_documents_come_back_as_written_and_other_experiments_are_refused(tmp_path):
    for seed in (2, 1):
        record.write(document(seed), tmp_path / f"seed_{seed}.json")
    assert record.read_all(tmp_path) == [document(1), document(2)]
    other = document(3)
    other["stages"]["mopd"]["shape"] = [99, 5, 2]
    record.write(other, tmp_path / "seed_3.json")
    with pytest.raises(ValueError, match="settings of seed 3 differ"):
        record.read_all(tmp_path)


def test_scores_of_prompts_are_kept_whether_right_or_wrong_or_graded():
    for values in ([1.0, 0.0, 1.0], [0.25, 1.0, 0.0]):
        assert np.array_equal(record.unpack(json.loads(json.dumps(record.pack(values)))), values)
    assert record.pack([1.0, 0.0]) == "10"


def test_the_figure_is_drawn(tmp_path):
    curves.draw([document(1), document(2)], tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").stat().st_size > 10_000
