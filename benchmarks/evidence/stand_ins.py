"""What stages of evidence.yaml do that no stage of a real cascade should, put in place of the product's parts while they run.

- `preferred` earns by comparisons instead of by its verifiers: a simulated judge (`PreferenceRewards`).
- stages whose name begins with d_fp4 sample with other weights than they train: rounded to FP4 (`RoundedSampler`).

Everything else, and all validation, is the product as it is.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import torch

from nemo_cascade.algorithms import comparison_pairs
from nemo_cascade.algorithms.genrm import base_rewards
from nemo_cascade.rollout.types import Group, Rollout
from nemo_cascade.stages import rl
from nemo_cascade.stages.context import StageRun
from nemo_cascade.stages.rewards import Rewards
from nemo_cascade.stages.sampler import Sampler

PREFERRED, ROUNDED = "preferred", "d_fp4"
# How often the judge prefers the right one of a right and a wrong reply: `tiny`'s own judge agreed with 0.88 of preferences.
AGREEMENT = 0.88
# The sizes of E2M1 numbers, and how many weights share a scale, as FP4 inference has it. FP8 (E4M3) is too close here: of `tiny`'s
# tokens not one in a thousand then leaves the band of MOPD.
FP4, BLOCK = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]), 16


def run(stage: StageRun) -> None:
    """The RL loop of a stage, with what its name asks for."""
    with ExitStack() as stack:
        if stage.name == PREFERRED:
            # rl.run knows both by these names; the validation inside it has its own.
            stack.enter_context(patch.object(rl, "make_rewards", partial(preference_rewards, seed=stage.seed)))
        if stage.name.startswith(ROUNDED):
            stack.enter_context(patch.object(rl, "Sampler", RoundedSampler))
        rl.run(stage)


# -------------------------------------------------------------------------------- comparisons instead of verdicts


class PreferenceRewards(Rewards):
    """Rewards from comparisons of all pairs of a group by a judge that knows the verdicts and is wrong now and then.

    Of a right and a wrong reply it prefers the right one with AGREEMENT; between replies that are alike a coin decides, and
    it says so by a smaller lead. The noise depends on (seed, prompt, both replies) alone, so that ranks and resumed runs
    agree. Comparisons become rewards as in `genrm_rewards`, without length terms, scaled to the [0, 1] of verifiers: a
    scale is nothing to group-normalised advantages.
    """

    def __init__(self, *args, seed: int, strategy: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.seed, self.strategy = seed, strategy

    def fill(self, groups: list[Group]) -> None:
        super().fill(groups)
        for group in groups:
            for rollout, reward in zip(group.rollouts, self._rewards(group.rollouts)):
                rollout.info["verdict"], rollout.reward = rollout.reward, reward

    def _rewards(self, rollouts: list[Rollout]) -> list[float]:
        pairs = comparison_pairs(len(rollouts), self.strategy)
        said = [self.compare(rollouts[i], rollouts[j]) for i, j in pairs]
        scores, rankings = (torch.tensor(part) for part in zip(*said))
        base = base_rewards(torch.tensor(pairs), scores, rankings, len(rollouts))
        # A decided comparison gives 4 and 2, an undecided one 3 and a half point either way.
        return ((base - 2) / 2).tolist()

    def compare(self, first: Rollout, second: Rollout) -> tuple[tuple[int, int], int]:
        """((score of the first, of the second), ranking), as a generative judge answers."""
        chance = uniform(self.seed, first.prompt_id, *((reply.sample, reply.response) for reply in (first, second)))
        if first.reward == second.reward:
            return (3, 3), 3 if chance < 0.5 else 4
        prefers_first = (first.reward > second.reward) == (chance < AGREEMENT)
        return ((4, 2), 1) if prefers_first else ((2, 4), 6)


def preference_rewards(stage: StageRun, policy, engine, alone: bool, *, seed: int) -> PreferenceRewards:
    """In the place of `stages.judge.make_rewards`."""
    config = stage.config
    return PreferenceRewards(
        policy.tokenizer,
        alone=alone,
        overlong=config.grpo.overlong_mode,
        env=config.env,
        seed=seed,
        strategy=config.genrm.comparison_strategy,
    )


def uniform(*what: object) -> float:
    """A number in [0, 1) that depends on what is named, and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


# -------------------------------------------------------------------------------- another engine than the one that trains


class RoundedSampler(Sampler):
    """Draws its rollouts with the policy's weights rounded as an FP4 engine would hold them. Training sees them as they are."""

    def groups(self, *args, **kwargs) -> list[Group]:
        with rounded(self.policy.model):
            return super().groups(*args, **kwargs)


@contextmanager
def rounded(model: torch.nn.Module) -> Iterator[None]:
    """The matrices of a model's layers in FP4; afterwards bit for bit what they were.

    Router, embedding and head are left alone, as such engines leave them.
    """
    kept = {parameter: parameter.detach().clone() for parameter in matrices(model)}
    try:
        with torch.no_grad():
            for parameter, value in kept.items():
                parameter.copy_(to_fp4(value))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept.items():
                parameter.copy_(value)


def matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights of linear layers that are rounded."""
    spared = ("router", "embedding", "output_layer", "conv1d")
    named = dict(model.named_parameters()).items()
    return [weights for name, weights in named if weights.dim() >= 2 and not any(part in name for part in spared)]


def to_fp4(weights: torch.Tensor) -> torch.Tensor:
    """The nearest FP4 numbers, of blocks along each row that are scaled so that their largest weight is the largest number.

    Rows that no block divides are a block each. Scales are left in float32.
    """
    size = BLOCK if weights.shape[-1] % BLOCK == 0 else weights.shape[-1]
    blocks = weights.reshape(-1, size)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / FP4[-1]
    nearest = torch.bucketize((blocks / scale).abs(), (FP4[1:] + FP4[:-1]) / 2)
    return (FP4[nearest] * scale * blocks.sign()).reshape(weights.shape)
