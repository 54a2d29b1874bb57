"""The evidence's stand-ins do what its page says, and its config keeps arms equal in what they may spend."""

import math
import sys
from pathlib import Path

import pytest
import torch

from nemo_cascade.cascade.compose import compose_config
from nemo_cascade.cascade.config import load_config
from nemo_cascade.rollout.types import Rollout
from nemo_cascade.stages import validations

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from evidence import curves, record, report, stand_ins  # noqa: E402 - scripts, not a package


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.router = torch.nn.Linear(64, 32), torch.nn.Linear(64, 4)


def test_weights_are_rounded_while_sampling_and_afterwards_bit_for_bit_what_they_were():
    model = Layers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), stand_ins.rounded(model):
        off = {name: bool((value != before[name]).any()) for name, value in model.state_dict().items()}
        raise KeyboardInterrupt
    assert off == {"linear.weight": True, "linear.bias": False, "router.weight": False, "router.bias": False}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fp4_has_eight_sizes_a_block_and_is_the_nearest():
    weights = torch.randn(8, 64)
    rounded = stand_ins.to_fp4(weights)
    for before, after in zip(weights.reshape(-1, stand_ins.BLOCK), rounded.reshape(-1, stand_ins.BLOCK)):
        sizes = stand_ins.FP4 * before.abs().max() / 6
        nearest = (before.abs()[:, None] - sizes).abs().min(dim=1).values
        assert torch.allclose((after - before).abs(), nearest, atol=1e-6)
        assert torch.allclose((after.abs()[:, None] - sizes).abs().min(dim=1).values, torch.zeros(len(after)), atol=1e-6)
    assert torch.equal(stand_ins.to_fp4(torch.zeros(2, 5)), torch.zeros(2, 5))
    assert torch.equal(stand_ins.to_fp4(rounded), rounded), "what is FP4 stays what it is"


def reply(sample: int, reward: float, prompt: str = "0" * 16) -> Rollout:
    return Rollout(prompt, sample, [1], [sample], [0.0], "stop", reward)


def judge() -> stand_ins.PreferenceRewards:
    return stand_ins.PreferenceRewards(None, seed=1, strategy="all_pairs")


def test_the_judge_prefers_the_right_reply_as_often_as_it_is_said_to_wherever_it_stands():
    for rewards, share in (((1.0, 0.0), stand_ins.AGREEMENT), ((0.0, 1.0), 1 - stand_ins.AGREEMENT), ((1.0, 1.0), 0.5)):
        said = [judge().compare(reply(0, rewards[0], f"{n:016x}"), reply(1, rewards[1], f"{n:016x}")) for n in range(2000)]
        first = sum(scores[0] > scores[1] or ranking == 3 for scores, ranking in said) / len(said)
        assert first == pytest.approx(share, abs=0.035)
        assert all((scores[0] == scores[1]) == (rewards[0] == rewards[1]) for scores, _ in said)


def test_comparisons_become_rewards_between_0_and_1_that_favour_right_replies_and_are_the_same_again():
    groups = [[reply(i, float(i % 2), f"{n:016x}") for i in range(8)] for n in range(100)]
    rewards = [judge()._rewards(group) for group in groups]
    assert all(0 <= value <= 1 for group in rewards for value in group)
    right, wrong = ([value for group in rewards for value in group[start::2]] for start in (1, 0))
    # Of its seven comparisons a right reply has four with wrong ones, which give 3 + 0.76 on average.
    assert sum(right) / 400 - sum(wrong) / 400 == pytest.approx(4 / 7 * (2 * stand_ins.AGREEMENT - 1), abs=0.03)
    assert rewards == [judge()._rewards(group) for group in groups]


@pytest.fixture(scope="module")
def stages():
    folder = Path(stand_ins.__file__).parent
    return load_config(compose_config("evidence", directory=folder)).stages


def rollouts(stage) -> int:
    return math.prod((stage.grpo.max_num_steps, stage.grpo.num_prompts_per_step, stage.grpo.num_generations_per_prompt))


def test_arms_that_are_compared_at_equal_rollouts_have_equal_rollouts(stages):
    arms = [*curves.ARMS.values(), tuple(curves.TEACHERS.values())]
    spent = {arm: sum(rollouts(stages[name]) for name in arm) for arm in arms}
    assert spent.pop(("mixed", "mixed_on")) == 2 * 15_360 and set(spent.values()) == {15_360}
    assert rollouts(stages["mixed"]) == rollouts(stages["mixed_on"]) == 15_360
    assert rollouts(stages["mopd_end"]) == rollouts(stages["grpo_end"])
    assert len({rollouts(stage) for name, stage in stages.items() if name.startswith("d_")}) == 1


def test_the_ablations_differ_in_what_they_are_named_for(stages):
    def loss(name: str) -> tuple:
        block = stages[name].loss_fn
        return block.use_importance_sampling_correction, block.truncated_importance_sampling_type, block.token_level_loss

    assert loss("d_single") == loss("d_groups") == loss("d_fp4_drop") == (True, "icepop", False)
    assert loss("d_token") == (True, "icepop", True) and loss("d_fp4_clamp") == (True, "tis", False)
    assert loss("d_fp4_none") == (False, None, False)


def test_network_and_sampling_are_those_of_tiny_and_every_stage_that_the_page_compares_is_there(stages):
    tiny = load_config(compose_config("tiny")).stages
    assert stages["mixed"].policy == tiny["math_rl"].policy
    compared = {name for part in report.COMPARED.values() for _, *both in part for name in both}
    assert compared - {report.TEACHERS} <= set(stages)
    assert {domain: teacher.stage for domain, teacher in stages["mopd"].teachers.items()} == curves.TEACHERS


def test_the_course_of_a_stage_is_read_where_its_loop_writes_it():
    assert record.HISTORY == validations.FILE
