"""Killed at random moments, one process or all, a run goes on to bit-identical weights and nothing is ever half-written."""

import json
import random
import sys
from pathlib import Path

import pytest

from test_resume import ROWS, write_rows

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import faults  # noqa: E402 - a script, not a package

KILLS = 8


def few_rows_that_teach(folder) -> list[str]:
    """Overrides: little to validate, and rows of which a babbling model answers about half well, so that every stage learns."""
    paths = write_rows(folder)
    return [
        *("cascade.validation.num_prompts=1", "~cascade.demo_data.rows_of", "cascade.demo_data.train_rows=8"),
        *("cascade.demo_data.validation_rows=1", "cascade.demo_data.sft_rows=64", "cascade.stages.sft.sft.max_num_steps=16"),
        "cascade.stages.sft.policy.megatron_cfg.scheduler.lr_warmup_iters=2",
        *(
            f"cascade.stages.{stage}.data.train.{domain}.data_path={paths[kind]}"
            for stage, domains in ROWS.items()
            for domain, kind in domains.items()
        ),
    ]


@pytest.mark.slow
def test_a_run_killed_eight_times_anywhere_ends_with_bit_identical_weights(tmp_path):
    assert faults.survive(tmp_path, KILLS, seed=1, per_life=KILLS, overrides=few_rows_that_teach(tmp_path)) == []
    kills = json.loads((tmp_path / "faults.json").read_text())["kills"]
    assert len(kills) == KILLS
    assert {kill["moment"]["everyone"] for kill in kills} == {True, False}, "of one rank and of all"
    weights = faults.hashes(tmp_path / "undisturbed")
    # A network of this size earns nothing with a shell, so that its agentic stage has no gradient.
    learned = {name: of_stage for name, of_stage in weights.items() if name != "swe_agentic_rl"}
    assert len(set(learned.values())) == len(learned), "a stage that learns nothing cannot show that it resumes"


def test_moments_are_drawn_all_over_a_life_and_more_often_while_saving():
    moments = [moment for seed in range(50) for moment in faults.draw(random.Random(seed), 11, 8)]
    assert {moment.number for moment in moments} == set(range(1, 12))
    share = {place: sum(moment.place == place for moment in moments) / len(moments) for place in (faults.SAVING, faults.STARTING)}
    assert 0.3 < share[faults.SAVING] < 0.5 and 0.05 < share[faults.STARTING] < 0.2
    assert 0.4 < sum(moment.everyone for moment in moments) / len(moments) < 0.6
