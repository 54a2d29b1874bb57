"""With `grpo.async_grpo` a step's replies are drawn with the weights before the last update, and a resumed stage goes on bit for bit."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from nemo_cascade.data.demo import write
from nemo_cascade.engine.config import OptimizerConfig, PolicyConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.stages.config import AsyncGRPOConfig, CheckpointingConfig, DataConfig, DatasetConfig, GRPOConfig, LossConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from tests.helpers import run_distributed

STEPS = 4


def config_of(data: Path, val_period: int = 0) -> LoopConfig:
    policy = PolicyConfig(model_name="micro", generation=GenerationConfig(max_new_tokens=24, max_batch_size=8))
    policy.megatron_cfg.optimizer = OptimizerConfig(lr=3e-3)
    return LoopConfig(
        policy=policy,
        grpo=GRPOConfig(
            max_num_steps=STEPS,
            num_prompts_per_step=2,
            num_generations_per_prompt=4,
            overlong="keep",
            async_grpo=AsyncGRPOConfig(enabled=True),
            val_period=val_period,
        ),
        loss_fn=LossConfig(use_importance_sampling_correction=True),
        checkpointing=CheckpointingConfig(save_period=1, keep_top_k=0),
        data=DataConfig(train={"math": DatasetConfig(str(data / "math" / "train.jsonl"))}),
    )


class Beside:
    """The embedded engine over weights of its own, which it samples from while the policy's are trained."""

    beside = True

    def __init__(self, policy):
        from nemo_cascade.engine.policy import Policy
        from nemo_cascade.rollout.megatron import MegatronEngine

        self.model, self.threads = Policy(policy.config, seed=9).model, set()
        self.engine = MegatronEngine(self.model, vocab_size=policy.preset.vocab_size, max_batch_size=8)

    def sync(self, policy):
        self.model.load_state_dict(policy.model.state_dict())
        self.engine.sync(policy)

    def step(self):
        self.threads.add(threading.current_thread())
        time.sleep(0.02)  # longer in all than a training step
        return self.engine.step()

    def __getattr__(self, name):
        return getattr(self.engine, name)


def trained(data: Path, directory: Path, beside: bool = False, val_period: int = 0) -> dict:
    """A stage's metrics and the hash of its weights at its end; of what is left of it to run, where some of it is there.

    All replies earn by the parity of their length, since a network that has learned nothing earns nothing."""
    from nemo_cascade.engine import checkpoint, parallel
    from nemo_cascade.stages import rl
    from nemo_cascade.stages.rewards import Rewards

    config, made_before = config_of(data, val_period), len([*directory.glob("step_*")])
    parallel.init(config.policy.megatron_cfg)
    made, on_disk, begin = [], [], checkpoint.begin

    def saved(policy, directory, *args, **kwargs):
        on_disk.append(policy.step == STEPS or (directory / "rollouts" / f"step_{policy.step + 1}.jsonl").exists())
        return begin(policy, directory, *args, **kwargs)

    def engine(policy):
        made.append(Beside(policy))
        return made[0]

    def fill(self, groups):
        for group in groups:
            for rollout in group.rollouts:
                rollout.reward = float(sum(rollout.response) % 2)

    def validate(policy):
        assert not made[0].busy(), "the engine is still sampling"
        return {"math": {"mean": 0.5, "per_prompt": [0.5]}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rewards, "fill", fill)
        patch.setattr(checkpoint, "begin", saved)
        if beside:
            patch.setattr(rl, "make_engine", engine)
        rl.run(StageRun(name="rl", config=config, dir=directory, seed=1, validate=validate))
    assert all(on_disk) and len(on_disk) == STEPS - made_before
    threads = {thread is not threading.main_thread() for engine in made for thread in engine.threads}
    last = checkpoint.read_info(directory / f"step_{STEPS}")["weights_hash"]
    return {"metrics": MetricsLog(directory / "metrics.jsonl").read(), "weights": last, "in threads": threads}


def differences(data: Path, directory: Path) -> dict[tuple[int, int], float]:
    """(step of the rollouts, step of the checkpoint) -> the largest difference of a token's log-prob, as sampled and by the checkpoint."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.rl import rollout_sample

    config = config_of(data).policy
    parallel.init(config.megatron_cfg)
    policy, found = Policy(config, seed=1), {}
    for checkpoint in range(STEPS):
        if checkpoint:
            policy.load(directory / f"step_{checkpoint}" / "policy", optimizer=False)
        for step in range(1, STEPS + 1):
            rollouts = [r for group in RolloutStore(directory / "rollouts").load(f"{step}") for r in group.rollouts]
            pairs = zip(policy.logprobs([rollout_sample(r, True) for r in rollouts]), rollouts)
            found[step, checkpoint] = max(abs(a - b) for row, r in pairs for a, b in zip(row[len(r.prompt) :], r.logprobs))
    return found


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("async")
    write(folder / "data", train_rows=16, validation_rows=4, sft_rows=8)
    (found,) = run_distributed(trained, 1, folder / "data", folder / "run")
    return folder, found


def test_replies_are_those_of_the_weights_before_the_last_update(stage):
    folder, found = stage
    (of,) = run_distributed(differences, 1, folder / "data", folder / "run")
    for step in range(1, STEPS + 1):
        drawn_with = max(step - 2, 0)
        assert of[step, drawn_with] < 1e-5
        assert all(of[step, other] > 1e-4 for other in range(STEPS) if other != drawn_with)
    ratios = [line["train/token_mult_prob_error"] for line in found["metrics"]]
    assert ratios[0] == pytest.approx(1, abs=1e-5) and all(ratio > 1 + 1e-4 for ratio in ratios[1:])


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_stage_that_stopped_anywhere_ends_with_the_same_weights(stage, tmp_path, kept):
    folder, found = stage
    shutil.copytree(folder / "run", tmp_path / "run")
    for step in range(kept + 1, STEPS + 1):
        shutil.rmtree(tmp_path / "run" / f"step_{step}")
        if step > kept + 1:  # what is drawn ahead of a checkpoint is on disk before it
            (tmp_path / "run" / "rollouts" / f"step_{step}.jsonl").unlink()
    (again,) = run_distributed(trained, 1, folder / "data", tmp_path / "run")
    assert again["weights"] == found["weights"]


def test_an_engine_beside_the_trainer_samples_the_same_while_it_trains(stage, tmp_path):
    folder, found = stage
    (beside,) = run_distributed(trained, 1, folder / "data", tmp_path / "run", True)
    assert beside["weights"] == found["weights"] and beside["in threads"] == {True}


def test_prompts_that_are_drawn_ahead_come_once(stage):
    folder, _ = stage
    drawn = [group.rollouts[0].prompt_id for step in range(1, 5) for group in RolloutStore(folder / "run" / "rollouts").load(f"{step}")]
    assert len(drawn) == len(set(drawn)) == 8
    assert not (folder / "run" / "rollouts" / "step_5.jsonl").exists(), "nothing is drawn for a step that there is not"


def test_a_validation_waits_for_what_is_being_drawn(stage, tmp_path):
    folder, found = stage
    (again,) = run_distributed(trained, 1, folder / "data", tmp_path / "run", True, 2)
    assert again["weights"] == found["weights"]
    assert [line.get("validation/math/reward") for line in again["metrics"]] == [None, 0.5, None, 0.5]
