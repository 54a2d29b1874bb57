"""The loss of an RL stage: NeMo RL's `loss_fn` keys as a choice among the functions of `algorithms`.

`policy_loss` is what NeMo RL's ClippedPGLossFn computes from a config, a pure function of tensors; `make_loss` is the same inside
the loop, where each batch is trained on once, so that the log-probs before the update are the current ones. The KL term is that of
its releases, whose weight has no gradient; its development branch lets the gradient into the weight, too.
"""

from collections.abc import Callable

import torch

from nemo_cascade.algorithms import (
    aggregated,
    clipped_policy_gradient_loss,
    importance_weights,
    kl_penalty,
    mopd_advantages,
    policy_gradient_loss,
)
from nemo_cascade.stages.config import LossConfig


def policy_loss(
    config: LossConfig,
    logprobs: torch.Tensor,
    previous: torch.Tensor,
    sampled: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    segments: torch.Tensor,
    reference: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(sum, count, KL estimates [tokens] before the coefficient, None without a penalty); the loss is sum / count over all packs.

    All tensors [tokens]: log-probs now, before the batch's first update, when sampled and of the reference; `segments` tells a
    token's response.
    """
    aggregate = aggregation(config)
    previous = logprobs.detach() if config.force_on_policy_ratio else previous.detach()
    weights = importance_weights(previous, sampled, mask, segments, **correction(config))
    if config.disable_ppo_ratio and not config.force_on_policy_ratio:
        total, count = policy_gradient_loss(logprobs, advantages, weights, mask, segments, aggregate=aggregate)
    else:
        total, count = clipped_policy_gradient_loss(
            logprobs,
            previous,
            advantages,
            weights,
            mask,
            segments,
            clip_low=config.ratio_clip_min,
            clip_high=config.ratio_clip_max,
            dual_clip=config.ratio_clip_c,
            cispo=config.use_cispo,
            sequence_ratio=config.sequence_level_importance_ratios and not config.force_on_policy_ratio,
            aggregate=aggregate,
        )
    if config.reference_policy_kl_penalty == 0:
        return total, count, None
    kl = reference_kl(config, logprobs, sampled, mask, reference)
    return total + config.reference_policy_kl_penalty * aggregated(kl, mask, segments, aggregate)[0], count, kl.detach()


def aggregation(config: LossConfig) -> str:
    """How `algorithms` calls the mean over a batch."""
    return "token" if config.token_level_loss else "sequence"


def correction(config: LossConfig) -> dict:
    """What `importance_weights` is asked for. Without a lower end "tis" bounds weights from above alone."""
    kind = config.truncated_importance_sampling_type
    if not config.use_importance_sampling_correction:
        return {"mode": "none"}
    settings = {"mode": kind or "full", "sequence_level": config.sequence_level_importance_ratios}
    if kind is None:
        return settings
    low, high = config.truncated_importance_sampling_ratio_min, config.truncated_importance_sampling_ratio
    return settings | {"low": 0.0 if low is None else low, "high": high}


def reference_kl(
    config: LossConfig, logprobs: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Each token's estimate [tokens], with gradient in `logprobs`; 0 where mask is 0."""
    # A padding token may be so unlikely that exp overflows, and inf * 0 is no number.
    logprobs, reference = (values.masked_fill(mask <= 0, 0.0) for values in (logprobs, reference))
    clamps = {"input_clamp": config.kl_input_clamp_value, "output_clamp": config.kl_output_clamp_value}
    kl = kl_penalty(logprobs, reference, config.reference_policy_kl_type, **clamps)
    if config.use_on_policy_kl_approximation:
        kl = kl * importance_weights(logprobs, sampled, mask, mode="full")
    return kl


def make_loss(config: LossConfig, distil: bool) -> Callable:
    """The loss `Policy.train_step` calls for each pack. distil: advantages come from teachers (MOPD)."""
    band = correction(config) if config.truncated_importance_sampling_type is not None else None

    def loss(logprobs, pack):
        current, mask = logprobs.detach(), pack.mask
        if distil:
            advantages = mopd_advantages(pack.fields["teacher_logprobs"], current, mask)
        else:
            advantages = pack.fields["advantages"]
        sampled, reference = pack.fields["sampling_logprobs"], pack.fields.get("reference_logprobs")
        total, count, kl = policy_loss(config, logprobs, current, sampled, advantages, mask, pack.segments, reference)
        metrics, tokens = {}, mask.sum()
        if kl is not None:
            metrics["kl_penalty"] = ((kl * mask).sum(), tokens)
        ratio = (current - sampled).exp()
        metrics |= {
            "token_mult_prob_error": (((current - sampled).abs().exp() * mask).sum(), tokens),
            "sampling_importance_ratio": ((ratio * mask).sum(), tokens),
            "approx_entropy": (-(current * mask).sum(), tokens),
        }
        if band is not None:
            outside = (ratio < band["low"]) | (ratio > band["high"])
            metrics["is_oob_ratio"] = ((outside * mask).sum(), tokens)
        if distil:
            metrics["teacher_student_logprob_gap_mean"] = ((advantages * mask).sum(), tokens)
        return total, count, metrics

    return loss
