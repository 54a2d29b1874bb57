"""The loss of an RL stage: NeMo RL's `loss_fn` keys as a choice among the functions of `algorithms`.

`policy_loss` is what NeMo RL's ClippedPGLossFn computes from a config, a pure function of tensors; `make_loss` is the same inside
the loop, where each batch is trained on once, so that the log-probs before the update are the current ones. The KL term is that of
its releases, whose weight has no gradient; its development branch lets the gradient into the weight, too.
"""

from collections.abc import Callable, Sequence

import torch

from nemo_cascade.algorithms import (
    aggregated,
    clipped_policy_gradient_loss,
    importance_weights,
    kl_penalty,
    mismatch_metrics,
    mopd_advantages,
    policy_gradient_loss,
    ratio_metrics,
    weight_metrics,
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
            dual_clip=config.ratio_clip_c,
            cispo=config.use_cispo,
            aggregate=aggregate,
            **clipping(config),
        )
    if config.reference_policy_kl_penalty == 0:
        return total, count, None
    kl = reference_kl(config, logprobs, sampled, mask, reference)
    return total + config.reference_policy_kl_penalty * aggregated(kl, mask, segments, aggregate)[0], count, kl.detach()


def aggregation(config: LossConfig) -> str:
    """How `algorithms` calls the mean over a batch."""
    return "token" if config.token_level_loss else "sequence"


def clipping(config: LossConfig) -> dict:
    """What `probability_ratios` is asked for."""
    of_responses = config.sequence_level_importance_ratios and not config.force_on_policy_ratio
    return {"clip_low": config.ratio_clip_min, "clip_high": config.ratio_clip_max, "sequence_ratio": of_responses}


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


def make_full_vocabulary_loss(config: LossConfig, domains: Sequence[str] = ()) -> Callable:
    """MOPD's loss with the reverse KL of the whole vocabulary, which packs then have as a field with gradient, in place of its estimate
    from one sampled token [engine.full_vocabulary]: mean of w_d KL_t, w_d what the token's domain counts."""
    aggregate = aggregation(config)

    def loss(logprobs, pack):
        divergence, mask, sampled = pack.fields["reverse_kl"], pack.mask, pack.fields["sampling_logprobs"]
        weighed = divergence * pack.fields.get("domain_weight", 1.0)
        total, count = aggregated(weighed, mask, pack.segments, aggregate)
        metrics = {
            **mismatch_metrics(logprobs, sampled, mask, pack.segments, kl_kind=config.reference_policy_kl_type),
            **weight_metrics(logprobs, sampled, mask, pack.segments, mode="none"),
            "teacher_student_logprob_gap_mean": (-(divergence.detach() * mask).sum(), mask.sum()),
            **by_domain(divergence.detach(), pack, domains),
        }
        return total, count, metrics

    return loss


def by_domain(divergence: torch.Tensor, pack, domains: Sequence[str]) -> dict:
    """{"<domain>/reverse_kl": (sum, count)} of a pack's tokens [T]."""
    return {
        f"{domain}/reverse_kl": ((divergence * pack.mask * here).sum(), (pack.mask * here).sum())
        for number, domain in enumerate(domains)
        for here in [pack.fields["domain"] == number]
    }


def make_loss(config: LossConfig, distil: bool, domains: Sequence[str] = ()) -> Callable:
    """The loss `Policy.train_step` calls for each pack. distil: advantages come from teachers (MOPD). domains: whose reverse KL to
    their teachers is a metric of its own, by the number that the samples' field `domain` has."""
    corrected, bounds = correction(config), clipping(config)

    def loss(logprobs, pack):
        current, mask = logprobs.detach(), pack.mask
        if distil:
            gaps = mopd_advantages(pack.fields["teacher_logprobs"], current, mask)
            advantages = gaps * pack.fields.get("domain_weight", 1.0)
        else:
            advantages = pack.fields["advantages"]
        sampled, reference = pack.fields["sampling_logprobs"], pack.fields.get("reference_logprobs")
        total, count, kl = policy_loss(config, logprobs, current, sampled, advantages, mask, pack.segments, reference)
        metrics = {
            **mismatch_metrics(current, sampled, mask, pack.segments, kl_kind=config.reference_policy_kl_type),
            **weight_metrics(current, sampled, mask, pack.segments, **corrected),
            **ratio_metrics(current, current, mask, pack.segments, **bounds),
        }
        if kl is not None:
            metrics["kl_penalty"] = ((kl * mask).sum(), mask.sum())
        if distil:
            metrics["teacher_student_logprob_gap_mean"] = ((gaps * mask).sum(), mask.sum())
            metrics |= by_domain(-gaps, pack, domains)
        return total, count, metrics

    return loss
