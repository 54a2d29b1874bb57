"""Which groups a policy gradient can learn from. Pure tensor functions over rewards_PG [prompts, group]."""

import torch


def informative_groups(rewards_PG: torch.Tensor) -> torch.Tensor:
    """[prompts] bool: a prompt's rollouts did not all earn the same [dynamic filtering, Nemotron-Cascade 2, section 4.2]."""
    return (rewards_PG != rewards_PG[:, :1]).any(dim=1)


def swe_group_mask(rewards_PG: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """[prompts] bool: some rollout earned more than `threshold`.

    Other groups hold no acceptable patch and are left out of the loss [agentless SWE RL, Nemotron-Cascade 2, section 4.8.1].
    """
    return (rewards_PG > threshold).any(dim=1)
