"""Sampling settings and training: RL trains what it sampled from, SFT the plain distribution."""

import math

import pytest

from nemo_cascade.data.demo import write
from nemo_cascade.engine.config import OptimizerConfig, PolicyConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.stages.config import AdvantageEstimatorConfig, DataConfig, DatasetConfig, GRPOConfig, SFTConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from tests.helpers import run_distributed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write(folder, train_rows=8, validation_rows=4, sft_rows=8)
    return folder / "math"


def metrics_of(kind, data, directory, teacher, generation):
    """Runs two steps of a stage and reads its metrics."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.stages import rl, sft

    policy = PolicyConfig(model_name="micro", generation=generation)
    policy.megatron_cfg.optimizer = OptimizerConfig(lr=1e-2)
    config = LoopConfig(
        policy=policy,
        sft=SFTConfig(max_num_steps=2),
        grpo=GRPOConfig(max_num_steps=2, num_prompts_per_step=2, adv_estimator=AdvantageEstimatorConfig("opd")),
        data=DataConfig(train={"math": DatasetConfig(str(data / f"{'sft' if kind == 'sft' else 'train'}.jsonl"))}),
    )
    directory.mkdir()
    parallel.init(policy.megatron_cfg)
    stage = StageRun(name=kind, config=config, dir=directory, seed=1, teachers={"math": teacher})
    {"sft": sft, "rl": rl}[kind].run(stage)
    return MetricsLog(directory / "metrics.jsonl").read()


def test_rl_trains_the_distribution_it_samples_from_with_a_teacher_of_another_nucleus(data, tmp_path):
    generation = GenerationConfig(temperature=0.8, top_p=0.95, max_new_tokens=24)
    run_distributed(metrics_of, 1, "sft", data, tmp_path / "sft", None, generation)
    (lines,) = run_distributed(metrics_of, 1, "rl", data, tmp_path / "rl", tmp_path / "sft" / "step_2", generation)
    assert [line["train/token_mult_prob_error"] for line in lines] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert [line["train/sampling_importance_ratio"] for line in lines] == pytest.approx([1.0, 1.0], abs=1e-4)
    gaps = [line["train/teacher_student_logprob_gap_mean"] for line in lines]
    assert all(map(math.isfinite, gaps)) and 0.0 != gaps[0] != gaps[1], "learning nothing would hide errors"


def test_sft_trains_the_plain_distribution_whatever_the_sampling(data, tmp_path):
    losses = []
    for number, settings in enumerate(({}, dict(temperature=0.8, top_p=0.95))):
        generation = GenerationConfig(**settings)
        (lines,) = run_distributed(metrics_of, 1, "sft", data, tmp_path / f"{number}", None, generation)
        losses.append([line["train/loss"] for line in lines])
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]
