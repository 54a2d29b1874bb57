"""The algorithms as pure tensor functions: torch in, torch out; no files, no process groups."""

from nemo_cascade.algorithms.advantages import group_advantages, mopd_advantages
from nemo_cascade.algorithms.filters import informative_groups, swe_group_mask
from nemo_cascade.algorithms.genrm import comparison_pairs, genrm_rewards
from nemo_cascade.algorithms.losses import (
    aggregated,
    importance_weights,
    kl_penalty,
    negative_log_likelihood,
    policy_gradient_loss,
)

__all__ = [
    "aggregated",
    "comparison_pairs",
    "genrm_rewards",
    "group_advantages",
    "importance_weights",
    "informative_groups",
    "kl_penalty",
    "mopd_advantages",
    "negative_log_likelihood",
    "policy_gradient_loss",
    "swe_group_mask",
]
