"""The distribution that was sampled from, as logits to train on: after temperature and nucleus, over tensor ranks.

With p = softmax(logits / temperature) and N the nucleus of p (`rollout.sampling.distribution`, the sampler's own), a token
was drawn from q(y) = p(y) / p(N) for y in N [Holtzman et al. 2020, section 3.1]. Cross entropy over logits / temperature
with -inf outside N is -log q, so megatron-core's vocab-parallel one goes on doing the sums; only the choice of N needs a
row's whole vocabulary. It has no padded ids, here or in the sampler (`models.specs.build_model`, `rollouts.make_engine`).
"""

import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_tensor_model_parallel_region,
    scatter_to_tensor_model_parallel_region,
)

from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.sampling import distribution

# Tokens whose nucleus is chosen at once: it takes a float64 sort of the whole vocabulary.
CHUNK = 256


def is_plain(generation: GenerationConfig) -> bool:
    """Whether log-probs are those of softmax(logits): at 1, and for greedy replies, which report them too."""
    return generation.temperature == 0 or (generation.temperature == 1 and generation.top_p >= 1)


def sampled_logits(logits: torch.Tensor, labels: torch.Tensor, generation: GenerationConfig) -> torch.Tensor:
    """This rank's logits [tokens, batch, vocab / tp] as logits of q, differentiable; labels [tokens, batch].

    N is chosen without gradient and joined by the label: a token that was drawn must have a finite log-prob where
    rounding puts it outside, and so must one that another model drew. Where rounding moves another token across the edge,
    p(N) and so log q differ from the sampler's by that token's share.
    """
    scaled = logits / generation.temperature
    if generation.top_p >= 1:
        return scaled
    with torch.no_grad():
        chunks = zip(logits.split(CHUNK), labels.split(CHUNK))
        kept = torch.cat([_nucleus(rows, chosen, generation) for rows, chosen in chunks])
    return scaled.masked_fill(~kept, -torch.inf)


def _nucleus(logits: torch.Tensor, labels: torch.Tensor, generation: GenerationConfig) -> torch.Tensor:
    """This rank's part of the mask of N and the label."""
    whole = gather_from_tensor_model_parallel_region(logits)
    kept = distribution(whole, generation.temperature, generation.top_p) > -torch.inf
    return scatter_to_tensor_model_parallel_region(kept.scatter(-1, labels[..., None], True))
