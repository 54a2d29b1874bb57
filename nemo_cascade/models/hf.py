"""Hugging Face's names for the Nemotron hybrid (`nemotron_h`): weights under `backbone.*`, config.json, generation_config.json.

The map is data: one row a tensor. Reading a Hugging Face folder comes later.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from nemo_cascade.models.presets import ModelConfig

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


def hf_tensors(full: Iterable[tuple[str, torch.Tensor]], preset: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Full megatron-core tensors, renamed and split as Hugging Face has them. Raises KeyError for a name the map lacks."""
    for name, tensor in full:
        tensor = tensor.detach()
        number = re.search(r"\.layers\.(\d+)\.", name)
        n = number[1] if number else ""
        key = name.replace(f".layers.{n}.", ".layers.{n}.", 1) if number else name
        if key in NAMES:
            yield NAMES[key].format(n=n), tensor
        elif key in EXPERTS:
            for e, expert in enumerate(tensor):
                yield EXPERTS[key].format(n=n, e=e), expert
        elif key == QKV:
            for letter, part in zip("qkv", split_qkv(tensor, preset)):
                yield f"backbone.layers.{n}.mixer.{letter}_proj.weight", part
        else:
            raise KeyError(f"{name}: no Hugging Face name is known for this tensor; add it to nemo_cascade/models/hf.py")


def split_qkv(fused: torch.Tensor, preset: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mcore interleaves by query group: [groups, (heads / groups) q + 1 k + 1 v, channels, hidden] -> q, k, v matrices."""
    per_group = preset.num_attention_heads // preset.num_query_groups
    grouped = fused.view(preset.num_query_groups, per_group + 2, preset.kv_channels, preset.hidden_size)
    q, k, v = grouped.split([per_group, 1, 1], dim=1)
    return tuple(part.reshape(-1, preset.hidden_size) for part in (q, k, v))


def hf_config(preset: ModelConfig, dtype: str = "float32") -> dict:
    """config.json of a preset."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "vocab_size": preset.vocab_size,
        "hidden_size": preset.hidden_size,
        "num_hidden_layers": preset.num_layers,
        "hybrid_override_pattern": preset.pattern,
        "tie_word_embeddings": False,
        "num_attention_heads": preset.num_attention_heads,
        "num_key_value_heads": preset.num_query_groups,
        "head_dim": preset.kv_channels,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mamba_num_heads": preset.mamba_num_heads,
        "mamba_head_dim": preset.mamba_head_dim,
        "n_groups": preset.mamba_num_groups,
        "ssm_state_size": preset.mamba_state_dim,
        "conv_kernel": preset.mamba_conv_kernel,
        "use_conv_bias": True,
        "chunk_size": preset.mamba_chunk_size,
        "mamba_hidden_act": "silu",
        "mamba_ssm_cache_dtype": "float32",
        "mamba_proj_bias": False,
        # megatron-core and vLLM do not clamp dt from below, as time_step_limit says; transformers ignores that key and clamps at
        # time_step_min (0.001 in the released model), whose logarithm it also takes: so almost zero, and all three agree.
        "time_step_min": 1e-30,
        "time_step_max": 0.1,
        "time_step_floor": 1e-4,
        "time_step_limit": [0.0, float("inf")],
        "n_routed_experts": preset.num_moe_experts,
        "num_experts_per_tok": preset.moe_router_topk,
        "moe_intermediate_size": preset.moe_ffn_hidden_size,
        "intermediate_size": preset.moe_ffn_hidden_size,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": preset.moe_shared_expert_intermediate_size,
        "norm_topk_prob": True,
        "routed_scaling_factor": preset.moe_router_topk_scaling_factor,
        "n_group": 1,
        "topk_group": 1,
        "mlp_hidden_act": "relu2",
        "mlp_bias": False,
        "use_bias": False,
        "layer_norm_epsilon": preset.layernorm_epsilon,
        "norm_eps": preset.layernorm_epsilon,
        "residual_in_fp32": False,
        "max_position_embeddings": preset.max_sequence_length,
        "initializer_range": preset.init_method_std,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": dtype,
    }


def export_hf(weights: Iterable[tuple[str, torch.Tensor]], preset: ModelConfig, directory: Path) -> None:
    """Writes model.safetensors, config.json and generation_config.json, which transformers and vLLM open.

    weights: (`backbone.*` name, tensor) as `hf_tensors` or `Policy.hf_weights` gives them. Every rank calls this,
    because gathering takes all of them; rank 0 writes.
    """
    directory = Path(directory)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    directory.mkdir(parents=True, exist_ok=True)
    dtype = str(tensors["lm_head.weight"].dtype).removeprefix("torch.")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    # time_step_limit ends in infinity, which JSON knows only in Python's spelling; transformers writes and reads it so.
    (directory / "config.json").write_text(json.dumps(hf_config(preset, dtype), indent=2))
    generation = {"bos_token_id": 1, "eos_token_id": [2, 11], "pad_token_id": 0}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2))
