"""The Nemotron hybrid family: networks by name, or by the Hugging Face folder that has one."""

from pathlib import Path

from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.hf_config import read_hf_config

PRESETS = {
    preset.name: preset
    for preset in (
        # Everything the real one has, small enough to learn on a laptop.
        ModelConfig(
            name="tiny",
            pattern="M*EM*E",
            vocab_size=832,
            hidden_size=128,
            num_attention_heads=4,
            num_query_groups=2,
            kv_channels=32,
            mamba_num_heads=8,
            mamba_head_dim=32,
            mamba_num_groups=2,
            mamba_state_dim=32,
            num_moe_experts=8,
            moe_router_topk=2,
            moe_ffn_hidden_size=128,
            moe_shared_expert_intermediate_size=256,
            # About 1 / sqrt(hidden_size). With the 0.02 of large models it copied words only after several times the tokens.
            init_method_std=0.09,
            max_sequence_length=8192,
        ),
        # The same with the least of everything, for tests.
        ModelConfig(
            name="micro",
            pattern="ME*ME*",
            vocab_size=832,
            hidden_size=32,
            num_attention_heads=4,
            num_query_groups=2,
            kv_channels=8,
            mamba_num_heads=4,
            mamba_head_dim=16,
            mamba_num_groups=2,
            mamba_state_dim=16,
            num_moe_experts=8,
            moe_router_topk=2,
            moe_ffn_hidden_size=32,
            moe_shared_expert_intermediate_size=32,
            max_sequence_length=8192,
        ),
        # Nemotron-3-Nano-30B-A3B and Nemotron-Cascade-2: config.json of the released model.
        ModelConfig(
            name="nano_30b_a3b",
            pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            vocab_size=131072,
            hidden_size=2688,
            num_attention_heads=32,
            num_query_groups=2,
            kv_channels=128,
            mamba_num_heads=64,
            mamba_head_dim=64,
            mamba_num_groups=8,
            mamba_state_dim=128,
            num_moe_experts=128,
            moe_router_topk=6,
            moe_ffn_hidden_size=1856,
            moe_shared_expert_intermediate_size=3712,
            init_method_std=0.0173,
        ),
    )
}


def get_preset(name: str) -> ModelConfig:
    """The preset of that name, or the network of the Hugging Face folder at that path.

    Raises ValueError listing the known presets where it is neither, or naming what config.json has that no preset can say.
    """
    if name in PRESETS:
        return PRESETS[name]
    if is_hf_folder(name):
        return read_hf_config(Path(name))
    raise ValueError(
        f"policy.model_name={name}: no preset and no Hugging Face folder (one with a config.json); "
        f"presets are {', '.join(PRESETS)}"
    )


def is_hf_folder(name: str) -> bool:
    """Whether a `policy.model_name` is a Hugging Face folder, whose weights a cascade then starts from."""
    return name not in PRESETS and (Path(name) / "config.json").is_file()
