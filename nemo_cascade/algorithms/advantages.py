"""Advantages: how much better than expected each sampled token was. Pure tensor functions."""

from collections.abc import Mapping

import torch


def group_advantages(
    rewards_PG: torch.Tensor,
    valid_PG: torch.Tensor | None = None,
    *,
    normalize: bool = True,
    leave_one_out: bool = False,
    eps: float = 1e-6,
) -> torch.Tensor:
    """GRPO: A_i = (r_i - mean(r)) / std(r) over the G rollouts of a prompt [Nemotron-Cascade 2, Eq. 1].

    rewards_PG [prompts, group] -> [prompts, group]; every token of rollout i gets A_i. The standard deviation is the sample one
    (the paper does not say; NeMo RL uses it), plus eps. Groups of equal rewards get exactly 0. leave_one_out takes the
    mean of the other rollouts as the baseline. valid_PG [prompts, group] bool: which rollouts have a reward at all; the others get
    exactly 0, and their group's those that it has without them, all 0 where fewer than two are left. Raises ValueError for a
    group of one, which has no baseline.
    """
    if rewards_PG.shape[1] < 2:
        raise ValueError("a group of one rollout has no baseline; set grpo.num_generations_per_prompt to 2 or more")
    if valid_PG is not None and not valid_PG.all():
        advantages = torch.zeros_like(rewards_PG)
        for own, rewards, valid in zip(advantages, rewards_PG, valid_PG):
            if valid.sum() >= 2:
                own[valid] = group_advantages(rewards[None, valid], normalize=normalize, leave_one_out=leave_one_out, eps=eps)[0]
        return advantages
    group = rewards_PG.shape[1]
    mean = rewards_PG.mean(dim=1, keepdim=True)
    baseline = (mean * group - rewards_PG) / (group - 1) if leave_one_out else mean
    advantages = rewards_PG - baseline
    if normalize:
        advantages = advantages / (rewards_PG.std(dim=1, keepdim=True) + eps)
    # The mean of equal numbers may differ from them in the last bit, and eps would magnify that.
    uninformative = (rewards_PG == rewards_PG[:, :1]).all(dim=1, keepdim=True)
    return advantages.masked_fill(uninformative, 0.0)


def mopd_advantages(teacher_logprobs: torch.Tensor, train_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """MOPD: a_t = log pi_teacher(y_t|s_t) - log pi_train(y_t|s_t) on the sampled token, without gradient [section 4.4].

    All [tokens] -> [tokens]; 0 where mask is 0. Its mean under the student is minus the reverse KL(student || teacher).
    """
    return ((teacher_logprobs - train_logprobs).masked_fill(mask <= 0, 0.0) * mask).detach()


def domain_weights(amounts: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
    """What each token of a domain counts, so that the domains' shares of a batch's loss are `shares`, however long their replies.

    amounts: tokens, or replies where each reply is averaged by itself, of each domain in the batch; shares, of any sum, of all that
    there may be. w_d = (s_d / sum s) (sum n / n_d) over the domains that are there, so that the mean weight is 1. This is against long
    replies taking the whole budget of tokens [Open-MOPD, arXiv 2608.19098, finds it; the form is ours].
    """
    present = {domain: amount for domain, amount in amounts.items() if amount > 0}
    total, wanted = sum(present.values()), sum(shares[domain] for domain in present)
    return {domain: shares[domain] / wanted * total / amount for domain, amount in present.items()}
