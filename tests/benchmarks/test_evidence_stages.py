"""In a real RL stage the evidence's stand-ins act where their name asks for them, and nowhere else."""

import json
import sys
from pathlib import Path

import pytest

from nemo_cascade.engine.config import PolicyConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.store import RolloutStore
from nemo_cascade.stages.config import DataConfig, DatasetConfig, GRPOConfig
from nemo_cascade.stages.context import LoopConfig, StageRun
from nemo_cascade.stages.metrics import MetricsLog
from tests.cascade.test_resume import row
from tests.helpers import run_distributed

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


def a_step_of(name: str, folder: Path) -> tuple[float, list[tuple[float, float | None]]]:
    """(mean of exp |log ratio|, each reply's reward and the verdict that stands beside it) of a step of a stage of this name."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.stages import rl, sampler

    sys.path.append(BENCHMARKS)
    from evidence import stand_ins

    policy = PolicyConfig(model_name="micro", generation=GenerationConfig(max_new_tokens=8))
    config = LoopConfig(
        policy=policy,
        grpo=GRPOConfig(max_num_steps=1, num_prompts_per_step=6, num_generations_per_prompt=4, overlong="keep"),
        data=DataConfig(train={"instruction_following": DatasetConfig(str(folder / "rows.jsonl"))}),
    )
    parallel.init(policy.megatron_cfg)
    stage = StageRun(name=name, config=config, dir=folder / name, seed=1)
    stage.dir.mkdir()
    stand_ins.run(stage)
    assert rl.Sampler is sampler.Sampler and rl.make_rewards.__name__ == "make_rewards", "as before"
    (metrics,) = MetricsLog(stage.dir / "metrics.jsonl").read()
    groups = RolloutStore(stage.dir / "rollouts").load("1")
    return metrics["train/token_mult_prob_error"], [
        (rollout.reward, rollout.info.get("verdict")) for group in groups for rollout in group.rollouts
    ]


@pytest.mark.slow
def test_a_stage_samples_rounded_or_earns_by_comparisons_only_where_its_name_says_so(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row(letter)) + "\n" for letter in "aeiornst"))
    found = {name: run_distributed(a_step_of, 1, name, tmp_path)[0] for name in ("mixed", "preferred", "d_fp4_drop")}
    for name in ("mixed", "preferred"):
        assert found[name][0] == pytest.approx(1.0, abs=1e-4)
    assert found["d_fp4_drop"][0] > 1.001
    for name in ("mixed", "d_fp4_drop"):
        assert {reward for reward, _ in found[name][1]} == {0.0, 1.0} and {verdict for _, verdict in found[name][1]} == {None}
    rewards, verdicts = zip(*found["preferred"][1])
    assert set(verdicts) == {0.0, 1.0} and all(0 <= reward <= 1 for reward in rewards) and len(set(rewards)) > 2
