"""What a Nemotron hybrid network is, as plain numbers: nothing here imports torch or megatron-core.

How it is laid out over ranks and in which precision it trains is the policy's.
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

    @property
    def mamba_in_proj_size(self) -> int:
        """Rows of a Mamba layer's projection in: the gate z and the inputs x, B, C and dt; tensor ranks share them."""
        inner = self.mamba_num_heads * self.mamba_head_dim
        return 2 * inner + 2 * self.mamba_num_groups * self.mamba_state_dim + self.mamba_num_heads
