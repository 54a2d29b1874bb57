"""Partial rollouts: a reply goes on at the next step with its weights, none is lost or trained on twice, and a stopped stage ends alike."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_cascade.data.demo import write
from nemo_cascade.data.rows import DataError
from nemo_cascade.engine.config import OptimizerConfig, PolicyConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.stages.config import CheckpointingConfig, DataConfig, DatasetConfig, GRPOConfig, LossConfig, PartialRolloutsConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from nemo_cascade.stages.partial import UNFINISHED
from tests.helpers import run_distributed

STEPS, GROUP, WANTED, FLYING = 4, 4, 2, 5
# Tokens of a round, and of the longest reply.
ROUND, LONGEST = 4, 24
# So many of the 1024 ids end a reply that untrained weights end it after some 20 tokens.
STOPS = tuple(range(50))


def config_of(data: Path) -> LoopConfig:
    policy = PolicyConfig(model_name="micro", generation=GenerationConfig(max_new_tokens=LONGEST, max_batch_size=8))
    policy.megatron_cfg.optimizer = OptimizerConfig(lr=3e-3)
    partial = PartialRolloutsConfig(enabled=True, max_new_tokens_per_round=ROUND, num_prompts_in_flight=FLYING)
    shape = dict(max_num_steps=STEPS, num_prompts_per_step=WANTED, num_generations_per_prompt=GROUP)
    return LoopConfig(
        policy=policy,
        grpo=GRPOConfig(**shape, overlong="keep", partial_rollouts=partial),
        loss_fn=LossConfig(use_importance_sampling_correction=True),
        checkpointing=CheckpointingConfig(save_period=1, keep_top_k=0),
        data=DataConfig(train={"math": DatasetConfig(str(data / "math" / "train.jsonl"))}),
    )


def trained(data: Path, directory: Path) -> tuple[list[dict], str]:
    """A stage's metrics and the hash of its weights at its end; of what is left of it to run, where some of it is there."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.checkpoint import read_info
    from nemo_cascade.stages import partial, rl
    from nemo_cascade.stages.rewards import Rewards

    config = config_of(data)
    parallel.init(config.policy.megatron_cfg)
    params = partial.sampling_params

    def fill(self, groups):
        for group in groups:
            for rollout in group.rollouts:
                rollout.reward = float(sum(rollout.response) % 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rewards, "fill", fill)
        patch.setattr(partial, "sampling_params", lambda *asked: replace(params(*asked), stop_ids=STOPS))
        rl.run(StageRun(name="rl", config=config, dir=directory, seed=1))
    return MetricsLog(directory / "metrics.jsonl").read(), read_info(directory / f"step_{STEPS}")["weights_hash"]


def stored(directory: Path, name: str) -> list:
    return RolloutStore(directory / "rollouts").load(name)


def said_by(data: Path, directory: Path) -> list[list[list[float]]]:
    """Of each checkpoint, the first weights included, the log-probs that it gives to the tokens of all trained replies."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.rl import rollout_sample

    config = config_of(data).policy
    parallel.init(config.megatron_cfg)
    policy, found = Policy(config, seed=1), []
    replies = [r for step in range(1, STEPS + 1) for group in stored(directory, f"{step}") for r in group.rollouts]
    for checkpoint in range(STEPS):
        if checkpoint:
            policy.load(directory / f"step_{checkpoint}" / "policy", optimizer=False)
        rows = policy.logprobs([rollout_sample(r, True) for r in replies])
        found.append([row[len(r.prompt) :] for row, r in zip(rows, replies)])
    return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partial")
    write(folder / "data", train_rows=32, validation_rows=4, sft_rows=8)
    ((metrics, weights),) = run_distributed(trained, 1, folder / "data", folder / "run")
    return folder, metrics, weights


def test_every_token_has_the_log_prob_of_the_weights_that_it_was_drawn_with_which_change_between_rounds_alone(stage):
    folder, *_ = stage
    (of,) = run_distributed(said_by, 1, folder / "data", folder / "run")
    trained_at = [(step, r) for step in range(1, STEPS + 1) for group in stored(folder / "run", f"{step}") for r in group.rollouts]
    several = 0
    for number, (step, reply) in enumerate(trained_at):
        versions = []
        for place, drawn in enumerate(reply.logprobs):
            near = [c for c in range(STEPS) if abs(of[c][number][place] - drawn) < 1e-5]
            allowed = [c for c in near if reply.info["begun"] - 1 <= c < step and (not versions or c >= versions[-1])]
            assert allowed, f"reply {number}, token {place}: {[row[number][place] for row in of]}, drawn with {drawn}"
            versions.append(allowed[0])
        assert all(one == other or place % ROUND == 0 for place, (one, other) in enumerate(zip(versions, versions[1:]), 1))
        several += len(set(versions)) > 1
    assert several > 5


def test_a_prompt_is_trained_on_once_or_still_waits_and_batches_are_full(stage):
    folder, metrics, _ = stage
    batches = [stored(folder / "run", f"{step}") for step in range(1, STEPS + 1)]
    left = stored(folder / "run", f"{STEPS}_waiting")
    ids = [group.rollouts[0].prompt_id for batch in [*batches, left] for group in batch]
    assert len(ids) == len(set(ids)) and all(len(batch) == WANTED for batch in batches)
    replies = [r for batch in batches for group in batch for r in group.rollouts]
    assert {r.finish_reason for r in replies} == {"stop", "length"}
    for r in replies:
        assert len(r.response) == len(r.logprobs) <= LONGEST and not set(r.response[:-1]) & set(STOPS)
        assert (r.response[-1] in STOPS) == (r.finish_reason == "stop") and (r.finish_reason == "stop" or len(r.response) == LONGEST)
    waiting = [r for group in left for r in group.rollouts if r.finish_reason == UNFINISHED]
    assert metrics[-1]["train/replies_waiting"] == len(waiting) > 0
    assert metrics[0]["train/begun_steps_ago"] == 0 and max(line["train/begun_steps_ago"] for line in metrics) > 0.5


@pytest.mark.parametrize("kept", [1, 3])
def test_a_stage_that_stopped_ends_with_the_same_weights_sampled_again_or_replayed(stage, tmp_path, kept):
    folder, _, weights = stage
    for replayed in (0, 1):
        run = tmp_path / f"{replayed}"
        shutil.copytree(folder / "run", run)
        for step in range(kept + 1, STEPS + 1):
            shutil.rmtree(run / f"step_{step}")
            if step > kept + replayed:
                (run / "rollouts" / f"step_{step}.jsonl").unlink()
        ((_, again),) = run_distributed(trained, 1, folder / "data", run)
        assert again == weights


def test_a_stage_that_lost_what_was_waiting_is_told(stage, tmp_path):
    folder, *_ = stage
    shutil.copytree(folder / "run", tmp_path / "run")
    for step in range(3, STEPS + 1):
        shutil.rmtree(tmp_path / "run" / f"step_{step}")
    lost = tmp_path / "run" / "rollouts" / "step_2_waiting.jsonl"
    lost.write_text(lost.read_text()[:-20])
    with pytest.raises(AssertionError, match=f"{DataError.__name__}: .*step_2_waiting.jsonl: no whole file of the replies that go on"):
        run_distributed(trained, 1, folder / "data", tmp_path / "run")
