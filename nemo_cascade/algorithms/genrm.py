"""Rewards of a group from pairwise comparisons by a generative judge. Pure tensor functions over one group of G replies.

Nemotron-Cascade 2, section 4.5, which takes the aggregation of Nemotron 3 Nano, section 3.3; what the papers leave open is
decided as NeMo Gym's `genrm_compare` server does. Its defaults for every coefficient are 0.
"""

import itertools

import torch


def comparison_pairs(group: int, strategy: str) -> list[tuple[int, int]]:
    """Which replies are shown to the judge together: "all_pairs" (i < j), or "circular" (each with the next, G in all).

    Raises ValueError for another strategy, and for a group of one.
    """
    if group < 2:
        raise ValueError("a single reply cannot be compared; set grpo.num_generations_per_prompt to 2 or more")
    if strategy == "all_pairs":
        return list(itertools.combinations(range(group), 2))
    if strategy == "circular":
        return [(i, (i + 1) % group) for i in range(group)]
    raise ValueError(f"comparison_strategy is all_pairs or circular, not {strategy!r}")


def base_rewards(pairs: torch.Tensor, scores: torch.Tensor, rankings: torch.Tensor, group: int) -> torch.Tensor:
    """[G]: the mean of a reply's scores over all its comparisons.

    pairs [M, 2] indices, scores [M, 2] from 1 to 5, rankings [M] from 1 (the first is much better) to 6. At equal scores
    the ranking decides: 3.5 - ranking is added to the first and taken from the second.
    """
    scores = scores.double()
    decided = torch.where(scores[:, 0] == scores[:, 1], 3.5 - rankings.double(), 0.0)
    scores = scores + torch.stack([decided, -decided], dim=1)
    total = torch.zeros(group, dtype=torch.float64).index_add(0, pairs.flatten(), scores.flatten())
    return total / torch.bincount(pairs.flatten(), minlength=group)


def length_term(lengths: torch.Tensor) -> torch.Tensor:
    """[G]: 1 for the shortest down to 0 for the longest, less the group's mean; 0 where all are equally long."""
    lengths = lengths.double()
    span = lengths.max() - lengths.min()
    if span == 0:
        return torch.zeros_like(lengths)
    shortness = 1 - (lengths - lengths.min()) / span
    return shortness - shortness.mean()


def conciseness_bonus(base: torch.Tensor, lengths: torch.Tensor, top_percentile: float) -> torch.Tensor:
    """[G]: 1 for the shortest reply that is not empty, if its base reward is among the best `top_percentile` of the group.

    The bar is the reward at place max(0, int(G * top_percentile) - 1) from the top. Of equally short replies the first counts.
    """
    bar = base.sort(descending=True).values[max(0, int(len(base) * top_percentile) - 1)]
    bonus = torch.zeros_like(base)
    written = lengths > 0
    if written.any():
        shortest = int(lengths.double().masked_fill(~written, torch.inf).argmin())
        bonus[shortest] = float(base[shortest] >= bar)
    return bonus


def genrm_rewards(
    pairs: torch.Tensor,
    scores: torch.Tensor,
    rankings: torch.Tensor,
    reasoning_lengths: torch.Tensor,
    answer_lengths: torch.Tensor,
    *,
    reasoning_coeff: float = 0.5,
    answer_coeff: float = 0.5,
    reasoning_bonus: float = 0.5,
    answer_bonus: float = 0.5,
    top_percentile: float = 0.2,
) -> torch.Tensor:
    """[G] rewards in float64: base + coeff * length term + gated bonus, thoughts and answers apart.

    pairs, scores and rankings as in `base_rewards`; lengths [G] in characters of the stripped texts. The bonuses look at the
    base reward, before any length term.
    """
    rewards = base = base_rewards(pairs, scores, rankings, len(answer_lengths))
    for lengths, coeff, bonus in (
        (reasoning_lengths, reasoning_coeff, reasoning_bonus),
        (answer_lengths, answer_coeff, answer_bonus),
    ):
        rewards = rewards + coeff * length_term(lengths) + bonus * conciseness_bonus(base, lengths, top_percentile)
    return rewards
