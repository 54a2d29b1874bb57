"""Hugging Face's names for the Nemotron hybrid's tensors (`nemotron_h`: `backbone.*`), both ways.

The map is data: one row a tensor. A megatron-core tensor here is whole, as `engine.gather` puts it together and as it lies in a
checkpoint: experts stacked [experts, ...], Mamba's in_proj and conv1d in one piece.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import torch

from nemo_cascade.models.config import ModelConfig

# megatron-core name (layer number as {n}) -> Hugging Face name. Fused tensors (linear_qkv, experts) have rules of their own.
NAMES = {
    "embedding.word_embeddings.weight": "backbone.embeddings.weight",
    "decoder.final_norm.weight": "backbone.norm_f.weight",
    "output_layer.weight": "lm_head.weight",
    "decoder.layers.{n}.mixer.in_proj.layer_norm_weight": "backbone.layers.{n}.norm.weight",
    "decoder.layers.{n}.mixer.in_proj.weight": "backbone.layers.{n}.mixer.in_proj.weight",
    "decoder.layers.{n}.mixer.conv1d.weight": "backbone.layers.{n}.mixer.conv1d.weight",
    "decoder.layers.{n}.mixer.conv1d.bias": "backbone.layers.{n}.mixer.conv1d.bias",
    "decoder.layers.{n}.mixer.A_log": "backbone.layers.{n}.mixer.A_log",
    "decoder.layers.{n}.mixer.D": "backbone.layers.{n}.mixer.D",
    "decoder.layers.{n}.mixer.dt_bias": "backbone.layers.{n}.mixer.dt_bias",
    "decoder.layers.{n}.mixer.norm.weight": "backbone.layers.{n}.mixer.norm.weight",
    "decoder.layers.{n}.mixer.out_proj.weight": "backbone.layers.{n}.mixer.out_proj.weight",
    "decoder.layers.{n}.self_attention.linear_qkv.layer_norm_weight": "backbone.layers.{n}.norm.weight",
    "decoder.layers.{n}.self_attention.linear_proj.weight": "backbone.layers.{n}.mixer.o_proj.weight",
    "decoder.layers.{n}.pre_mlp_layernorm.weight": "backbone.layers.{n}.norm.weight",
    "decoder.layers.{n}.mlp.router.weight": "backbone.layers.{n}.mixer.gate.weight",
    "decoder.layers.{n}.mlp.router.expert_bias": "backbone.layers.{n}.mixer.gate.e_score_correction_bias",
    "decoder.layers.{n}.mlp.shared_experts.linear_fc1.weight": "backbone.layers.{n}.mixer.shared_experts.up_proj.weight",
    "decoder.layers.{n}.mlp.shared_experts.linear_fc2.weight": "backbone.layers.{n}.mixer.shared_experts.down_proj.weight",
}
EXPERTS = {
    "decoder.layers.{n}.mlp.experts.experts.linear_fc1.weight": "backbone.layers.{n}.mixer.experts.{e}.up_proj.weight",
    "decoder.layers.{n}.mlp.experts.experts.linear_fc2.weight": "backbone.layers.{n}.mixer.experts.{e}.down_proj.weight",
}
QKV = "decoder.layers.{n}.self_attention.linear_qkv.weight"


def hf_names(name: str, preset: ModelConfig) -> list[str]:
    """The Hugging Face tensors that make up one of megatron-core's, in the order of `to_hf`.

    Raises KeyError for a name that the map lacks.
    """
    number = re.search(r"\.layers\.(\d+)\.", name)
    n = number[1] if number else ""
    key = name.replace(f".layers.{n}.", ".layers.{n}.", 1) if number else name
    if key in NAMES:
        return [NAMES[key].format(n=n)]
    if key in EXPERTS:
        return [EXPERTS[key].format(n=n, e=e) for e in range(preset.num_moe_experts)]
    if key == QKV:
        return [f"backbone.layers.{n}.mixer.{letter}_proj.weight" for letter in "qkv"]
    raise KeyError(f"{name}: no Hugging Face name is known for this tensor; add it to nemo_cascade/models/hf.py")


def to_hf(name: str, whole: torch.Tensor, preset: ModelConfig) -> Sequence[torch.Tensor]:
    """One of megatron-core's tensors as the tensors of `hf_names`."""
    if name.endswith("linear_qkv.weight"):
        return split_qkv(whole, preset)
    return whole.unbind() if len(hf_names(name, preset)) > 1 else [whole]


def from_hf(name: str, parts: Sequence[torch.Tensor], preset: ModelConfig) -> torch.Tensor:
    """The inverse of `to_hf`; of experts, those whose parts are given."""
    if name.endswith("linear_qkv.weight"):
        return join_qkv(parts, preset)
    return torch.stack(list(parts)) if len(hf_names(name, preset)) > 1 else parts[0]


def hf_tensors(full: Iterable[tuple[str, torch.Tensor]], preset: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole megatron-core tensors, renamed and split as Hugging Face has them."""
    for name, tensor in full:
        yield from zip(hf_names(name, preset), to_hf(name, tensor.detach(), preset))


def split_qkv(fused: torch.Tensor, preset: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mcore interleaves by query group: [groups, (heads / groups) q + 1 k + 1 v, channels, hidden] -> q, k, v matrices."""
    per_group = preset.num_attention_heads // preset.num_query_groups
    grouped = fused.view(preset.num_query_groups, per_group + 2, preset.kv_channels, preset.hidden_size)
    q, k, v = grouped.split([per_group, 1, 1], dim=1)
    return tuple(part.reshape(-1, preset.hidden_size) for part in (q, k, v))


def join_qkv(parts: Sequence[torch.Tensor], preset: ModelConfig) -> torch.Tensor:
    """The inverse of `split_qkv`."""
    shape = (preset.num_query_groups, -1, preset.kv_channels, preset.hidden_size)
    return torch.cat([part.view(shape) for part in parts], dim=1).reshape(-1, preset.hidden_size)
