"""Which part of a Hugging Face tensor one of vLLM's tensor-parallel ranks holds.

Written from what the layers are, not from vLLM's loaders: a push is only shown to be right if the two agree to the bit.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from nemo_cascade.models.config import ModelConfig

VOCAB_MULTIPLE = 64  # vLLM pads the vocabulary to it before it deals rows out
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(up|down)_proj\.weight")


class Shard(NamedTuple):
    """Rank `rank` of `size`; whole_experts: under expert parallel each expert lies whole on one rank, else every rank has a slice of each."""

    rank: int = 0
    size: int = 1
    whole_experts: bool = False

    def of(self, count: int) -> range:
        """This rank's share of so many equal things, or the one it shares with its neighbours where there are fewer than ranks."""
        if count < self.size:
            one = self.rank // (self.size // count)
            return range(one, one + 1)
        each = count // self.size
        return range(self.rank * each, (self.rank + 1) * each)


def sharing_problems(preset: ModelConfig, shard: Shard) -> Iterator[str]:
    """What of a network cannot be dealt out to so many ranks."""
    shared = ["num_attention_heads", "mamba_num_heads", "mamba_num_groups", "moe_shared_expert_intermediate_size"]
    shared.append("num_moe_experts" if shard.whole_experts else "moe_ffn_hidden_size")
    for name in shared:
        if getattr(preset, name) % shard.size:
            yield f"the model's {name} {getattr(preset, name)} cannot be shared by {shard.size} ranks"
    groups = preset.num_query_groups
    if max(groups, shard.size) % min(groups, shard.size):
        yield f"the model's num_query_groups {groups} and {shard.size} ranks: one must be a multiple of the other"


def local_part(name: str, tensor: torch.Tensor, preset: ModelConfig, shard: Shard) -> torch.Tensor | None:
    """What this rank keeps of a tensor by its Hugging Face name; None for an expert that lies on another rank."""
    if shard.size == 1:
        return tensor
    if expert := EXPERT.fullmatch(name):
        if shard.whole_experts:
            return tensor if int(expert[2]) in shard.of(preset.num_moe_experts) else None
        return equal(tensor, shard, dim=0 if expert[3] == "up" else 1)
    for ending, part in PARTS.items():
        if name.endswith(ending):
            return part(tensor, preset, shard)
    return tensor  # norms over the hidden vector, and routers: every rank has all of them


def equal(tensor: torch.Tensor, shard: Shard, dim: int) -> torch.Tensor:
    mine = shard.of(tensor.shape[dim])
    return tensor.narrow(dim, mine.start, len(mine))


def rows(tensor: torch.Tensor, preset: ModelConfig, shard: Shard) -> torch.Tensor:
    return equal(tensor, shard, dim=0)


def columns(tensor: torch.Tensor, preset: ModelConfig, shard: Shard) -> torch.Tensor:
    return equal(tensor, shard, dim=1)


def vocabulary(tensor: torch.Tensor, preset: ModelConfig, shard: Shard) -> torch.Tensor:
    """Ranks have equally many rows of the padded table; the last one's padding is no part of the tensor."""
    mine = shard.of(-(-len(tensor) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
    return tensor[mine.start : mine.stop]


def heads(tensor: torch.Tensor, preset: ModelConfig, shard: Shard) -> torch.Tensor:
    """Rows of whole attention heads; one of k or v lies on several ranks where there are fewer than ranks."""
    mine = shard.of(len(tensor) // preset.kv_channels)
    return tensor[mine.start * preset.kv_channels : mine.stop * preset.kv_channels]


def joined(widths: Callable[[ModelConfig], tuple[int, ...]]) -> Callable[[torch.Tensor, ModelConfig, Shard], torch.Tensor]:
    """Blocks of rows, each of which every rank has its share of."""

    def part(tensor: torch.Tensor, preset: ModelConfig, shard: Shard) -> torch.Tensor:
        return torch.cat([equal(block, shard, dim=0) for block in tensor.split(widths(preset))])

    return part


def convolved(preset: ModelConfig) -> tuple[int, ...]:
    """Widths of x, B and C."""
    states = preset.mamba_num_groups * preset.mamba_state_dim
    return preset.mamba_num_heads * preset.mamba_head_dim, states, states


def projected(preset: ModelConfig) -> tuple[int, ...]:
    """Widths of z, x, B, C and dt."""
    return preset.mamba_num_heads * preset.mamba_head_dim, *convolved(preset), preset.mamba_num_heads


PARTS = {
    "embeddings.weight": vocabulary,
    "lm_head.weight": vocabulary,
    ".q_proj.weight": heads,
    ".k_proj.weight": heads,
    ".v_proj.weight": heads,
    ".o_proj.weight": columns,
    ".shared_experts.up_proj.weight": rows,
    ".shared_experts.down_proj.weight": columns,
    ".in_proj.weight": joined(projected),
    ".out_proj.weight": columns,
    ".conv1d.weight": joined(convolved),
    ".conv1d.bias": joined(convolved),
    ".A_log": rows,
    ".D": rows,
    ".dt_bias": rows,
    ".mixer.norm.weight": rows,
}
