"""The algorithms as pure tensor functions: torch in, torch out; no files, no process groups."""

from nemo_cascade.algorithms.advantages import domain_weights, group_advantages, mopd_advantages
from nemo_cascade.algorithms.divergence import reverse_kl
from nemo_cascade.algorithms.filters import informative_groups, overlong, swe_group_mask
from nemo_cascade.algorithms.genrm import comparison_pairs, genrm_rewards
from nemo_cascade.algorithms.losses import (
    aggregated,
    clipped_policy_gradient_loss,
    importance_weights,
    kl_penalty,
    negative_log_likelihood,
    policy_gradient_loss,
    probability_ratios,
)
from nemo_cascade.algorithms.mismatch import mismatch_metrics, ratio_metrics, weight_metrics

__all__ = [
    "aggregated",
    "clipped_policy_gradient_loss",
    "comparison_pairs",
    "domain_weights",
    "genrm_rewards",
    "group_advantages",
    "importance_weights",
    "informative_groups",
    "kl_penalty",
    "mismatch_metrics",
    "mopd_advantages",
    "negative_log_likelihood",
    "overlong",
    "policy_gradient_loss",
    "probability_ratios",
    "ratio_metrics",
    "reverse_kl",
    "swe_group_mask",
    "weight_metrics",
]
