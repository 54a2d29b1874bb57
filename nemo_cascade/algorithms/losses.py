"""Losses over packed tokens: sums together with what to divide their global sum by. Pure tensor functions.

The division happens once, after the sum over all packs and ranks, so a mean is the same at every layout and packing.
"""

import math

import torch


def importance_weights(
    train_logprobs: torch.Tensor,
    sampling_logprobs: torch.Tensor,
    mask: torch.Tensor,
    segments: torch.Tensor | None = None,
    *,
    mode: str,
    low: float = 0.0,
    high: float = math.inf,
    sequence_level: bool = False,
) -> torch.Tensor:
    """Correction for sampling with another engine than the one trained: w_t from r_t = pi_train / pi_sampling.

    All [tokens] -> [tokens] without gradient, 0 where mask is 0. mode "none": 1. "full": r_t. "tis": r_t clamped to [low, high].
    "icepop": r_t inside [low, high], else 0, so that the token drops out [Nemotron-Cascade 2, section 4.4: 0.5 and 2.0].
    "seq-mask-tis": r_t where the geometric mean of its whole response's ratios lies in [low, high], else 0 [NeMo RL; a band such
    as 0.999 to 1.002]. sequence_level: one r for a response, the product of its tokens' [NeMo RL's form for GSPO]. That mode, and
    sequence_level, need `segments`, which tell a token's response. A ratio too large for a number is 0, as NeMo RL has it.
    Raises ValueError for another mode, and without segments where they are needed.
    """
    if segments is None and (sequence_level or mode == "seq-mask-tis"):
        raise ValueError(f"importance weights of mode {mode!r} with sequence_level={sequence_level} are by response: give segments")
    # What masked tokens have may be infinite, and would stay so in a mean.
    log_ratio = (train_logprobs - sampling_logprobs).detach().masked_fill(mask <= 0, 0.0)
    ratio = (response_sums(log_ratio, mask, segments) if sequence_level else log_ratio).exp()
    ratio = ratio.masked_fill(ratio == torch.inf, 0.0)
    if mode == "none":
        weights = torch.ones_like(ratio)
    elif mode == "full":
        weights = ratio
    elif mode == "tis":
        weights = ratio.clamp(low, high)
    elif mode == "icepop":
        weights = ratio.masked_fill((ratio < low) | (ratio > high), 0.0)
    elif mode == "seq-mask-tis":
        mean = response_means(log_ratio, mask, segments).exp()
        weights = ratio.masked_fill((mean < low) | (mean > high), 0.0)
    else:
        raise ValueError(f"importance weight mode {mode!r} is not one of none, full, tis, icepop, seq-mask-tis")
    return weights.masked_fill(mask <= 0, 0.0)


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
    trained tokens [NeMo RL's token_level_loss]; with "sequence" each response is averaged over its own trained tokens and the
    count is the number of responses [MOPD, section 4.4: 1/|V(y)|]; "group" is the same of prompts, whose numbers `segments`
    then has and whose replies are all here [GRPO, Eq. 1, averaged over prompts; the paper does not say how these are].
    """
    return aggregated(-weights.detach() * advantages.detach() * logprobs, mask, segments, aggregate)


def clipped_policy_gradient_loss(
    logprobs: torch.Tensor,
    previous_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    mask: torch.Tensor,
    segments: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    cispo: bool = False,
    sequence_ratio: bool = False,
    aggregate: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy gradient for several updates on one batch, by the names of NeMo RL's ClippedPGLossFn; (sum, count) as above.

    previous_logprobs are those before the first of them. With r_t = exp(log pi - log pi_previous) and c_t = r_t clamped to
    [1 - clip_low, 1 + clip_high] the loss is max(-A r, -A c) [PPO, Eq. 7]; with dual_clip > 1 at most -A dual_clip where
    A < 0 [Ye et al. 2020, Eq. 5]; with cispo -A sg(c) log pi [MiniMax-M1, Eq. 4]. sequence_ratio: one r for a response, the
    geometric mean of its tokens' [GSPO, Eq. 7], with the gradient through all of them. At r = 1 every form has the
    gradient of `policy_gradient_loss`.
    """
    advantages = advantages.detach()
    ratio, clipped = probability_ratios(
        logprobs, previous_logprobs, mask, segments, clip_low=clip_low, clip_high=clip_high, sequence_ratio=sequence_ratio
    )
    if cispo:
        per_token = -advantages * clipped.detach() * logprobs
    else:
        per_token = torch.maximum(-advantages * ratio, -advantages * clipped)
        if dual_clip is not None:
            bounded = torch.minimum(per_token, -advantages * dual_clip)
            per_token = torch.where(advantages < 0, bounded, per_token)
    return aggregated(weights.detach() * per_token, mask, segments, aggregate)


def probability_ratios(
    logprobs: torch.Tensor,
    previous_logprobs: torch.Tensor,
    mask: torch.Tensor,
    segments: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    sequence_ratio: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(r, c) of `clipped_policy_gradient_loss`, [tokens] each, 1 where mask is 0, with gradient in `logprobs`."""
    log_ratio = (logprobs - previous_logprobs.detach()).masked_fill(mask <= 0, 0.0)
    ratio = (response_means(log_ratio, mask, segments) if sequence_ratio else log_ratio).exp()
    return ratio, ratio.clamp(1 - clip_low, 1 + clip_high)


def aggregated(
    per_token: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor, aggregate: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum, count) of a per-token loss [tokens] over trained tokens; what they mean is told at `policy_gradient_loss`."""
    per_token = per_token.masked_fill(mask <= 0, 0.0) * mask
    if aggregate == "token":
        return per_token.sum(), mask.sum()
    if aggregate in ("sequence", "group"):
        tokens_of_response = response_lengths(mask, segments)
        return (per_token / tokens_of_response.clamp(min=1)).sum(), count_responses(mask, segments)
    raise ValueError(f"loss aggregation {aggregate!r} is not one of token, sequence, group")


def kl_penalty(
    logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    kind: str,
    *,
    input_clamp: float | None = None,
    output_clamp: float | None = None,
) -> torch.Tensor:
    """Estimate of KL(policy || reference) on each sampled token, [tokens] -> [tokens], with gradient in `logprobs`.

    With r = log pi_ref - log pi, clamped to +-input_clamp: "k1" -r, "k2" r^2 / 2, "k3" exp(r) - 1 - r [Schulman 2020, "Approximating
    KL divergence"], clamped to +-output_clamp. Where a clamp holds there is no gradient. As losses on the policy's own samples
    they differ: k2 has the gradient of KL(policy || reference), k3 that of KL(reference || policy), and k1 that of log pi, whose
    mean is 0 whatever the reference. Raises ValueError for another kind.
    """
    ratio = reference_logprobs.detach() - logprobs
    if input_clamp is not None:
        ratio = ratio.clamp(-input_clamp, input_clamp)
    if kind == "k1":
        penalty = -ratio
    elif kind == "k2":
        penalty = ratio.square() / 2
    elif kind == "k3":
        penalty = ratio.exp() - 1 - ratio
    else:
        raise ValueError(f"KL estimator {kind!r} is not one of k1, k2, k3")
    return penalty if output_clamp is None else penalty.clamp(-output_clamp, output_clamp)


def response_lengths(mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """[tokens]: the number of trained tokens in each token's own response (0 on padding, where segments is -1)."""
    found, index = segments.unique(return_inverse=True)
    totals = torch.zeros(len(found), dtype=mask.dtype, device=mask.device).index_add_(0, index, mask)
    return torch.where(segments >= 0, totals[index], torch.zeros_like(mask))


def response_sums(values: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """[tokens]: the sum of `values` over the trained tokens of each token's own response, 0 where there is none."""
    found, index = segments.unique(return_inverse=True)
    totals = torch.zeros(len(found), dtype=values.dtype, device=values.device).index_add(0, index, values * mask)
    return totals[index]


def response_means(values: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """[tokens]: the mean of `values` over the trained tokens of each token's own response, 0 where there is none."""
    return response_sums(values, mask, segments) / response_lengths(mask, segments).clamp(min=1)


def count_responses(mask: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Number of responses with at least one trained token, a scalar of mask's type."""
    return torch.as_tensor(segments[mask > 0].unique().numel(), dtype=mask.dtype, device=mask.device)


def negative_log_likelihood(logprobs: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SFT: (-sum of log-probs over trained tokens, their number); logprobs and mask are [tokens], and what is masked may be anything."""
    return -(logprobs.masked_fill(mask <= 0, 0.0) * mask).sum(), mask.sum()
