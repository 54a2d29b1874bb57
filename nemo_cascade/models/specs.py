"""megatron-core's hybrid model: the spec, the settings of the Nemotron family, and the model itself.

Layers are Transformer Engine's where it is installed, torch's under the same parameter names otherwise (norms fused in front
of column-parallel layers), so that a checkpoint moves between the two. The same holds for mamba-ssm's kernels.
"""

import dataclasses
from collections.abc import Collection
from types import SimpleNamespace

from nemo_cascade.engine import cpu

cpu.install()

import megatron.core.ssm.mamba_context_parallel as mamba_context_parallel  # noqa: E402
import megatron.core.ssm.mamba_mixer as mamba_mixer  # noqa: E402
import megatron.core.transformer.moe.moe_utils as moe_utils  # noqa: E402
import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.extensions.transformer_engine import (  # noqa: E402
    HAVE_TE,
    TELayerNormColumnParallelLinear,
    TENorm,
    TERowParallelLinear,
    fused_permute,
)
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add  # noqa: E402
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules  # noqa: E402
from megatron.core.ssm.mamba_mixer import MambaMixerSubmodules  # noqa: E402
from megatron.core.tensor_parallel.layers import RowParallelLinear  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402
from megatron.core.transformer.transformer_layer import (  # noqa: E402
    MoETransformerLayer,
    TransformerLayer,
    TransformerLayerSubmodules,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint  # noqa: E402

from nemo_cascade.models import kernels  # noqa: E402
from nemo_cascade.models.config import ModelConfig  # noqa: E402
from nemo_cascade.models.context_parallel import partitioned_indices  # noqa: E402
from nemo_cascade.models.experts import Experts  # noqa: E402
from nemo_cascade.models.layers import NormColumnParallelLinear, RMSNorm, relu2  # noqa: E402
from nemo_cascade.models.mamba import (  # noqa: E402
    GatedRMSNorm,
    chunk_scan,
    conv_update,
    selective_state_update,
    split_conv1d_scan,
)
from nemo_cascade.models.megatron import (  # noqa: E402
    PATTERN,
    HybridModel,
    HybridStackSubmodules,
    decoding_kernel,
    hybrid_block,
    moe_spec,
)
from nemo_cascade.models.replay import place_replays  # noqa: E402
from nemo_cascade.models.router import Router  # noqa: E402
from nemo_cascade.models.stack import Mixer, Stack  # noqa: E402
from nemo_cascade.models.te import (  # noqa: E402
    Attention,
    fill_blocks,
    group_products,
    keep_in_bf16,
    require_fp8,
    require_recompute,
)

# Both, because mamba-ssm's training kernel calls causal-conv1d's.
HAVE_MAMBA_KERNELS = mamba_mixer.HAVE_MAMBA_SSM and mamba_mixer.causal_conv1d_fn is not None


class ShardedGatedRMSNorm(GatedRMSNorm):
    """The mixer's norm with mcore's checkpoint description: its channels are split over tensor ranks."""

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=metadata["dp_cp_group"],
        )


def use_torch_kernels() -> None:
    """Puts the torch forms where mcore's modules look up what is not installed of mamba-ssm and Transformer Engine."""
    if not HAVE_MAMBA_KERNELS:
        mamba_mixer.HAVE_MAMBA_SSM = True
        mamba_mixer.ExtendedRMSNorm = ShardedGatedRMSNorm
        mamba_mixer.mamba_chunk_scan_combined = chunk_scan
        mamba_mixer.mamba_split_conv1d_scan_combined = split_conv1d_scan
        mamba_mixer.selective_state_update = decoding_kernel(selective_state_update, 1, 2, 4, 5)
        mamba_mixer.causal_conv1d_update = decoding_kernel(conv_update, 0)
        mamba_mixer._check_mamba_sequence_packing_support = lambda for_inference_not_training=False: (True, None)
    if not HAVE_TE:
        hybrid_block.TENorm = RMSNorm
    if mamba_context_parallel.tex is None:
        mamba_context_parallel.tex = SimpleNamespace(thd_get_partitioned_indices=partitioned_indices)
        mamba_context_parallel.is_te_min_version = lambda version: True
    if not hasattr(moe_utils, "te_general_gemm"):
        # Looked up by the fp32 router even where it is then not called.
        moe_utils.te_general_gemm = None


def stack_spec(conv_kernel: int = 4) -> ModuleSpec:
    """The hybrid stack: one norm and one mixer (Mamba-2, attention or MoE) a layer, each with a residual.

    conv_kernel: taps of Mamba's convolution, which megatron-core's configuration has no field for.
    """
    use_torch_kernels()
    norm = TENorm if HAVE_TE else RMSNorm
    column = TELayerNormColumnParallelLinear if HAVE_TE else NormColumnParallelLinear
    row = TERowParallelLinear if HAVE_TE else RowParallelLinear
    mamba = ModuleSpec(
        module=Mixer,
        params={"d_conv": conv_kernel},
        submodules=MambaMixerSubmodules(in_proj=column, out_proj=row),
    )
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(linear_qkv=column, core_attention=Attention, linear_proj=row),
    )
    moe = moe_spec(HAVE_TE, Router, None if HAVE_TE else Experts)
    layers = HybridStackSubmodules(
        mamba_layer=ModuleSpec(
            module=MambaLayer, submodules=MambaLayerSubmodules(mixer=mamba, mamba_bda=get_bias_dropout_add)
        ),
        attention_layer=ModuleSpec(
            module=TransformerLayer,
            submodules=TransformerLayerSubmodules(self_attention=attention, self_attn_bda=get_bias_dropout_add),
        ),
        moe_layer=ModuleSpec(
            module=MoETransformerLayer,
            submodules=TransformerLayerSubmodules(pre_mlp_layernorm=norm, mlp=moe, mlp_bda=get_bias_dropout_add),
        ),
    )
    return ModuleSpec(module=Stack, submodules=layers)


# As Megatron-LM's `--spec nemo_cascade.models.specs nemotron_stack_spec` takes it (docs/nemo.md).
nemotron_stack_spec = stack_spec()


def transformer_config(preset: ModelConfig, **settings) -> TransformerConfig:
    """megatron-core's TransformerConfig of a preset. Raises what `transformer_settings` raises."""
    return TransformerConfig(**transformer_settings(preset, **settings))


def transformer_settings(preset: ModelConfig, **settings) -> dict:
    """What a preset sets in a TransformerConfig: the family's rules, the preset's sizes, then `settings`, which win.

    Raises RuntimeError for FP8 without Transformer Engine or without a GPU that has it, and for what else needs the former.
    """
    if settings.get("fp8"):
        require_fp8(settings["fp8_recipe"])
    require_recompute(settings.get("recompute_modules") or ())
    same_name = {field.name for field in dataclasses.fields(TransformerConfig)}
    sizes = {name: value for name, value in dataclasses.asdict(preset).items() if name in same_name}
    family = dict(
        num_layers=preset.num_layers,
        ffn_hidden_size=preset.moe_ffn_hidden_size,
        is_hybrid_model=True,
        normalization="RMSNorm",
        add_bias_linear=False,
        gated_linear_unit=False,
        activation_func=relu2,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True,
        moe_router_dtype="fp32",
        moe_token_dispatcher_type="alltoall",
        moe_grouped_gemm=HAVE_TE,
        moe_permute_fusion=fused_permute is not None,
        # Linear layers are drawn whole and then split, so they start the same at every tensor-parallel size. Mamba's own
        # parameters and, under expert parallel, the experts do not: equal layouts need a checkpoint to start from.
        use_cpu_initialization=True,
        pipeline_dtype=settings.get("params_dtype", torch.float32),
    )
    return {**family, **sizes, **settings}


def build_model(
    preset: ModelConfig, config: TransformerConfig, in_bf16: Collection[tuple[int, str]] = ()
) -> HybridModel:
    """mcore's hybrid model of a preset, without positions, embeddings and output weights apart: this pipeline stage's part.

    in_bf16: (layer, name) of matrices that stay in BF16 when `config` has FP8 (`fp8.matrices_in_bf16`).
    """
    # Built now and not in the first step.
    kernels.library()
    model = HybridModel(
        config,
        stack_spec(preset.mamba_conv_kernel),
        vocab_size=preset.vocab_size,
        max_sequence_length=preset.max_sequence_length,
        **{PATTERN: preset.pattern},
        position_embedding_type="none",
        share_embeddings_and_output_weights=False,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    place_replays(model, preset.pattern)
    keep_in_bf16(model, in_bf16)
    if config.fp8:
        fill_blocks(model, config.fp8_recipe)
    else:
        group_products(model)
    return model
