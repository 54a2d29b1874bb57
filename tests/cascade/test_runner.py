"""What the runner does around the loops: order, hand-over, resume, repetition.

The loops are stand-ins that only save a checkpoint; the real ones have tests of their own.
"""

import gc
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config
from nemo_cascade.cascade.manifest import DONE, PENDING, RUNNING, Manifest
from nemo_cascade.cascade.runner import RunRefused, run, stage_seed
from nemo_cascade.data.demo import DOMAINS
from nemo_cascade.data.rows import DataError
from nemo_cascade.engine import parallel, seal


class Killed(BaseException):
    """Stands for a kill: nothing in the runner may catch it."""


class Loops:
    """A loop of the real signature: a line of metrics a step, then a checkpoint hashed from all it was given."""

    def __init__(self):
        self.calls: list[str] = []
        self.kill_in: str | None = None

    def __call__(self, stage) -> None:
        self.calls.append(stage.name)
        steps = stage.config.max_num_steps
        with stage.progress(steps, stage.name) as bar:
            for step in range(1, steps + 1):
                stage.log({"train/reward": 0.1 * step}, step)
                bar.advance(reward=0.1 * step)
                if self.kill_in == stage.name:
                    raise Killed
        given = [
            stage.name,
            stage.seed,
            hash_of(stage.parent),
            *(f"{d} {hash_of(t)}" for d, t in stage.teachers.items()),
            f"judged by {hash_of(stage.judge)}",
        ]
        final = stage.dir / f"step_{steps}"
        digest = hashlib.sha256(repr(given).encode()).hexdigest()
        for part in ("weights", "optimizer"):
            (final / "policy" / part).mkdir(parents=True)
            (final / "policy" / part / "__0_0.distcp").write_text(digest)
        seal.seal(final, {"step": steps, "weights_hash": digest, "given": given})


def hash_of(checkpoint: Path | None) -> str | None:
    return json.loads((checkpoint / "training_info.json").read_text())["weights_hash"] if checkpoint else None


def score(stage, checkpoint, domains, num_samples) -> dict:
    """Every prompt gets the stage's place in the order."""
    assert checkpoint == stage.dir / f"step_{stage.config.max_num_steps}" and checkpoint.is_dir()
    value = int(stage.dir.name[:2]) / 20
    return {
        name: {"mean": value, "n": len(entry.rows), "per_prompt": [value] * len(entry.rows)}
        for name, entry in domains.items()
    }


# Those that ship judge what stand-ins score.
GATED = ("if_rl", "multi_domain_rl", "mopd", "rlhf", "long_context_rl", "code_rl", "swe_rl")
NO_GATES = [f"~cascade.stages.{name}.gate" for name in GATED]
# Enough rows for the prompts that are scored, and no more: every run reads them all.
FEW_ROWS = [*(f"cascade.demo_data.{kind}_rows=8" for kind in ("train", "validation", "sft")), "~cascade.demo_data.rows_of"]


class Runs:
    """One run directory and the commands given to it."""

    def __init__(self, run_dir: Path, data: Path):
        self.run_dir, self.data, self.loops, self.score = run_dir, data, Loops(), score

    def __call__(self, *overrides: str, **options) -> list[str]:
        """Runs once; returns the stages whose loops were called."""
        places = [f"cascade.run_dir={self.run_dir}", f"cascade.demo_data.path={self.data}", f"cascade.order=[{','.join(ORDER)}]"]
        config = load_config(compose_config("smoke", [*places, *FEW_ROWS, *NO_GATES, *overrides]), world_size=1)
        self.loops.calls = []
        try:
            run(config, loops={"sft": self.loops, "rl": self.loops}, score=self.score, **options)
        finally:
            parallel.shutdown()
        return self.loops.calls

    def killed_in(self, stage: str, *overrides: str, **options) -> list[str]:
        self.loops.kill_in = stage
        with pytest.raises(Killed):
            self(*overrides, **options)
        self.loops.kill_in = None
        return self.loops.calls

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.run_dir)

    def hashes(self) -> dict[str, str]:
        return {name: record.checkpoint_hash for name, record in self.manifest.stages.items()}

    def statuses(self) -> list[str]:
        return [record.status for record in self.manifest.stages.values()]


ORDER = "genrm sft if_rl multi_domain_rl math_rl preference_rl mopd rlhf long_context_rl code_rl swe_rl".split()
ALL_DOMAINS = set(DOMAINS) - {"preference_pairs"}


@pytest.fixture(scope="module", autouse=True)
def imports_are_not_collected():
    """The runner collects garbage between stages; going over all of torch each time would be most of these tests."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that went through once, not to be changed."""
    folder = tmp_path_factory.mktemp("first")
    first = Runs(folder / "run", folder / "data")
    assert first() == ORDER
    return first


@pytest.fixture
def runs(tmp_path, first):
    """A run directory that does not exist yet."""
    return Runs(tmp_path / "run", first.data)


@pytest.fixture
def finished(runs, first):
    """A copy of a run that went through once."""
    shutil.copytree(first.run_dir, runs.run_dir)
    return runs


def test_all_stages_run_in_order_and_are_done(first):
    runs = first
    assert runs.statuses() == [DONE] * len(ORDER)
    folders = [f"{number:02d}-{name}" for number, name in enumerate(ORDER, start=1)]
    expected = [*folders, "cascade_manifest.json", "cascade_manifest.json.bak", "heartbeats", "report"]
    assert sorted(path.name for path in runs.run_dir.iterdir()) == expected
    assert sorted(path.name for path in (runs.run_dir / "07-mopd").iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "step_2",
        "validation.json",
    ]
    report = sorted(path.name for path in (runs.run_dir / "report").iterdir())
    assert report == ["index.html", "scores.md"]


def given(runs, folder) -> list:
    """What the loop of a finished stage was given, its name and seed left out."""
    return json.loads((runs.run_dir / folder / "step_2" / "training_info.json").read_text())["given"][2:]


def test_a_stage_gets_the_checkpoints_of_its_parent_its_teachers_and_its_judge(first):
    hashes = first.hashes()
    judged = f"judged by {hashes['genrm']}"
    taught = [f"{domain} {hashes[teacher]}" for domain, teacher in first.manifest.stages["mopd"].teachers.items()]
    assert given(first, "07-mopd") == [hashes["multi_domain_rl"], *taught, judged]
    assert f"math {hashes['math_rl']}" in taught and f"preference {hashes['preference_rl']}" in taught
    assert given(first, "05-math_rl") == [hashes["sft"], judged]
    assert given(first, "08-rlhf") == [hashes["mopd"], judged]


def test_the_judge_itself_starts_from_nothing_and_is_judged_by_nobody(first):
    assert given(first, "01-genrm") == [None, "judged by None"]
    assert given(first, "02-sft")[0] is None


OWN_DOMAINS = {"genrm": {"preference_pairs"}, "math_rl": {"math"}, "preference_rl": {"preference"}}


def test_every_stage_is_scored_on_all_domains_and_one_that_only_judges_or_teaches_on_its_own(first):
    for number, (name, record) in enumerate(first.manifest.stages.items(), start=1):
        domains = OWN_DOMAINS.get(name, ALL_DOMAINS)
        assert record.scores == dict.fromkeys(domains, {"mean": number / 20, "n": 8})
        stored = json.loads((first.run_dir / record.directory / "validation.json").read_text())
        assert set(stored) == domains and all(entry["per_prompt"] == [number / 20] * 8 for entry in stored.values())


def poor(stage, checkpoint, domains, num_samples) -> dict:
    """The judge agrees with three pairs of four; everybody else is always right."""
    value = 0.75 if stage.name == "genrm" else 1.0
    return {
        name: {"mean": value, "n": len(entry.rows), "per_prompt": [value] * len(entry.rows)}
        for name, entry in domains.items()
    }


def test_a_poor_judge_stops_the_run_before_it_judges_until_the_bar_is_lowered(runs):
    runs.score, high = poor, "cascade.judge.min_agreement=0.8"
    for called in (["genrm"], []):
        with pytest.raises(
            RunRefused,
            match="stage sft: its judge genrm agrees with 0.750 of 8 preferences of preference_pairs, less than "
            "cascade.judge.min_agreement=0.8; .*--from-stage genrm",
        ):
            runs(high)
        assert runs.loops.calls == called
        assert runs.statuses() == [DONE] + [PENDING] * (len(ORDER) - 1)
    assert runs("cascade.judge.min_agreement=0.75") == ORDER[1:]


def test_a_poor_judge_made_better_is_repeated_and_judges(runs):
    runs.score, high = poor, "cascade.judge.min_agreement=0.8"
    with pytest.raises(RunRefused):
        runs(high)
    runs.score = score_of_one
    assert runs(high, from_stage="genrm") == ORDER


def score_of_one(stage, checkpoint, domains, num_samples) -> dict:
    return {name: {"mean": 1.0, "n": len(e.rows), "per_prompt": [1.0] * len(e.rows)} for name, e in domains.items()}


def test_every_stage_is_scored_by_the_same_sampling_and_rules_whatever_it_trains_with(runs):
    seen = {}

    def noted(stage, checkpoint, domains, num_samples):
        generation = stage.config.policy.generation
        seen[stage.name] = (generation.temperature, generation.top_p, stage.config.grpo.overlong_mode)
        return score_of_one(stage, checkpoint, domains, num_samples)

    runs.score = noted
    runs("cascade.validation.temperature=0.9", "cascade.validation.top_p=0.99")
    assert seen.pop("genrm")[0] == 0, "a judge is scored as it answers"
    assert set(seen) == set(ORDER) - {"genrm"} and set(seen.values()) == {(0.9, 0.99, "reward_zero")}


def test_rows_that_need_a_judge_are_refused_without_one_before_anything_is_trained(runs):
    with pytest.raises(DataError, match="preference/validation.jsonl, row 1: a judge has .* but sft has none"):
        runs("~cascade.judge", "cascade.order=[sft,if_rl]")
    unscored = ("cascade.validation.num_prompts=0", "~data.validation.preference")
    with pytest.raises(DataError, match="preference/train.jsonl, row 1: a judge has .* but preference_rl has none"):
        runs("~cascade.judge", "cascade.order=[sft,math_rl,preference_rl]", *unscored)
    assert runs.loops.calls == [] and not list(runs.run_dir.glob("[0-9]*"))


def test_rows_that_one_stage_has_no_room_for_are_refused_before_anything_is_trained(runs):
    with pytest.raises(DataError, match="long_context/validation.jsonl, row 1: the prompt has .* leaves 768"):
        runs("cascade.stages.code_rl.policy.generation.max_new_tokens=512")
    assert runs.loops.calls == []


def test_a_cascade_without_preferences_needs_no_judge(runs):
    assert runs("~cascade.judge", "~data.validation.preference", "cascade.order=[sft,math_rl]") == ["sft", "math_rl"]
    assert given(runs, "02-math_rl")[-1] == "judged by None"


def test_without_validation_prompts_nothing_is_scored(runs):
    no_judge = ("~cascade.judge", "~data.validation.preference")
    runs("cascade.validation.num_prompts=0", "cascade.order=[sft]", *no_judge)
    assert runs.manifest.stages["sft"].scores == {} and not (runs.run_dir / "01-sft" / "validation.json").exists()


def test_a_domain_is_scored_from_the_stage_on_that_names_it(runs):
    late = "cascade.stages.if_rl.data.validation={math: {data_path: '${cascade.demo_data.path}/math/validation.jsonl'}}"
    runs("~data.validation.math", late, "cascade.order=[genrm,sft,if_rl]")
    stages = runs.manifest.stages
    assert set(stages["sft"].scores) == ALL_DOMAINS - {"math"}
    assert set(stages["if_rl"].scores) == ALL_DOMAINS


def test_a_side_branch_is_scored_where_it_teaches_or_has_a_gate_as_well(runs):
    teaches = "cascade.stages.mopd.teachers.mcqa={stage: math_rl, anchor: false}"
    gated = "+cascade.stages.math_rl.gate.max_drop={code_gen: 1.0}"
    runs(teaches, gated)
    assert set(runs.manifest.stages["math_rl"].scores) == {"math", "mcqa", "code_gen"}


def test_the_same_command_again_does_nothing(finished):
    before = (finished.run_dir / "cascade_manifest.json").read_bytes()
    assert finished() == []
    assert (finished.run_dir / "cascade_manifest.json").read_bytes() == before


@pytest.mark.parametrize("stage", ["genrm", "math_rl", "swe_rl"])
def test_a_killed_run_goes_on_where_it_was(stage, runs, first):
    place = ORDER.index(stage)
    assert runs.killed_in(stage) == ORDER[: place + 1]
    assert runs.statuses() == [DONE] * place + [RUNNING] + [PENDING] * (len(ORDER) - place - 1)
    assert runs() == ORDER[place:]
    assert runs.hashes() == first.hashes()


def test_only_runs_one_stage(runs):
    for name in ("genrm", "sft", "math_rl"):
        assert runs(only=name) == [name]
    assert runs(only="math_rl") == []
    done = [name for name, record in runs.manifest.stages.items() if record.status == DONE]
    assert done == ["genrm", "sft", "math_rl"]


def test_only_needs_the_judge_and_what_the_stage_starts_from(runs):
    with pytest.raises(RunRefused, match="--only sft: .* is judged by genrm, not finished yet"):
        runs(only="sft")
    runs(only="genrm")
    runs(only="sft")
    with pytest.raises(RunRefused, match="--only multi_domain_rl: .* is judged by if_rl, not finished yet"):
        runs(only="multi_domain_rl")
    with pytest.raises(RunRefused, match="multi_domain_rl, math_rl, preference_rl, not finished yet"):
        runs(only="mopd")


def test_only_respects_the_judges_bar(runs):
    runs.score = poor
    runs(only="genrm")
    with pytest.raises(RunRefused, match="stage sft: its judge genrm agrees with 0.750 of 8"):
        runs("cascade.judge.min_agreement=0.8", only="sft")
    assert runs.loops.calls == []


def test_from_stage_repeats_and_moves_aside(finished):
    before = finished.hashes()
    (finished.run_dir / "05-math_rl" / "mark").write_text("first")
    assert finished(from_stage="math_rl") == ORDER[4:]
    assert finished.hashes() == before and finished.statuses() == [DONE] * len(ORDER)
    (aside,) = (finished.run_dir / "replaced").iterdir()
    folders = [finished.manifest.stages[name].directory for name in ORDER[4:]]
    assert sorted(path.name for path in aside.iterdir()) == [*folders, "cascade_manifest.json"]
    assert (aside / "05-math_rl" / "mark").read_text() == "first"
    assert not (finished.run_dir / "05-math_rl" / "mark").exists()


def test_a_killed_from_stage_goes_on_by_the_same_command(finished):
    assert finished.killed_in("preference_rl", from_stage="math_rl") == ORDER[4:6]
    assert finished(from_stage="math_rl") == ORDER[5:]
    assert len(list((finished.run_dir / "replaced").iterdir())) == 1
    assert finished(from_stage="math_rl") == ORDER[4:]


def test_a_kill_while_moving_aside_leaves_nothing_old_to_resume_from(finished):
    manifest = finished.manifest
    for name in ORDER[3:]:
        manifest.reset(name)  # the manifest was saved, the folders had not moved yet
    manifest.save()
    assert finished() == ORDER[3:]
    (aside,) = (finished.run_dir / "replaced").iterdir()
    assert {"04-multi_domain_rl", "11-swe_rl"} <= {path.name for path in aside.iterdir()}


CHANGES = {
    "of the stage": (
        "cascade.stages.if_rl.policy.max_grad_norm=0.5",
        "stage if_rl was finished",
        "policy.max_grad_norm 1.0 -> 0.5",
    ),
    "of the parent": (
        "cascade.stages.multi_domain_rl.parent=sft",
        "stage multi_domain_rl was finished",
        "cascade.parent 'if_rl' -> 'sft'",
    ),
    "of the seed": ("cascade.seed=99", "stage genrm was finished", "cascade.seed 1 -> 99"),
    "of the rows": (
        "cascade.demo_data.train_rows=9",
        "stage genrm was finished",
        "cascade.demo_data.train_rows 8 -> 9",
    ),
    "of the judge": (
        "cascade.stages.genrm.sft.max_num_steps=3",
        "stage genrm was finished",
        "sft.max_num_steps 2 -> 3",
    ),
    "of who judges": (
        "cascade.judge=null",
        "stage sft was finished",
        "cascade.judge 'genrm' -> None",
    ),
    "of a teacher": (
        "cascade.stages.mopd.teachers.math=if_rl",
        "stage mopd was finished",
        "cascade.teachers.math.stage 'math_rl' -> 'if_rl'",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_config_of_a_finished_stage_is_refused(change, runs):
    override, stage, keys = CHANGES[change]
    runs()
    files = {path: path.read_bytes() for path in runs.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(RunRefused) as refused:
        runs(override)
    line = next(line for line in str(refused.value).splitlines() if line.startswith(stage))
    assert keys in line and "--from-stage" in line
    assert {path: path.read_bytes() for path in runs.run_dir.rglob("*") if path.is_file()} == files


def test_a_changed_config_runs_again_with_from_stage(finished):
    assert (
        finished("cascade.stages.multi_domain_rl.policy.max_grad_norm=0.5", from_stage="multi_domain_rl") == ORDER[3:]
    )
    stored = yaml.safe_load((finished.run_dir / "04-multi_domain_rl" / "config.yaml").read_text())
    assert stored["policy"]["max_grad_norm"] == 0.5


def test_a_changed_config_of_a_stage_in_the_middle_is_refused(runs):
    runs.killed_in("if_rl")
    with pytest.raises(RunRefused, match="stage if_rl was begun with another config: policy.max_grad_norm 1.0 -> 0.5"):
        runs("cascade.stages.if_rl.policy.max_grad_norm=0.5")
    assert runs("cascade.stages.if_rl.policy.max_grad_norm=0.5", from_stage="if_rl") == ORDER[2:]


def test_a_changed_config_of_a_later_stage_is_nobodys_business(runs):
    runs.killed_in("math_rl")
    assert runs("cascade.stages.mopd.policy.max_grad_norm=0.5") == ORDER[4:]


def test_a_run_goes_on_after_an_upgrade_that_brought_a_key_unless_it_is_used(finished):
    for path in finished.run_dir.glob("*/config.yaml"):
        stored = yaml.safe_load(path.read_text())
        del stored["policy"]["router_replay"], stored["grpo"]["max_rollout_turns"], stored["cascade"]["validation"]["num_samples"]
        path.write_text(yaml.safe_dump(stored))
    assert finished() == []
    with pytest.raises(RunRefused, match="another config: grpo.max_rollout_turns 1 -> 3"):
        finished("grpo.max_rollout_turns=3")


def test_saving_more_often_does_not_make_it_another_run(finished):
    assert finished("checkpointing.save_period=1") == []


def test_a_stage_can_be_added_to_a_finished_run(finished):
    added = "cascade.stages.more={kind: rl, parent: swe_rl, data: {train: ${cascade.stages.math_rl.data.train}}}"
    assert finished(added, f"cascade.order=[{','.join(ORDER)},more]") == ["more"]
    assert finished.manifest.stages["more"].directory == "12-more"


def test_a_lost_checkpoint_of_a_finished_stage_is_named(finished):
    shutil.rmtree(finished.run_dir / "03-if_rl" / "step_2")
    with pytest.raises(RunRefused, match="stage if_rl is finished but its checkpoint .*03-if_rl/step_2 is gone"):
        finished()


@pytest.mark.parametrize("option", ["only", "from_stage"])
def test_an_unknown_stage_on_the_command_line_is_named(option, runs):
    with pytest.raises(RunRefused, match="unknown stage moppd; did you mean mopd?"):
        runs(**{option: "moppd"})


def test_a_loop_that_saves_nothing_is_an_error(runs, monkeypatch):
    monkeypatch.setattr(Loops, "__call__", lambda self, stage: None)
    with pytest.raises(RuntimeError, match="stage genrm came to its end without writing"):
        runs()


def test_a_stages_seed_depends_on_the_run_and_on_its_name_alone():
    seeds = {stage_seed(seed, name) for seed in range(3) for name in ORDER}
    assert len(seeds) == 3 * len(ORDER) and all(0 <= seed < 2**31 for seed in seeds)
    assert stage_seed(1, "sft") == stage_seed(1, "sft")


def test_a_bad_row_stops_the_run_before_any_stage(runs):
    bad = runs.run_dir.parent / "bad.jsonl"
    good = runs.data / "math" / "train.jsonl"
    runs(only="genrm")
    bad.write_text(good.read_text().splitlines()[0] + "\n{not json\n")
    with pytest.raises(DataError, match="bad.jsonl.*2"):
        runs(f"cascade.stages.mopd.data.train.math.data_path={bad}")
    assert runs.loops.calls == []
