"""How far the engine that samples and the one that trains are apart, under NeMo RL's names. Pure tensor functions over packed tokens."""

import math

import torch

from nemo_cascade.algorithms.losses import importance_weights, kl_penalty, probability_ratios, response_means

Pair = tuple[torch.Tensor, torch.Tensor]


def mismatch_metrics(
    train_logprobs: torch.Tensor, sampling_logprobs: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor, *, kl_kind: str = "k3"
) -> dict[str, Pair]:
    """{name: (sum, count)}, of names with min or max (extreme, count); all [tokens], `segments` tells a token's response.

    token_mult_prob_error: mean of exp |log pi_train - log pi_sampling|; {mean,max,min}_seq_mult_prob_error: of its means by response.
    gen_kl_error, policy_kl_error: estimates of KL(sampling || training) and back by `kl_penalty`. js_divergence_error: by k3, to the mean
    of both probabilities. approx_entropy: mean of -r log pi_train with r = pi_train / pi_sampling.
    """
    trained = mask > 0
    train, sampled = (values.detach().masked_fill(~trained, 0.0) for values in (train_logprobs, sampling_logprobs))
    error = (train - sampled).abs().exp()
    mixture = torch.logaddexp(train, sampled) - math.log(2)
    divergence = (kl_penalty(mixture, train, "k3") + kl_penalty(mixture, sampled, "k3")) / 2
    by_token = {
        "token_mult_prob_error": error,
        "gen_kl_error": kl_penalty(sampled, train, kl_kind),
        "policy_kl_error": kl_penalty(train, sampled, kl_kind),
        "js_divergence_error": divergence,
        "approx_entropy": -(train - sampled).exp() * train,
    }
    metrics = {name: token_mean(values, mask) for name, values in by_token.items()}
    of_response = response_means(error, mask, segments)
    metrics["mean_seq_mult_prob_error"] = response_mean(of_response, mask, segments)
    for name, values in (("max", of_response), ("min", of_response)):
        metrics[f"{name}_seq_mult_prob_error"] = extreme(values, mask, name)
    return metrics


def ratio_metrics(
    logprobs: torch.Tensor, previous_logprobs: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor, **clipping
) -> dict[str, Pair]:
    """probs_ratio and probs_ratio_clamped, mean, min and max, of `probability_ratios` with `clipping`."""
    metrics = {}
    ratios = probability_ratios(logprobs.detach(), previous_logprobs, mask, segments, **clipping)
    for name, values in zip(("probs_ratio", "probs_ratio_clamped"), ratios):
        metrics[name] = token_mean(values, mask)
        metrics |= {f"{name}_{end}": extreme(values, mask, end) for end in ("min", "max")}
    return metrics


def weight_metrics(
    train_logprobs: torch.Tensor,
    sampling_logprobs: torch.Tensor,
    mask: torch.Tensor,
    segments: torch.Tensor,
    *,
    mode: str,
    low: float = 0.0,
    high: float = math.inf,
    sequence_level: bool = False,
) -> dict[str, Pair]:
    """sampling_importance_ratio: the mean weight that `importance_weights` gives, or would give uncorrected ("none"), by token or, with
    sequence_level, by response. is_oob_ratio, for the modes with a band: the share of tokens outside of it, of responses with
    "seq-mask-tis"."""
    pair = (train_logprobs, sampling_logprobs, mask, segments)
    full = importance_weights(*pair, mode="full", sequence_level=sequence_level)
    used = full if mode == "none" else importance_weights(*pair, mode=mode, low=low, high=high, sequence_level=sequence_level)
    mean = response_mean(used, mask, segments) if sequence_level else token_mean(used, mask)
    metrics = {"sampling_importance_ratio": mean}
    if mode == "seq-mask-tis":
        log_ratio = (train_logprobs - sampling_logprobs).detach().masked_fill(mask <= 0, 0.0)
        geometric = response_means(log_ratio, mask, segments).exp()
        metrics["is_oob_ratio"] = response_mean(((geometric < low) | (geometric > high)).to(mask.dtype), mask, segments)
    elif mode in ("tis", "icepop"):
        metrics["is_oob_ratio"] = token_mean(((full < low) | (full > high)).to(mask.dtype), mask)
    return metrics


def token_mean(values: torch.Tensor, mask: torch.Tensor) -> Pair:
    """Over trained tokens."""
    return (values.masked_fill(mask <= 0, 0.0) * mask).sum(), mask.sum()


def response_mean(of_response: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor) -> Pair:
    """Over responses with a trained token, of what each token has of its response's own value."""
    trained = mask > 0
    _, index = segments[trained].unique(return_inverse=True)
    if len(index) == 0:
        return mask.new_zeros(()), mask.new_zeros(())
    values = of_response.new_zeros(int(index.max()) + 1).index_copy(0, index, of_response[trained])
    return values.sum(), torch.as_tensor(len(values), dtype=mask.dtype, device=mask.device)


def extreme(values: torch.Tensor, mask: torch.Tensor, end: str) -> Pair:
    """("min" or "max" over trained tokens, how many there are); without any, what no other is beyond."""
    worst = math.inf if end == "min" else -math.inf
    kept = values.masked_fill(mask <= 0, worst)
    return (kept.min() if end == "min" else kept.max()), mask.sum()
