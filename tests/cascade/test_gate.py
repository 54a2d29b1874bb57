"""A gate passes what holds, stops or rolls back what fell, and does not guess where a score is missing."""

import json

import numpy as np
import pytest

from nemo_cascade.cascade import gate
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import GateConfig, load_config
from nemo_cascade.cascade.manifest import Manifest
from nemo_cascade.cascade.report import markdown
from nemo_cascade.cascade.runner import RunRefused
from nemo_cascade.data.hashes import file_hash
from nemo_cascade.stages import paired
from test_runner import ORDER, Runs, imports_are_not_collected  # noqa: F401 - the fixture is used by being there


def manifest_of(tmp_path, **scores) -> Manifest:
    """A parent and a child with these scores by prompt in math."""
    manifest = Manifest(tmp_path)
    for name, values in scores.items():
        manifest.add(name).parent = "parent" if name == "child" else None
        manifest.directory(name).mkdir()
        (manifest.directory(name) / "validation.json").write_text(json.dumps({"math": {"per_prompt": values}}))
    return manifest


def verdict(tmp_path, before, after, rule="max_drop", limit=0.05) -> dict:
    rules = GateConfig(**{rule: {"math": limit}}, on_failure="rollback")
    return gate.judge(manifest_of(tmp_path, parent=before, child=after), "child", rules)


RIGHT, WRONG = [1.0] * 50, [0.0] * 50


@pytest.mark.parametrize("stage", ["parent", "child"])
def test_scores_that_are_not_those_that_were_written_judge_nothing(tmp_path, stage):
    manifest = manifest_of(tmp_path, parent=RIGHT, child=WRONG)
    for name, record in manifest.stages.items():
        record.scores_hash = file_hash(manifest.directory(name) / gate.SCORES)
    rules = GateConfig(max_drop={"math": 0.05}, on_failure="rollback")
    assert gate.judge(manifest, "child", rules)["action"] == "rollback"
    (manifest.directory(stage) / gate.SCORES).write_text(json.dumps({"math": {"per_prompt": RIGHT[:-1] + [0.5]}}))
    with pytest.raises(gate.GateError, match=f"{stage}/validation.json: not what {stage} wrote; put it back, or repeat {stage} with"):
        gate.judge(manifest, "child", rules)


def test_a_gate_with_too_few_replies_is_told_before_anything_runs():
    def told(name: str, *overrides: str) -> list[str]:
        return gate.blind_lines(load_config(compose_config(name, overrides), planning=True))

    assert told("full") == [] and told("tiny", "cascade.validation.num_prompts=300") == []
    line, gains = told("full", "cascade.validation.num_samples=1")
    # z(1 - 0.04 / 8) + z(0.8) standard errors of sqrt(0.25 / 500), and of nine domains a little more.
    assert line.startswith("gates of if_rl, multi_domain_rl, mopd, rlhf, long_context_rl, code_rl, swe_rl, swe_agentic_rl: ")
    assert "a loss of less than 0.08 is mostly not seen with 500 prompts and 1 reply to each" in line
    assert gains.startswith("gates of if_rl, rlhf, long_context_rl, code_rl, swe_rl: a gain of less than 0.06 mostly counts as noise")
    assert told("full", "cascade.validation.num_prompts=0") == []
    rules = ["+cascade.stages.mopd.gate.min_gain={math: 0.0}", "+cascade.stages.mopd.gate.floor={math: 0.3}"]
    _, gain, below = told("tiny", *rules, "cascade.validation.num_prompts=150")
    assert gain.startswith("gates of mopd: a gain of less than 0.10 mostly counts as noise with 150 prompts and 1 reply to each")
    assert below.startswith("gates of mopd: a score less than 0.14 below its floor is mostly not seen with 150 prompts")


def test_of_a_gates_prompts_those_count_that_its_file_has(tmp_path):
    (tmp_path / "few.jsonl").write_text("{}\n" * 40 + "\n")
    overrides = [f"data.validation.mcqa.data_path={tmp_path / 'few.jsonl'}", "cascade.validation.num_prompts=300"]
    lines = gate.blind_lines(load_config(compose_config("tiny", overrides), planning=True))
    assert lines and all("with 40 prompts and 1 reply to each" in line for line in lines)


def test_the_law_that_tells_it_is_the_one_of_a_verdict_with_such_scores():
    rng, prompts = np.random.default_rng(0), 40_000
    right = rng.random(prompts) < 0.5
    # Half of the scores are drawn again, so that those before and after correlate by 0.5.
    after = np.where(rng.random(prompts) < 0.5, right, rng.random(prompts) < 0.5)
    rules = GateConfig(max_drop={str(domain): 0.0 for domain in range(9)})
    measured = paired.detectable_drop(after.astype(float) - right, gate.HARM_LEVEL / 9)
    assert gate.blind(rules, "max_drop", 400, 1) == pytest.approx(10 * measured, rel=0.02)


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
    found = verdict(tmp_path, before, after)
    assert found["action"] == action and found["failed"] == ([] if action == "advance" else [["max_drop", "math"]])


def test_a_sure_drop_within_the_limit_passes(tmp_path):
    found = verdict(tmp_path, RIGHT, [0.96] * 50)
    mean, low, high = found["differences"]["math"]
    assert found["action"] == "advance" and high < 0 and mean == pytest.approx(-0.04) and low <= mean <= high


@pytest.mark.parametrize(
    "after, limit, action",
    [
        ([1.0] * 10 + WRONG[10:], 0.1, "advance"),
        ([1.0] * 10 + WRONG[10:], 0.3, "rollback"),
        ([1.0] * 4 + WRONG[4:], 0.0, "rollback"),
        ([1.0] * 6 + WRONG[6:], 0.0, "advance"),
        (WRONG, 0.0, "rollback"),
    ],
    ids=["gained enough", "gained too little", "four of four may be chance", "six of six are none", "no gain"],
)
def test_a_stage_that_must_gain_fails_unless_it_surely_did(tmp_path, after, limit, action):
    found = verdict(tmp_path, WRONG, after, "min_gain", limit)
    assert found["action"] == action and found["failed"] == ([] if action == "advance" else [["min_gain", "math"]])


@pytest.mark.parametrize(
    "after, limit, action",
    [
        (RIGHT + WRONG, 0.4, "advance"),
        (RIGHT + WRONG, 0.7, "rollback"),
        (RIGHT + WRONG, 0.55, "advance"),
    ],
    ids=["above", "far below", "so little below that it may be chance"],
)
def test_a_stage_fails_a_floor_that_it_is_surely_below_whatever_its_parent_was(tmp_path, after, limit, action):
    found = verdict(tmp_path, after, after, "floor", limit)
    assert found["action"] == action and found["failed"] == ([] if action == "advance" else [["floor", "math"]])
    assert found["scores"]["math"][0] == pytest.approx(0.5) and found["differences"] == {}


def test_a_stage_without_a_parent_can_have_a_floor(tmp_path):
    manifest = manifest_of(tmp_path, parent=WRONG)
    found = gate.judge(manifest, "parent", GateConfig(floor={"math": 0.2}))
    assert found["action"] == "stop" and found["failed"] == [["floor", "math"]]


def test_what_is_sure_of_one_domain_is_not_sure_of_one_among_nine():
    lost = np.array([-1.0] * 6 + [0.0] * 44)
    kept = np.zeros(50)
    alone = gate.decide({"math": lost}, {}, GateConfig(max_drop={"math": 0.05}))[0]
    among = {"math": lost} | {f"domain_{n}": kept for n in range(8)}
    among = gate.decide(among, {}, GateConfig(max_drop=dict.fromkeys(among, 0.05)))[0]
    assert alone == [["max_drop", "math"]] and among == []


@pytest.mark.parametrize("action", ["advance", "warn", "stop", "rollback"])
def test_a_failed_rule_does_what_the_config_says_and_is_told(tmp_path, action):
    rules = GateConfig(max_drop={"math": 0.05}, min_gain={"math": 0.0}, floor={"math": 0.1}, on_failure=action)
    found = gate.judge(manifest_of(tmp_path, parent=RIGHT, child=WRONG), "child", rules)
    (line,) = gate.lines("child", found, rules)
    assert found["action"] == action and [rule for rule, _ in found["failed"]] == ["max_drop", "min_gain", "floor"]
    assert line.startswith(f"gate of child: {action}; FAILED math -1.000 [-1.000, -1.000], may lose 0.05, by chance 0.0001")
    assert "FAILED math 0.000 [0.000, 0.000], must reach 0.1" in line


def test_a_gate_whose_prompts_are_too_few_says_what_it_can_see(tmp_path):
    rng = np.random.default_rng(1)
    before, after = rng.integers(0, 2, size=(2, 100)).astype(float).tolist()
    rules = GateConfig(max_drop={"math": 0.02})
    found = gate.judge(manifest_of(tmp_path, parent=before, child=after), "child", rules)
    error = np.std(np.subtract(after, before)) / 10
    assert found["detectable"]["math"] == pytest.approx((1.751 + 0.842) * error, rel=1e-3)
    assert f"seen in 4 of 5 stages: math {found['detectable']['math']:.3f}" in gate.lines("child", found, rules)[1]


@pytest.mark.parametrize("rule", ["max_drop", "min_gain", "floor"])
@pytest.mark.parametrize(
    "after, told",
    [([], "not a finite"), ([float("nan")] * 50, "not a finite"), (None, "not a finite"), ("gone", "no scores of math")],
    ids=["empty", "nan", "null", "missing"],
)
def test_a_score_that_is_none_is_an_error_and_no_pass(tmp_path, rule, after, told):
    manifest = manifest_of(tmp_path, parent=RIGHT, child=after)
    if after == "gone":
        (manifest.directory("child") / "validation.json").write_text(json.dumps({"mcqa": {"per_prompt": RIGHT}}))
    with pytest.raises(gate.GateError, match=told):
        gate.judge(manifest, "child", GateConfig(**{rule: {"math": 0.05}}, on_failure="advance"))


@pytest.mark.parametrize("rule", ["max_drop", "min_gain", "floor"])
def test_prompts_without_a_verdict_are_left_out_of_both_stages(tmp_path, rule):
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    missing = verdict(tmp_path / "with", [None, *RIGHT, 1.0], [1.0, *WRONG, None], rule, 0.5)
    # A floor looks at one stage alone, so at the prompt, too, that only this one has.
    assert missing == verdict(tmp_path / "without", RIGHT, WRONG, rule, 0.5) or rule == "floor"
    assert missing["failed"] == [[rule, "math"]]
    (tmp_path / "none").mkdir()
    with pytest.raises(gate.GateError, match="math: no validation prompt of .*child has a verdict"):
        verdict(tmp_path / "none", RIGHT, [None] * 50, rule, 0.5)


@pytest.mark.parametrize("rule", ["max_drop", "min_gain"])
def test_scores_of_another_number_of_prompts_are_an_error_and_no_pass(tmp_path, rule):
    with pytest.raises(gate.GateError, match="parent was scored on 50 prompts and child on 49"):
        verdict(tmp_path, RIGHT, RIGHT[1:], rule)


def test_scores_on_other_prompts_are_an_error_and_no_pass(tmp_path):
    manifest = manifest_of(tmp_path, parent=RIGHT, child=RIGHT)
    for name in ("parent", "child"):
        entry = {"math": {"per_prompt": RIGHT, "prompts": f"hash of {name}'s"}}
        (manifest.directory(name) / "validation.json").write_text(json.dumps(entry))
    with pytest.raises(gate.GateError, match="math: the validation prompts of parent and child differ"):
        gate.judge(manifest, "child", GateConfig({"math": 0.05}))


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
        with pytest.raises(RunRefused, match="gate of if_rl: stop; FAILED math -1.000 .* --from-stage if_rl"):
            runs(IF_RL + "max_drop.math=0.05")
    assert runs.statuses()[:4] == ["done", "done", "done", "pending"] and "done, stop" in markdown(runs.manifest)
    runs.score = fallen_in()
    assert runs(IF_RL + "max_drop.math=0.05", from_stage="if_rl") == ORDER[2:]


def test_a_gate_that_only_advances_records_what_failed(runs):
    runs.score = fallen_in("if_rl")
    assert runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=advance") == ORDER
    found = runs.manifest.stages["if_rl"].gate
    assert found["action"] == "advance" and found["failed"] == [["max_drop", "math"]]
    assert runs.manifest.stages["multi_domain_rl"].parent == "if_rl"


def test_a_stage_that_did_not_gain_is_rolled_back(runs):
    runs.score = fallen_in()
    runs(IF_RL + "min_gain.instruction_following=0.0", IF_RL + "on_failure=rollback")
    assert runs.manifest.stages["multi_domain_rl"].parent == "sft"


def test_a_score_that_is_not_finite_stops_the_run_whatever_the_gate_does(runs):
    def broken(stage, checkpoint, domains, num_samples):
        scores = fallen_in()(stage, checkpoint, domains, num_samples)
        return scores | {"math": scores["math"] | {"per_prompt": [float("nan")] * 8}} if stage.name == "if_rl" else scores

    runs.score = broken
    for on_failure in ("advance", "rollback"):
        with pytest.raises(gate.GateError, match="03-if_rl.*math is not a finite number"):
            runs(IF_RL + "max_drop.math=0.05", IF_RL + f"on_failure={on_failure}")
    assert runs.statuses()[:4] == ["done", "done", "done", "pending"]


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


def test_what_was_rolled_back_may_still_teach_what_it_learned(runs):
    runs.score = fallen_in("if_rl")
    teaches = "cascade.stages.mopd.teachers.instruction_following={stage: if_rl, anchor: false}"
    assert runs(IF_RL + "max_drop.math=0.05", IF_RL + "on_failure=rollback", teaches) == ORDER
    given = json.loads((runs.run_dir / "07-mopd/step_2/training_info.json").read_text())["given"]
    assert f"instruction_following {runs.hashes()['if_rl']}" in given


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
