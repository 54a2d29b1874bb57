"""The best checkpoint of a domain teaches it, wherever in the run it is, and nothing teaches that may not."""

import io
import json
import shutil

import pytest
from rich.console import Console

from nemo_cascade.cascade import cli, provenance, teachers
from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import ConfigErrors, StageConfig, Teacher, load_config
from nemo_cascade.cascade.gate import GateError
from nemo_cascade.cascade.manifest import DONE, RUNNING, Manifest
from nemo_cascade.cascade.plan import RunRefused
from tests.helpers import run_distributed

KEYS = {"tokenizer": "t" * 64, "template": "c" * 64}
# stage -> right answers among 100 prompts of math; the first so many.
RIGHT = {"sft": 50, "math_rl": 80, "if_rl": 90, "multi_rl": 60}


def manifest_of(folder, right=RIGHT, student="mopd") -> Manifest:
    """sft -> multi_rl -> student; math_rl is a side branch of sft, if_rl was rolled back."""
    manifest = Manifest(folder)
    for name, count in right.items():
        record = manifest.add(name)
        record.status, record.checkpoint_hash, record.fingerprint = DONE, f"hash of {name}", dict(KEYS)
        record.parent, record.teacher_only = None if name == "sft" else "sft", name == "math_rl"
        record.scores = {"math": {"mean": count / 100, "n": 100}}
        manifest.directory(name).mkdir(parents=True)
        scores = {"math": {"per_prompt": [1.0] * count + [0.0] * (100 - count), "prompts": "the same"}}
        (manifest.directory(name) / "validation.json").write_text(json.dumps(scores))
    if "if_rl" in right:
        manifest.stages["if_rl"].gate = {"action": "rollback"}
    record = manifest.add(student)
    record.parent, record.fingerprint = list(right)[-1], dict(KEYS)
    return manifest


def stage_of(name="mopd", parent="multi_rl", **taught) -> StageConfig:
    return StageConfig(kind="rl", name=name, parent=parent, teachers={d: Teacher(**values) for d, values in taught.items()})


def facts_of(manifest, stage, outside=None) -> dict:
    """What a stage that begins finds out about its teachers."""
    record = manifest.stages[stage.name]
    record.teachers = teachers.resolve(manifest, stage)
    return provenance.of_teachers(manifest, stage, outside or {})


def test_the_best_of_a_domain_is_found_among_side_branches_and_what_was_rolled_back(tmp_path):
    manifest = manifest_of(tmp_path)
    assert teachers.candidates(manifest, "mopd", "math") == list(RIGHT)
    assert facts_of(manifest, stage_of(math=dict(stage="auto")))["math"]["teacher"] == "if_rl"
    del manifest.stages["if_rl"]
    assert facts_of(manifest, stage_of(math=dict(stage="auto")))["math"]["teacher"] == "math_rl"


def test_stages_that_come_after_the_student_or_are_not_done_do_not_teach(tmp_path):
    manifest = manifest_of(tmp_path)
    manifest.stages["if_rl"].status = RUNNING
    assert teachers.candidates(manifest, "multi_rl", "math") == ["sft", "math_rl"]


def test_the_margin_is_that_of_the_prompts_differences(tmp_path):
    found = teachers.margin(manifest_of(tmp_path), "multi_rl", "math_rl", "math")
    assert found.mean == pytest.approx(0.2) and 0.1 < found.low < 0.2 < found.high < 0.3 and found.prompts == 100
    assert found.chance < 0.001 and str(found).startswith("+0.200 [+0.1")


def test_what_a_teacher_is_goes_into_the_manifest_with_its_parents(tmp_path):
    manifest = manifest_of(tmp_path)
    manifest.stages["mopd"].teacher_facts = facts_of(manifest, stage_of(math=dict(stage="auto")))
    manifest.save()
    entry = Manifest.load(tmp_path).stages["mopd"].teacher_facts["math"]
    assert entry["auto"] and not entry["anchor"] and entry["candidates"] == 4 and entry["start"] == "multi_rl"
    assert entry["weights_hash"] == "hash of if_rl" and {key: entry[key] for key in KEYS} == KEYS
    assert entry["margin"]["mean"] == pytest.approx(0.3) and entry["margin"]["low"] > 0.2
    assert entry["chain"] == [["if_rl", "hash of if_rl"], ["sft", "hash of sft"]] and entry["warning"] is None


@pytest.mark.parametrize("teacher", [dict(stage="auto"), dict(stage="multi_rl"), dict(stage="copy")])
def test_a_teacher_with_the_weights_that_the_student_starts_from_must_be_called_an_anchor(tmp_path, teacher):
    manifest = manifest_of(tmp_path, {"sft": 50, "copy": 50, "multi_rl": 60})
    manifest.stages["copy"].checkpoint_hash = "hash of multi_rl"
    with pytest.raises(RunRefused, match="mopd: teachers.math: .*has the weights that the student starts from .*anchor: true"):
        facts_of(manifest, stage_of(math=teacher))
    entry = facts_of(manifest, stage_of(math=teacher | {"anchor": True}))["math"]
    assert entry["anchor"] and entry["warning"] is None
    (line,) = teachers.lines({"math": entry, "mcqa": entry})
    assert line == "anchors, that hold the student where it starts (multi_rl): math, mcqa"


def test_of_equally_good_checkpoints_the_students_start_is_the_best(tmp_path):
    manifest = manifest_of(tmp_path, {"sft": 60, "multi_rl": 60})
    assert facts_of(manifest, stage_of(math=dict(stage="auto", anchor=True)))["math"]["anchor"]


def test_an_anchor_holds_the_student_where_it_really_starts(tmp_path):
    manifest = manifest_of(tmp_path)
    manifest.stages["mopd"].parent = "sft"  # multi_rl was rolled back
    entry = facts_of(manifest, stage_of(math=dict(stage="multi_rl", anchor=True)))["math"]
    assert entry["teacher"] == "sft" and entry["anchor"]


def test_a_worse_teacher_is_warned_about_with_its_interval(tmp_path):
    manifest = manifest_of(tmp_path)
    facts = facts_of(manifest, stage_of(math=dict(stage="sft")))
    told = teachers.lines(facts)
    assert told[0].startswith("teacher of math: sft, -0.100 [-0.1")
    assert told[1].startswith("warning: the teacher sft of math, -0.100 [-0.1") and told[1].endswith("is worse than it")


def test_a_teacher_that_may_be_better_by_noise_alone_is_warned_about(tmp_path):
    facts = facts_of(manifest_of(tmp_path, {"sft": 50, "math_rl": 62, "multi_rl": 60}), stage_of(math=dict(stage="auto")))
    assert facts["math"]["teacher"] == "math_rl" and "may be no better than it" in facts["math"]["warning"]


@pytest.mark.parametrize("part", ["tokenizer", "template"])
def test_a_teacher_that_reads_other_tokens_or_prompts_is_refused(tmp_path, part):
    manifest = manifest_of(tmp_path)
    manifest.stages["math_rl"].fingerprint[part] = "o" * 64
    with pytest.raises(RunRefused, match=f"teachers.math: the {part} of math_rl has the hash oooooooooooo, the student's"):
        facts_of(manifest, stage_of(math=dict(stage="math_rl")))


def test_all_that_is_wrong_with_teachers_is_told_at_once(tmp_path):
    manifest = manifest_of(tmp_path)
    manifest.stages["math_rl"].fingerprint = {"tokenizer": "o" * 64, "template": "o" * 64}
    with pytest.raises(RunRefused) as refused:
        facts_of(manifest, stage_of(math=dict(stage="math_rl"), mcqa=dict(stage="multi_rl")))
    assert len(str(refused.value).splitlines()) == 3


def test_a_domain_of_which_nothing_is_known_has_no_best(tmp_path):
    with pytest.raises(RunRefused, match="teachers.mcqa is auto, but no stage that has finished is scored in mcqa"):
        teachers.resolve(manifest_of(tmp_path), stage_of(mcqa=dict(stage="auto")))


def test_scores_of_other_prompts_are_an_error_where_the_best_is_looked_for_and_a_warning_where_it_is_named(tmp_path):
    manifest = manifest_of(tmp_path)
    path = manifest.directory("if_rl") / "validation.json"
    path.write_text(path.read_text().replace("the same", "others"))
    with pytest.raises(GateError, match="the validation prompts of multi_rl and if_rl differ"):
        facts_of(manifest, stage_of(math=dict(stage="auto")))
    entry = facts_of(manifest, stage_of(math=dict(stage="if_rl")))["math"]
    assert entry["margin"] is None and "prompts of multi_rl and if_rl differ" in entry["warning"]


def test_a_stage_that_has_begun_keeps_its_teachers(tmp_path):
    manifest = manifest_of(tmp_path, {"sft": 50, "math_rl": 80, "if_rl": 60, "multi_rl": 60})
    stage, record = stage_of(math=dict(stage="auto")), manifest.stages["mopd"]
    record.teacher_facts, record.status = facts_of(manifest, stage), RUNNING
    scores = manifest.directory("if_rl") / "validation.json"
    scores.write_text(json.dumps({"math": {"per_prompt": [1.0] * 100, "prompts": "the same"}}))
    assert teachers.resolve(manifest, stage) == {"math": "math_rl"}
    manifest.stages["math_rl"].checkpoint_hash = "another"
    with pytest.raises(RunRefused, match="the weights of math_rl changed since the stage began"):
        provenance.of_teachers(manifest, stage, {})


def test_the_registry_shows_every_score_the_best_and_what_taught(tmp_path):
    manifest = manifest_of(tmp_path)
    manifest.stages["mopd"].teacher_facts = facts_of(manifest, stage_of(math=dict(stage="math_rl")))
    console = Console(width=200, file=io.StringIO())
    for table in teachers.registry(manifest):
        console.print(table)
    text = console.file.getvalue()
    tie = "of equal ones that of multi_rl, where a next stage would start"
    assert tie in " ".join(text.split())
    for part in ("math_rl (side branch)", "if_rl (rolled back)", "*0.900", "best less multi_rl", "+0.300 [", "+0.200 [", "| sft"):
        assert part.removeprefix("| ") in text, part


def test_the_command_shows_a_runs_teachers_and_says_what_is_no_run(tmp_path, capsys):
    manifest = manifest_of(tmp_path)
    manifest.stages["mopd"].teacher_facts = facts_of(manifest, stage_of(math=dict(stage="auto")))
    manifest.save()
    cli.teachers(tmp_path)
    shown = capsys.readouterr().out
    assert "*0.900" in shown and "hash of if_r" in shown
    with pytest.raises(SystemExit):
        cli.teachers(tmp_path / "nowhere")
    assert "no cascade_manifest.json" in capsys.readouterr().err


# -------------------------------------------------------------------------------- from outside of the run


def write_outside(folder) -> str:
    """hf/ with a tokenizer and step_3 of the same weights in a run of its own; their hash."""
    from nemo_cascade.data.tokenizer import fingerprint, load_tokenizer
    from nemo_cascade.engine import checkpoint
    from nemo_cascade.models.hf_folder import write_hf
    from tests.models.test_hf import build, stirred

    policy = stirred(build("micro"))
    write_hf(policy.hf_weights(), policy.preset, folder / "hf")
    policy.tokenizer.save_pretrained(folder / "hf")
    run = Manifest(folder / "run")
    record = run.add("math_rl")
    record.fingerprint, record.checkpoint_hash = fingerprint(load_tokenizer("tiny")), policy.weights_hash()
    run.save()
    step = run.directory("math_rl") / "step_3"
    policy.save(step / "policy", optimizer=False)
    (step / "training_info.json").write_text(json.dumps({"step": 3, "weights_hash": record.checkpoint_hash}))
    return record.checkpoint_hash


def outside_facts(folder, paths) -> dict:
    """facts_of with these folders as the teachers of domains."""
    from nemo_cascade.data.tokenizer import fingerprint, load_tokenizer
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig

    parallel.init(MegatronConfig())
    manifest = manifest_of(folder / "mine")
    stage = stage_of(**{name: {"path": str(path), **more} for name, (path, more) in paths.items()})
    stage.policy.model_name = "micro"
    record = manifest.stages["mopd"]
    record.fingerprint, record.teachers = fingerprint(load_tokenizer("tiny")), teachers.resolve(manifest, stage)
    return provenance.of_teachers(manifest, stage, provenance.of_outside(manifest, stage))


def outside_refused(*arguments) -> str:
    with pytest.raises(RunRefused) as refused:
        outside_facts(*arguments)
    return str(refused.value)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    (folder / "hash").write_text(run_distributed(write_outside, 1, folder)[0])
    return folder


def test_folders_and_checkpoints_of_other_runs_teach_by_the_hash_of_their_weights(outside, tmp_path):
    paths = {"math": (outside / "hf", {}), "mcqa": (outside / "run" / "01-math_rl" / "step_3", {})}
    (facts,) = run_distributed(outside_facts, 1, tmp_path, paths)
    expected = (outside / "hash").read_text()
    assert {entry["weights_hash"] for entry in facts.values()} == {expected} and not facts["math"]["anchor"]
    assert facts["mcqa"]["chain"] == [("math_rl", expected)] and facts["math"]["margin"] is None
    assert facts["math"]["tokenizer"] == facts["mcqa"]["tokenizer"]


def test_folders_of_another_network_or_without_a_tokenizer_or_with_another_template_are_refused(outside, tmp_path):
    bare, other, said = (shutil.copytree(outside / "hf", tmp_path / name) for name in ("bare", "other", "said"))
    for file in bare.glob("*token*"):
        file.unlink()
    (said / "chat_template.jinja").write_text((said / "chat_template.jinja").read_text() + "!")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"routed_scaling_factor": 1.0}))
    (told,) = run_distributed(outside_refused, 1, tmp_path, {"math": (bare, {}), "mcqa": (said, {})})
    assert f"teachers.math: nothing tells the tokenizer of {bare}; name its folder with teachers.math.tokenizer" in told
    assert f"teachers.mcqa: the template of {said} has the hash" in told and len(told.splitlines()) == 3
    (facts,) = run_distributed(outside_facts, 1, tmp_path / "2", {"math": (bare, {"tokenizer": "tiny"})})
    assert facts["math"]["template"]
    (told,) = run_distributed(outside_refused, 1, tmp_path / "3", {"math": (other, {})})
    assert f"the teacher {other} cannot be read: ValueError: another network: moe_router_topk_scaling_factor 1.0, not 2.5" in told


def logprobs_by(folder, places) -> list:
    """What each place's weights say in the buffers of a policy with weights of its own."""
    from nemo_cascade.stages.rl import Question, ask
    from tests.engine.cases import random_samples
    from tests.models.test_hf import build

    policy = build("micro")
    samples, before, said = random_samples(policy.preset.vocab_size), policy.weights_hash(), []
    for place in places:
        ask(policy, [Question(place, "teacher_logprobs", samples)])
        said.append([sample.fields["teacher_logprobs"] for sample in samples])
    assert policy.weights_hash() == before
    return said


def test_a_folder_teaches_what_a_checkpoint_of_its_weights_does(outside, tmp_path):
    places = [outside / "hf", outside / "run" / "01-math_rl" / "step_3"]
    (said,) = run_distributed(logprobs_by, 1, tmp_path, places)
    assert said[0] == said[1]


# -------------------------------------------------------------------------------- in a config


def mopd(*overrides):
    return load_config(compose_config("smoke", list(overrides))).stages["mopd"].teachers


def test_auto_is_short_for_the_best_stage():
    assert mopd("cascade.stages.mopd.teachers.math=auto")["math"] == Teacher(stage="auto")
    everywhere = mopd("cascade.stages.mopd.teachers=auto")
    assert len(everywhere) == 9 and set(map(str, everywhere.values())) == {str(Teacher(stage="auto", anchor=True))}


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["cascade.stages.mopd.teachers.math={stage: null, anchor: true}"], "teachers.math: name a stage (or auto) or a path"),
        (["cascade.stages.mopd.teachers.math={stage: sft, path: /tmp}"], "teachers.math: name a stage (or auto) or a path, and not both"),
        (["cascade.stages.mopd.teachers.math={path: /nowhere}"], "teachers.math.path: no folder /nowhere"),
        (["cascade.stages.mopd.teachers.math=auto", "~data.validation.math"], "teachers.math: auto needs scores, and nothing scores math"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_when_the_config_loads(overrides, told):
    with pytest.raises(ConfigErrors) as refused:
        mopd(*overrides)
    assert any(told in problem for problem in refused.value.problems), refused.value.problems
