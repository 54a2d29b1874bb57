"""config.json of `nemotron_h`, Hugging Face's name for the Nemotron hybrid, both ways. Nothing here imports torch."""

import json
from pathlib import Path

from nemo_cascade.models.config import ModelConfig

# ModelConfig field -> key of config.json.
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "mamba_num_heads": "mamba_num_heads",
    "mamba_head_dim": "mamba_head_dim",
    "mamba_num_groups": "n_groups",
    "mamba_state_dim": "ssm_state_size",
    "num_moe_experts": "n_routed_experts",
    "moe_router_topk": "num_experts_per_tok",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "moe_shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    "moe_router_topk_scaling_factor": "routed_scaling_factor",
    "mamba_conv_kernel": "conv_kernel",
    "mamba_chunk_size": "chunk_size",
    "layernorm_epsilon": "layer_norm_epsilon",
    "init_method_std": "initializer_range",
    "max_sequence_length": "max_position_embeddings",
}
# What the family has fixed. A key that config.json lacks stands for this value, too (transformers' own defaults).
FIXED = {
    "model_type": "nemotron_h",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_conv_bias": True,
    "mamba_hidden_act": "silu",
    "mamba_proj_bias": False,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "mlp_hidden_act": "relu2",
    "mlp_bias": False,
    "use_bias": False,
    "residual_in_fp32": False,
    "moe_latent_size": None,
    "num_nextn_predict_layers": 0,
    "sliding_window": None,
}
BLOCKS = {"linear_attention": "M", "mamba": "M", "moe": "E", "full_attention": "*", "attention": "*"}


def hf_config(preset: ModelConfig, dtype: str = "float32") -> dict:
    """config.json of a preset."""
    return {
        "architectures": ["NemotronHForCausalLM"],
        **FIXED,
        **{key: getattr(preset, field) for field, key in KEYS.items()},
        "num_hidden_layers": preset.num_layers,
        "hybrid_override_pattern": preset.pattern,
        "intermediate_size": preset.moe_ffn_hidden_size,
        "norm_eps": preset.layernorm_epsilon,
        "mamba_ssm_cache_dtype": "float32",
        # megatron-core and vLLM do not clamp dt from below, as time_step_limit says; transformers ignores that key and clamps at
        # time_step_min (0.001 in the released model), whose logarithm it also takes: so almost zero, and all three agree.
        "time_step_min": 1e-30,
        "time_step_max": 0.1,
        "time_step_floor": 1e-4,
        "time_step_limit": [0.0, float("inf")],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": dtype,
    }


def read_hf_config(folder: Path) -> ModelConfig:
    """The network that folder/config.json describes.

    Raises ValueError naming the file and, all at once, every key that is missing or asks for what no preset can say.
    """
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    problems = [f"{key} is missing" for key in KEYS.values() if key not in config]
    problems += [
        f"{key} is {config[key]!r}, but only {value!r} is supported"
        for key, value in FIXED.items()
        if config.get(key, value) != value
    ]
    try:
        pattern = read_pattern(config)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return ModelConfig(name=str(folder), pattern=pattern, **{field: config[key] for field, key in KEYS.items()})


def read_pattern(config: dict) -> str:
    """The kinds of layers, a letter each, from `hybrid_override_pattern` or transformers' `layers_block_type`."""
    pattern = config.get("hybrid_override_pattern")
    if pattern is None:
        kinds = config.get("layers_block_type") or config.get("layer_types")
        if not kinds:
            raise ValueError("hybrid_override_pattern is missing")
        pattern = "".join(BLOCKS.get(kind, f"<{kind}>") for kind in kinds)
    # Bars only mark where pipeline stages begin.
    pattern = pattern.replace("|", "")
    if set(pattern) - set("ME*"):
        raise ValueError(f"hybrid_override_pattern {pattern} has layers other than M (Mamba-2), E (experts) and * (attention)")
    return pattern
