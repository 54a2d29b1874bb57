"""A stage with router replay trains through what its rollouts report, keeps it on disk, and refuses rollouts without it."""

import shutil

import pytest
import torch

from nemo_cascade.data.demo import write
from nemo_cascade.data.rows import DataError
from nemo_cascade.engine.config import OptimizerConfig, PolicyConfig, RouterReplayConfig
from nemo_cascade.models.presets import get_preset
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.rollout.types import Group, Rollout, SamplingParams
from nemo_cascade.stages.config import CheckpointingConfig, DataConfig, DatasetConfig, GRPOConfig, LossConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from nemo_cascade.stages.usable import refuse_unusable_experts
from tests.helpers import run_distributed


def rollout(experts=None) -> Rollout:
    return Rollout("ab" * 32, 1, [10, 3], [5, 6, 11], [-0.5] * 3, "stop", 1.0, experts=experts)


def test_experts_come_back_from_disk_bit_for_bit(tmp_path):
    store = RolloutStore(tmp_path)
    for kind in (torch.uint8, torch.int16):
        experts = torch.randint(0, 256 if kind == torch.uint8 else 512, (4, 2, 3)).to(kind)
        store.save("1", [Group({}, "math", [rollout(experts), rollout()])])
        with_them, without = store.load("1")[0].rollouts
        assert with_them.experts.dtype == kind and torch.equal(with_them.experts, experts) and without.experts is None


def test_rollouts_without_experts_or_with_those_of_another_network_are_named():
    preset = get_preset("micro")
    sound = torch.zeros(4, 2, 2, dtype=torch.uint8)
    refuse_unusable_experts([Group({}, "math", [rollout(sound)])], preset, "here")
    named = r"^stage if_rl, step 7, prompt (ab)+ of math, reply 1: "
    for experts, what in (
        (None, "it has no experts to replay.*policy.router_replay.enabled=false"),
        (sound[:3], r"its experts \(3, 2, 2\), 0 to 0, are not the \(4, 2, 2\) of 8 that policy.model_name=micro has"),
        (sound + 8, r"its experts \(4, 2, 2\), 8 to 8, are not the \(4, 2, 2\) of 8"),
    ):
        with pytest.raises(DataError, match=named + what):
            refuse_unusable_experts([Group({}, "math", [rollout(sound), rollout(experts)])], preset, "stage if_rl, step 7")


def two_steps(data, directory, enabled):
    """Metrics of two steps of an RL stage that is held to its start, or of what is left of them to run."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages import rl
    from nemo_cascade.stages.rollouts import make_engine

    policy = PolicyConfig(
        model_name="micro", generation=GenerationConfig(max_new_tokens=24), router_replay=RouterReplayConfig(enabled=enabled)
    )
    policy.megatron_cfg.optimizer = OptimizerConfig(lr=1e-2)
    config = LoopConfig(
        policy=policy,
        grpo=GRPOConfig(max_num_steps=2, num_prompts_per_step=2, num_generations_per_prompt=4),
        loss_fn=LossConfig(reference_policy_kl_penalty=0.1),
        checkpointing=CheckpointingConfig(save_period=1, keep_top_k=0),
        data=DataConfig(train={"math": DatasetConfig(str(data / "math" / "train.jsonl"))}),
    )
    parallel.init(policy.megatron_cfg)
    parent = directory / "parent" / "step_0"
    if not directory.exists():
        Policy(policy, seed=1).save(parent / "policy", optimizer=False)
    stage = StageRun(name="rl", config=config, dir=directory, seed=1, parent=parent)
    rl.run(stage)
    if not enabled:
        engine = make_engine(Policy(policy, seed=1))
        with pytest.raises(ValueError, match="policy.router_replay.enabled=true"):
            engine.add([], SamplingParams(report_experts=True))
    return MetricsLog(directory / "metrics.jsonl").read()


@pytest.mark.slow
def test_a_stage_trains_through_what_it_sampled_and_resumes_with_the_same(tmp_path):
    write(tmp_path / "data", train_rows=8, validation_rows=4, sft_rows=8)
    lines = {}
    for enabled in (True, False):
        (lines[enabled],) = run_distributed(two_steps, 1, tmp_path / "data", tmp_path / f"{enabled}", enabled)
    changed = [line["train/router_replay_changed"] for line in lines[True]]
    assert all(0 <= share < 0.01 for share in changed) and "train/router_replay_changed" not in lines[False][0]
    stored = RolloutStore(tmp_path / "True" / "rollouts").load("2")[0].rollouts[0]
    assert stored.experts.shape == (len(stored.prompt) + len(stored.response) - 1, 2, 2)
    assert RolloutStore(tmp_path / "False" / "rollouts").load("2")[0].rollouts[0].experts is None
    shutil.rmtree(tmp_path / "True" / "step_2")
    (again,) = run_distributed(two_steps, 1, tmp_path / "data", tmp_path / "True", True)
    numbers = [name for name in again[1] if name.startswith("train/")]
    assert [again[1][name] for name in numbers] == [lines[True][1][name] for name in numbers]
    # The engine decodes with the very weights, so that a step is what it would be without.
    for with_replay, without in zip(lines[True], lines[False]):
        assert with_replay["train/loss"] == pytest.approx(without["train/loss"], abs=1e-5)
