"""Losses over packed tokens: sums together with what to divide their global sum by. Pure tensor functions.

The division happens once, after the sum over all packs and ranks, so a mean is the same at every layout and packing.
"""

import torch


def importance_weights(
    train_logprobs: torch.Tensor, sampling_logprobs: torch.Tensor, mask: torch.Tensor, *, mode: str, low: float, high: float
) -> torch.Tensor:
    """Correction for sampling with another engine than the one trained: w_t from r_t = pi_train / pi_sampling.

    All [tokens] -> [tokens] without gradient. mode "none": 1. "tis": r_t clamped to [low, high]. "icepop": r_t inside
    [low, high], else 0, so that the token drops out [Nemotron-Cascade 2, section 4.4: 0.5 and 2.0]. 0 where mask is 0.
    """
    ratio = (train_logprobs - sampling_logprobs).detach().exp()
    if mode == "none":
        weights = torch.ones_like(ratio)
    elif mode == "tis":
        weights = ratio.clamp(low, high)
    elif mode == "icepop":
        weights = torch.where((ratio >= low) & (ratio <= high), ratio, torch.zeros_like(ratio))
    else:
        raise ValueError(f"importance weight mode {mode!r} is not one of none, tis, icepop")
    return torch.where(mask > 0, weights, torch.zeros_like(weights))


def policy_gradient_loss(
    logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    mask: torch.Tensor,
    segments: torch.Tensor,
    *,
    aggregate: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """-sum_t w_t A_t log pi(y_t|s_t), strictly on-policy REINFORCE (the ratio is 1, its gradient is that of log pi).

    All [tokens]; `segments` tells a token's response. Returns (sum, count): with aggregate "token" the count is the number of
    trained tokens [GRPO, Eq. 1]; with "sequence" each response is averaged over its own trained tokens and the count is
    the number of responses [MOPD, section 4.4: 1/|V(y)|].
    """
    return aggregated(-weights.detach() * advantages.detach() * logprobs, mask, segments, aggregate)


def aggregated(
    per_token: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor, aggregate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum, count) of a per-token loss [tokens] over trained tokens; what they mean is told at `policy_gradient_loss`."""
    per_token = per_token * mask
    if aggregate == "token":
        return per_token.sum(), mask.sum()
    if aggregate == "sequence":
        tokens_of_response = response_lengths(mask, segments)
        return (per_token / tokens_of_response.clamp(min=1)).sum(), count_responses(mask, segments)
    raise ValueError(f"loss aggregation {aggregate!r} is not one of token, sequence")


def kl_penalty(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, kind: str) -> torch.Tensor:
    """Estimate of KL(policy || reference) on each sampled token, [tokens] -> [tokens], with gradient in `logprobs`.

    With r = log pi_ref - log pi: "k1" -r, "k2" r^2 / 2, "k3" exp(r) - 1 - r [Schulman 2020, "Approximating KL divergence"]. As
    losses on the policy's own samples they differ: k2 has the gradient of KL(policy || reference), k3 that of
    KL(reference || policy), and k1 that of log pi, whose mean is 0 whatever the reference. Raises ValueError for another kind.
    """
    ratio = reference_logprobs.detach() - logprobs
    if kind == "k1":
        return -ratio
    if kind == "k2":
        return ratio.square() / 2
    if kind == "k3":
        return ratio.exp() - 1 - ratio
    raise ValueError(f"KL estimator {kind!r} is not one of k1, k2, k3")


def response_lengths(mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """[tokens]: the number of trained tokens in each token's own response (0 on padding, where segments is -1)."""
    _, index = segments.unique(return_inverse=True)
    totals = torch.zeros(int(index.max()) + 1, dtype=mask.dtype, device=mask.device).index_add_(0, index, mask)
    return torch.where(segments >= 0, totals[index], torch.zeros_like(mask))


def count_responses(mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Number of responses with at least one trained token, a scalar of mask's type."""
    return torch.as_tensor(segments[mask > 0].unique().numel(), dtype=mask.dtype, device=mask.device)


def negative_log_likelihood(logprobs: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SFT: (-sum of log-probs over trained tokens, their number); logprobs and mask are [tokens]."""
    return -(logprobs * mask).sum(), mask.sum()
