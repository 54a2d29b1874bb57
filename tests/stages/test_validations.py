"""A stage keeps its best checkpoint, stops where it gets no better, and decides the same after a kill."""

import pytest

from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from nemo_cascade.stages.config import CheckpointingConfig, DataConfig, DatasetConfig, SFTConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from nemo_cascade.stages.validations import Validations
from tests.helpers import run_distributed
from tests.stages.test_sft import folder  # noqa: F401 - a fixture

PROMPTS = 200


def scores_of(**right) -> dict:
    """So many of the prompts of each domain answered, always the same ones first."""
    return {
        domain: {"mean": count / PROMPTS, "per_prompt": [1.0] * count + [0.0] * (PROMPTS - count)}
        for domain, count in right.items()
    }


def validated(tmp_path, counts, patience=0, done=10**6, **checkpointing) -> Validations:
    """After validations at steps 1, 2, ... with so many of the prompts answered in math."""
    config = LoopConfig(
        sft=SFTConfig(max_num_steps=100, val_period=1, val_patience=patience),
        checkpointing=CheckpointingConfig(**checkpointing),
    )
    stage = StageRun("sft", config, tmp_path, seed=1)
    found = Validations(stage, config.sft, done)
    for step, count in enumerate(counts, start=1):
        stage.validate = lambda policy, count=count: scores_of(math=count, mcqa=PROMPTS - count)
        found.after(step, policy=None)
    return found


def test_without_a_period_nothing_is_validated_and_the_last_step_counts(tmp_path):
    stage = StageRun("sft", LoopConfig(), tmp_path, seed=1)
    found = Validations(stage, SFTConfig(max_num_steps=7), done=0)
    assert found.after(7, policy=None) == {} and not found.stopped and not found.saves(7)
    assert found.final_step == 7 and found.retention == {"keep": 1} and list(tmp_path.iterdir()) == []


def test_validation_is_due_every_period_and_at_the_end_and_is_logged(tmp_path):
    asked = []
    stage = StageRun("sft", LoopConfig(), tmp_path, seed=1)
    stage.validate = lambda policy: asked.append(policy) or scores_of(math=50, mcqa=100)
    found = Validations(stage, SFTConfig(max_num_steps=7, val_period=3), done=0)
    metrics = [found.after(step, policy=step) for step in range(1, 8)]
    assert asked == [3, 6, 7] and [bool(m) for m in metrics] == [False, False, True, False, False, True, True]
    assert metrics[2].pop("timing/validation/total_validation_time") >= 0
    assert metrics[2] == {"validation/math/reward": 0.25, "validation/mcqa/reward": 0.5, "validation/reward": 0.375}


def test_the_best_checkpoint_is_kept_and_the_newest_to_resume_from(tmp_path):
    found = validated(tmp_path, [50, 80, 70, 80, 60], metric_name="val:math", keep_top_k=2)
    assert found.final_step == 2 and found.retention == {"keep": 1, "protect": [2, 4]}
    assert [found.saves(step) for step in (4, 5)] == [False, False], "only the step just validated is in memory"
    assert validated(tmp_path, [50, 80], done=0, metric_name="val:math").saves(2)


@pytest.mark.parametrize("name, best", [("val:math", 2), ("val:mcqa", 1)])
def test_the_metric_is_the_domain_that_was_named(tmp_path, name, best):
    assert validated(tmp_path, [50, 80, 70], metric_name=name).final_step == best


def test_lower_is_better_where_the_config_says_so(tmp_path):
    assert validated(tmp_path, [50, 80, 40], metric_name="val:math", higher_is_better=False).final_step == 3


@pytest.mark.parametrize(
    "counts, stops",
    [([50, 80, 81, 82], True), ([50, 80, 110, 82], False), ([50, 51, 54], True), ([50, 50, 60], False), ([50, 40, 30], True)],
    ids=["a plateau", "one step back", "gains that may be chance", "a late gain", "ever worse"],
)
def test_a_stage_stops_when_two_validations_in_a_row_were_no_sure_improvement(tmp_path, counts, stops):
    # As all that changes is for the better: 4 prompts more are 1 of 16 by chance, 5 are 1 of 32.
    assert validated(tmp_path, counts, patience=2, metric_name="val:math").stopped is stops


def test_slow_progress_is_seen_where_it_adds_up(tmp_path):
    assert not validated(tmp_path, [50, 53, 56, 59, 62], patience=2, metric_name="val:math").stopped


def test_what_was_found_after_the_step_that_is_resumed_from_is_forgotten(tmp_path):
    validated(tmp_path, [50, 80, 70], metric_name="val:math")
    config = LoopConfig(checkpointing=CheckpointingConfig(metric_name="val:math"))
    again = Validations(StageRun("sft", config, tmp_path, seed=1), SFTConfig(val_period=1), done=1)
    assert [entry["step"] for entry in again.history] == [1] and again.best(1) == [1]


def test_a_score_that_is_none_stops_the_stage(tmp_path):
    stage = StageRun("sft", LoopConfig(), tmp_path, seed=1)
    stage.validate = lambda policy: {"math": {"mean": float("nan"), "per_prompt": [float("nan")]}}
    with pytest.raises(ValueError, match="step 5: the validation score of math is nan"):
        Validations(stage, SFTConfig(val_period=5), done=0).after(5, policy=None)


# -------------------------------------------------------------------------------- in a loop

# Of PROMPTS answered at steps 2, 4, ...: the best is step 4, and patience ends at 8.
COURSE = {2: 60, 4: 120, 6: 90, 8: 100, 10: 110}


def trained(directory, packs, killed_at, steps, loop):
    """Runs SFT on the packs (again), killed at a validation or not; hashes of checkpoints by step, the final step, the log."""
    import torch.distributed as dist

    from nemo_cascade.engine import checkpoint, parallel
    from nemo_cascade.stages import sft

    megatron = MegatronConfig(optimizer=OptimizerConfig(lr=1e-3))
    parallel.init(megatron)
    config = LoopConfig(
        policy=PolicyConfig(
            model_name="micro",
            train_global_batch_size=2,
            sequence_packing=SequencePackingConfig(train_mb_tokens=256),
            megatron_cfg=megatron,
        ),
        sft=SFTConfig(max_num_steps=steps, **loop),
        data=DataConfig(train={"packs": DatasetConfig(data_path=str(packs))}),
        checkpointing=CheckpointingConfig(save_period=3, metric_name="val:math" if loop else None),
    )

    def validate(policy):
        if policy.step == killed_at:
            raise KeyboardInterrupt
        return scores_of(math=COURSE[policy.step])

    directory.mkdir(exist_ok=True)
    stage = StageRun("sft", config, directory, seed=1, validate=validate, rank=dist.get_rank())
    try:
        sft.run(stage)
    except KeyboardInterrupt:
        pass
    hashes = {step: checkpoint.read_info(directory / f"step_{step}")["weights_hash"] for step in checkpoint.steps(directory)}
    lines = MetricsLog(directory / "metrics.jsonl").read()
    log = [{k: v for k, v in line.items() if k.startswith(("train/", "validation/"))} for line in lines]
    found = Validations(stage, config.sft, done=steps)
    return hashes, found.final_step if found.history else None, log


def test_a_stage_that_is_killed_decides_the_same_and_ends_with_the_same_weights(folder, tmp_path):  # noqa: F811
    loop = dict(val_period=2, val_patience=2)
    ((whole, final, log),) = run_distributed(trained, 1, tmp_path / "whole", folder, None, 10, loop)
    assert sorted(whole) == [4, 8] and final == 4 and len(log) == 8
    for killed_at in (6, 8):
        run_distributed(trained, 1, tmp_path / "killed", folder, killed_at, 10, loop)
    ((again, final_again, log_again),) = run_distributed(trained, 1, tmp_path / "killed", folder, None, 10, loop)
    assert (again, final_again, log_again) == (whole, final, log)
    # It stopped, so no step is left that could be killed.
    ((once_more, _, _),) = run_distributed(trained, 1, tmp_path / "killed", folder, 10, 10, loop)
    assert once_more == whole


def test_validation_changes_nothing_in_what_is_trained(folder, tmp_path):  # noqa: F811
    ((plain, _, _),) = run_distributed(trained, 1, tmp_path / "plain", folder, None, 4, {})
    ((seen, _, _),) = run_distributed(trained, 1, tmp_path / "seen", folder, None, 4, {"val_period": 2})
    assert seen[4] == plain[4]
