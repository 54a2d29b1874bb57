"""The floating-point operations that a training step needs, whoever takes it, and those that torch counts in ours.

A multiplication and an addition are two. Backwards takes twice what forwards does (Kaplan et al. 2020, section 2.1).
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from nemo_cascade.models.config import ModelConfig

# About 20 million parameters, with the tiny preset's vocabulary.
SHAPE_20M = ModelConfig(
    name="20m",
    pattern="MEM*EMEM*E",
    vocab_size=832,
    hidden_size=384,
    num_attention_heads=8,
    num_query_groups=2,
    kv_channels=48,
    mamba_num_heads=24,
    mamba_head_dim=32,
    mamba_num_groups=2,
    mamba_state_dim=64,
    num_moe_experts=8,
    moe_router_topk=2,
    moe_ffn_hidden_size=480,
    moe_shared_expert_intermediate_size=960,
    init_method_std=0.05,
    max_sequence_length=8192,
)


def linear_flops(preset: ModelConfig, tokens: int, trained: int) -> int:
    """Of a training step's matrix products with weights; the output layer's are of the trained tokens alone."""
    hidden, inner = preset.hidden_size, preset.mamba_num_heads * preset.mamba_head_dim
    queries, keys = (n * preset.kv_channels for n in (preset.num_attention_heads, preset.num_query_groups))
    mixed = 2 * inner + 2 * preset.mamba_num_groups * preset.mamba_state_dim + preset.mamba_num_heads
    widths = {
        "M": mixed + inner,
        "*": 2 * queries + 2 * keys,
        "E": preset.num_moe_experts
        + 2 * preset.moe_shared_expert_intermediate_size
        + 2 * preset.moe_router_topk * preset.moe_ffn_hidden_size,
    }
    per_token = sum(hidden * widths[letter] for letter in preset.pattern)
    return 6 * (per_token * tokens + hidden * preset.vocab_size * trained)


def training_flops(preset: ModelConfig, lengths: list[int], trained: int) -> int:
    """Of a training step on documents of these lengths: weights, attention to earlier tokens, Mamba's state.

    Attention counts the pairs that causality leaves; Mamba its convolution and its recurrence (h = a h + dt x B^T,
    y = C h: 6 a number of the state), not what a chunked form does beside it.
    """
    inner = preset.mamba_num_heads * preset.mamba_head_dim
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    attention = 4 * pairs * preset.num_attention_heads * preset.kv_channels
    channels = inner + 2 * preset.mamba_num_groups * preset.mamba_state_dim
    mamba = sum(lengths) * (6 * inner * preset.mamba_state_dim + 2 * preset.mamba_conv_kernel * channels)
    layers = 3 * (preset.pattern.count("*") * attention + preset.pattern.count("M") * mamba)
    return linear_flops(preset, sum(lengths), trained) + layers


def counted_flops(step) -> dict[str, int]:
    """What torch counts while step() runs, by operator; attention's fused one it does not know."""

    def added(_, one, other, **__):
        return 2 * one[0] * one[1] * other[1]

    # The output layer's gradients are added up in place, which torch does not count by itself.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})
    with counter:
        step()
    return {str(operator): int(count) for operator, count in counter.get_flop_counts()["Global"].items()}
