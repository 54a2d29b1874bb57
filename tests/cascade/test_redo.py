"""--redo repeats a stage and what its weights went into, and leaves the rest."""

import shutil

import pytest
from test_runner import ORDER, Runs, first, imports_are_not_collected  # noqa: F401 - fixtures

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config
from nemo_cascade.cascade.manifest import DONE
from nemo_cascade.cascade.plan import RunRefused, dependents

AFTER_MOPD = ["mopd", "rlhf", "long_context_rl", "code_rl", "swe_rl"]


@pytest.fixture
def finished(first, tmp_path) -> Runs:  # noqa: F811
    shutil.copytree(first.run_dir, tmp_path / "run")
    return Runs(tmp_path / "run", first.data)


@pytest.mark.parametrize(
    "stage, made_of_it",
    [
        ("genrm", ORDER[1:]),
        ("sft", ORDER[2:]),
        ("if_rl", ["multi_domain_rl", *AFTER_MOPD]),
        ("math_rl", AFTER_MOPD),
        ("rlhf", AFTER_MOPD[2:]),
        ("swe_rl", []),
    ],
)
def test_what_a_stages_weights_went_into(stage, made_of_it):
    assert dependents(load_config(compose_config("tiny")), stage) == made_of_it


def test_a_stage_and_its_dependents_run_again_and_the_others_stay(finished):
    before = finished.hashes()
    stamp = {name: finished.manifest.directory(name).stat().st_ino for name in ORDER}
    assert finished(redo="math_rl") == ["math_rl", *AFTER_MOPD]
    assert finished.statuses() == [DONE] * len(ORDER) and finished.hashes() == before, "the same from the same"
    repeated = {name for name in ORDER if finished.manifest.directory(name).stat().st_ino != stamp[name]}
    assert repeated == {"math_rl", *AFTER_MOPD}
    (aside,) = (finished.run_dir / "replaced").iterdir()
    moved = {path.name[3:] for path in aside.iterdir() if path.is_dir()}
    assert moved == repeated and (aside / "cascade_manifest.json").is_file()


def test_a_killed_redo_goes_on_by_the_same_command_and_then_means_another_one(finished):
    assert finished.killed_in("rlhf", redo="math_rl") == ["math_rl", "mopd", "rlhf"]
    assert finished(redo="math_rl") == ["rlhf", "long_context_rl", "code_rl", "swe_rl"]
    finished.killed_in("swe_rl", redo="code_rl")
    assert finished(from_stage="code_rl") == ["code_rl", "swe_rl"], "another command"


def test_a_redone_stage_may_have_another_config_and_the_independent_may_not(finished):
    changed = "cascade.stages.math_rl.grpo.max_num_steps=1"
    with pytest.raises(RunRefused, match="stage math_rl was finished with another config"):
        finished(changed, redo="preference_rl")
    finished.score = lambda stage, checkpoint, domains, count: {
        name: {"mean": 0.0, "n": 8, "per_prompt": [0.0] * len(entry.rows)} for name, entry in domains.items()
    }
    assert finished(changed, redo="math_rl") == ["math_rl", *AFTER_MOPD]


@pytest.mark.parametrize("other", ["only", "from_stage"])
def test_only_one_of_the_options_is_given(finished, other):
    with pytest.raises(RunRefused, match="give one of them"):
        finished(redo="sft", **{other: "sft"})


def test_an_unknown_stage_is_refused_with_the_right_one(finished):
    with pytest.raises(RunRefused, match="--redo: unknown stage math_r; did you mean math_rl?"):
        finished(redo="math_r")
