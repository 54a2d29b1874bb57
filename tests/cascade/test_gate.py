"""A gate passes what holds, stops or rolls back what fell, and does not guess where a score is missing."""

import json

import numpy as np
import pytest

from nemo_cascade.cascade import gate
from nemo_cascade.cascade.config import GateConfig
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.cascade.report import markdown
from nemo_cascade.cascade.runner import RunRefused
from test_runner import ORDER, Runs, imports_are_not_collected  # noqa: F401 - the fixture is used by being there


def manifest_of(tmp_path, **scores) -> Manifest:
    """A parent and a child with these scores by prompt in math."""
    manifest = Manifest(tmp_path)
    for name, values in scores.items():
        manifest.add(name).parent = "parent" if name == "child" else None
        manifest.directory(name).mkdir()
        (manifest.directory(name) / "validation.json").write_text(json.dumps({"math": {"per_prompt": values}}))
    return manifest


def verdict(tmp_path, before, after, max_drop=0.05) -> dict:
    return gate.judge(manifest_of(tmp_path, parent=before, child=after), "child", GateConfig({"math": max_drop}, "rollback"))


RIGHT, WRONG = [1.0] * 50, [0.0] * 50


@pytest.mark.parametrize(
    "before, after, action",
    [
        (RIGHT + WRONG, RIGHT + WRONG, "advance"),
        (RIGHT + WRONG, RIGHT + RIGHT, "advance"),
        (RIGHT + WRONG, WRONG + WRONG, "rollback"),
        # A tenth is lost for certain in one case; in the other as much comes and goes that it may be chance.
        (RIGHT + WRONG, [0.0] * 10 + [1.0] * 40 + WRONG, "rollback"),
        ([1.0, 0.0] * 10, [0.0, 1.0] * 9 + [0.0, 0.0], "advance"),
    ],
    ids=["the same", "better", "all lost", "a tenth for certain", "a twentieth that may be chance"],
)
def test_a_stage_fails_where_it_lost_more_than_allowed_and_surely_lost_something(tmp_path, before, after, action):
    assert verdict(tmp_path, before, after)["action"] == action


def test_a_sure_drop_within_the_limit_passes(tmp_path):
    found = verdict(tmp_path, RIGHT, [0.96] * 50)
    mean, low, high = found["differences"]["math"]
    assert found["action"] == "advance" and high < 0 and mean == pytest.approx(-0.04) and low <= mean <= high


def test_the_interval_is_that_of_the_normal_law_for_many_prompts():
    rng = np.random.default_rng(1)
    before, after = rng.normal(0, 1, 4000), rng.normal(0.1, 1, 4000)
    mean, low, high = gate.paired_difference(before, after)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 4000), rel=0.05)
    assert mean == pytest.approx((after - before).mean()) and gate.paired_difference(before, after) == [mean, low, high]


@pytest.mark.parametrize(
    "after, told",
    [([], "not a finite number"), ([float("nan")] * 50, "not a finite number"), ([1.0] * 49, "49"), (None, "not a finite")],
    ids=["empty", "nan", "another number of prompts", "null"],
)
def test_a_score_that_cannot_be_compared_is_an_error_and_no_pass(tmp_path, after, told):
    with pytest.raises(gate.GateError, match=told):
        verdict(tmp_path, RIGHT, after)


def test_scores_on_other_prompts_are_an_error_and_no_pass(tmp_path):
    manifest = manifest_of(tmp_path, parent=RIGHT, child=RIGHT)
    for name in ("parent", "child"):
        entry = {"math": {"per_prompt": RIGHT, "prompts": f"hash of {name}'s"}}
        (manifest.directory(name) / "validation.json").write_text(json.dumps(entry))
    with pytest.raises(gate.GateError, match="math: the validation prompts of parent and child differ"):
        gate.judge(manifest, "child", GateConfig({"math": 0.05}))


def test_a_domain_without_scores_is_an_error_and_no_pass(tmp_path):
    manifest = manifest_of(tmp_path, parent=RIGHT, child=RIGHT)
    with pytest.raises(gate.GateError, match="validation.json: no scores of mcqa"):
        gate.judge(manifest, "child", GateConfig({"mcqa": 0.05}))


# -------------------------------------------------------------------------------- in a run


def fallen_in(*stages):
    """Every prompt is right except after these stages."""

    def score(stage, checkpoint, domains, num_samples):
        value = 0.0 if stage.name in stages else 1.0
        return {
            name: {"mean": value, "n": len(entry.rows), "per_prompt": [value] * len(entry.rows)}
            for name, entry in domains.items()
        }

    return score


IF_RL, MULTI = "cascade.stages.if_rl.gate.", "cascade.stages.multi_domain_rl.gate."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("gated") / "data"


@pytest.fixture
def runs(tmp_path, data):
    return Runs(tmp_path / "run", data)


def test_a_run_stops_at_its_gate_and_stays_stopped_until_told_otherwise(runs):
    runs.score = fallen_in("if_rl")
    for _ in range(2):
        with pytest.raises(RunRefused, match="gate of if_rl: stop; math -1.000 .* --from-stage if_rl"):
            runs(IF_RL + "max_drop.math=0.05")
    assert runs.statuses()[:4] == ["done", "done", "done", "pending"] and "done, stop" in markdown(runs.manifest)
    runs.score = fallen_in()
    assert runs(IF_RL + "max_drop.math=0.05", from_stage="if_rl") == ORDER[2:]


def test_a_warning_goes_on_from_the_stage_itself(runs):
    runs.score = fallen_in("if_rl")
    assert runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=warn") == ORDER
    assert runs.manifest.stages["multi_domain_rl"].parent == "if_rl"
    assert runs.manifest.stages["if_rl"].gate["action"] == "warn"


def test_after_a_rollback_the_next_stage_starts_from_the_parent(runs):
    runs.score = fallen_in("if_rl")
    assert runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=rollback") == ORDER
    given = json.loads((runs.run_dir / "04-multi_domain_rl/step_2/training_info.json").read_text())["given"]
    assert given[2] == runs.hashes()["sft"] and runs.manifest.stages["multi_domain_rl"].parent == "sft"


def test_two_rollbacks_lead_back_to_the_last_stage_that_stood(runs):
    runs.score = fallen_in("if_rl", "multi_domain_rl")
    settings = [f"{key}{value}" for key in (IF_RL, MULTI) for value in ("max_drop.math=0.05", "on_failure=rollback")]
    # Else it would be the student's start that teaches it.
    held = "cascade.stages.mopd.teachers.swe_repair={stage: multi_domain_rl, anchor: true}"
    assert runs(*settings, held) == ORDER
    assert runs.manifest.stages["mopd"].parent == "sft"


def test_a_teacher_that_a_rollback_made_the_students_start_is_refused(runs):
    runs.score = fallen_in("multi_domain_rl")
    settings = [MULTI + "max_drop.math=0.05", MULTI + "on_failure=rollback", "cascade.stages.mopd.teachers.math=if_rl"]
    with pytest.raises(RunRefused, match="mopd: multi_domain_rl was rolled back, so the student starts from if_rl"):
        runs(*settings)


def test_an_anchor_holds_the_student_where_it_really_starts(runs):
    runs.score = fallen_in("multi_domain_rl")
    runs(MULTI + "max_drop.math=0.05", MULTI + "on_failure=rollback")
    mopd = runs.manifest.stages["mopd"]
    assert mopd.parent == "if_rl" and set(mopd.teachers.values()) == {"if_rl", "math_rl", "preference_rl", "sft"}


def test_a_gate_changed_under_finished_stages_is_refused(runs):
    runs.score = fallen_in("if_rl")
    runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=warn")
    with pytest.raises(RunRefused, match="multi_domain_rl was built from if_rl, but .* starts from sft; put the gate of if_rl"):
        runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=rollback")


def test_only_respects_the_gates_of_what_it_starts_from_and_no_others(runs):
    runs.score = fallen_in("if_rl")
    with pytest.raises(RunRefused):
        runs(IF_RL + "max_drop.math=0.05")
    with pytest.raises(RunRefused, match="gate of if_rl: stop"):
        runs(IF_RL + "max_drop.math=0.05", only="multi_domain_rl")
    assert runs(IF_RL + "max_drop.math=0.05", only="math_rl") == ["math_rl"]


def test_a_stopped_run_goes_on_when_its_gate_is_changed_to_roll_back(runs):
    runs.score = fallen_in("if_rl")
    with pytest.raises(RunRefused):
        runs(IF_RL + "max_drop.math=0.05")
    assert runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=rollback") == ORDER[3:]
    assert runs.manifest.stages["multi_domain_rl"].parent == "sft"


def test_a_begun_stage_keeps_its_start_when_a_gate_is_changed(runs):
    runs.score = fallen_in("if_rl")
    runs.killed_in("multi_domain_rl", IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=rollback")
    runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=warn")
    assert runs.manifest.stages["multi_domain_rl"].parent == "sft"
