"""Advantage estimators of rewards by name, `grpo.adv_estimator.name`: our own, and those of other packages.

A third party registers a function under the entry-point group `nemo_cascade.estimators`. Left out: `opd`, whose advantages are not of rewards.
"""

from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from nemo_cascade.stages.config import GRPOConfig

if TYPE_CHECKING:
    import torch

    # (rewards [prompts, group], which of them are rewards at all [prompts, group] bool, the stage's grpo block) -> [prompts, group];
    # 0 where there is no reward. Every token of a reply has its advantage.
    Estimator = Callable[[torch.Tensor, torch.Tensor, GRPOConfig], torch.Tensor]

GROUP = "nemo_cascade.estimators"


def names() -> list[str]:
    """Of all that a stage may have: `grpo`, and what other packages bring."""
    return ["grpo", *sorted(set(_third_party()) - {"grpo", "opd"})]


def get(name: str) -> "Estimator":
    """The estimator of that name. Raises KeyError with the known ones."""
    if name == "grpo":
        return group_normalised
    if name not in names():
        raise KeyError(f"no advantage estimator {name!r} is registered; known are {', '.join(names())}")
    return _third_party()[name].load()


def group_normalised(rewards_PG: "torch.Tensor", valid_PG: "torch.Tensor", config: GRPOConfig) -> "torch.Tensor":
    """GRPO's, as `grpo.normalize_rewards` and `grpo.use_leave_one_out_baseline` say; see `algorithms.group_advantages`."""
    from nemo_cascade.algorithms import group_advantages

    how = dict(normalize=config.normalize_rewards, leave_one_out=config.use_leave_one_out_baseline)
    return group_advantages(rewards_PG, valid_PG, **how)


@cache
def _third_party() -> dict:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
