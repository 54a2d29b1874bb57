"""The Nemotron hybrid family by name, as plain numbers: nothing here imports torch or megatron-core.

A preset says what the network is; how it is laid out over ranks and in which precision it trains is the policy's.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """One hybrid network. `pattern` has one letter a layer: M Mamba-2, E mixture of experts, * attention.

    Widths are in units of the hidden vector; `mamba_num_groups` share B and C among mamba_num_heads / groups heads.
    """

    name: str
    pattern: str
    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    mamba_num_heads: int
    mamba_head_dim: int
    mamba_num_groups: int
    mamba_state_dim: int
    num_moe_experts: int
    moe_router_topk: int
    moe_ffn_hidden_size: int
    moe_shared_expert_intermediate_size: int
    moe_router_topk_scaling_factor: float = 2.5
    mamba_conv_kernel: int = 4
    mamba_chunk_size: int = 128
    layernorm_epsilon: float = 1e-5
    init_method_std: float = 0.02
    max_sequence_length: int = 262144

    @property
    def num_layers(self) -> int:
        return len(self.pattern)


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
    """The preset of that name; raises ValueError listing the known ones."""
    if name not in PRESETS:
        raise ValueError(f"policy.model_name={name}: no such preset; known are {', '.join(PRESETS)}")
    return PRESETS[name]
