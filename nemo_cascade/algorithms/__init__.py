"""The algorithms as pure tensor functions: torch in, torch out; no files, no process groups."""

from nemo_cascade.algorithms.advantages import group_advantages, mopd_advantages
from nemo_cascade.algorithms.losses import importance_weights, negative_log_likelihood, policy_gradient_loss

__all__ = [
    "group_advantages",
    "importance_weights",
    "mopd_advantages",
    "negative_log_likelihood",
    "policy_gradient_loss",
]
