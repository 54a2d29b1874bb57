"""What a policy gradient learns from: groups, and replies that were cut. Pure tensor functions."""

import torch

OVERLONG = ("reward_zero", "mask", "keep")


def informative_groups(rewards_PG: torch.Tensor, valid_PG: torch.Tensor | None = None) -> torch.Tensor:
    """rewards_PG [prompts, group] -> [prompts] bool: a prompt's rollouts did not all earn the same.

    valid_PG [prompts, group] bool: which rollouts have a reward at all; others are as if they were not there.
    [dynamic filtering, Nemotron-Cascade 2, section 4.2]
    """
    absent = torch.zeros_like(rewards_PG, dtype=torch.bool) if valid_PG is None else ~valid_PG
    most, least = (rewards_PG.masked_fill(absent, end) for end in (-torch.inf, torch.inf))
    return most.amax(dim=1) > least.amin(dim=1)


def swe_group_mask(
    rewards_PG: torch.Tensor, threshold: float = 0.5, valid_PG: torch.Tensor | None = None
) -> torch.Tensor:
    """rewards_PG [prompts, group] -> [prompts] bool: some rollout earned more than `threshold`.

    valid_PG as in `informative_groups`. Other groups hold no acceptable patch and are left out of the loss
    [agentless SWE RL, Nemotron-Cascade 2, section 4.8.1].
    """
    earned = rewards_PG > threshold
    return (earned if valid_PG is None else earned & valid_PG).any(dim=1)


def overlong(
    rewards: torch.Tensor, cut: torch.Tensor, mode: str, least: torch.Tensor | float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rewards, which replies are trained on) where some were cut at the length limit [Nemotron-Cascade 2, sections 4.2 to 4.7].

    Both of any shape; cut is bool; least, a number or of that shape, is the least that a reply can earn. "reward_zero": a cut reply
    earns 0, or the least where that is below 0, and is trained on: where rewards are negative, 0 would be a prize for never coming
    to an end. "mask": it keeps its reward, which counts in its group's baseline, and is left out of the loss, as by NeMo RL's
    overlong_filtering. "keep": nothing happens to it. Raises ValueError for another mode.
    """
    if mode not in OVERLONG:
        raise ValueError(f"overlong mode {mode!r} is not one of {', '.join(OVERLONG)}")
    nothing = torch.as_tensor(least, dtype=rewards.dtype).clamp(max=0.0)
    earned = torch.where(cut, nothing, rewards) if mode == "reward_zero" else rewards
    return earned, ~cut if mode == "mask" else torch.ones_like(cut)
