"""Transformer Engine: its attention beside our decoding, what FP8 asks of this machine, which blocks experts' tokens
fill, matrices that are kept out of FP8, all experts' products in one."""

import functools
from collections.abc import Collection

from nemo_cascade.engine import cpu

cpu.install()

import megatron.core.transformer.moe.moe_utils as moe_utils  # noqa: E402
import torch  # noqa: E402
from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention, TEGroupedLinear  # noqa: E402
from megatron.core.quantization.quant_config import MatchContext, QuantizationConfig  # noqa: E402

from nemo_cascade.models.attention import PackedAttention  # noqa: E402
from nemo_cascade.models.fp8 import MULTIPLE  # noqa: E402
from nemo_cascade.models.grouped import grouped_product, usable  # noqa: E402

# What the router fills each expert's tokens up to: megatron-core's own would be 16 under blockwise scaling as well.
moe_utils.get_fp8_align_size = MULTIPLE.__getitem__

# Transformer Engine's own questions whether this GPU and its CUDA have a recipe; each returns (answer, reason).
CHECKS = {
    "tensorwise": "check_fp8_support",
    "delayed": "check_fp8_support",
    "mxfp8": "check_mxfp8_support",
    "blockwise": "check_fp8_block_scaling_support",
}

# As megatron-core's quantization recipes say that a matrix is in BF16, in training and in evaluation.
BF16 = {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {}}


if HAVE_TE:

    class Attention(TEDotProductAttention):
        """Transformer Engine's attention for packs, torch's in decoding: its batches are padded on the left, which a
        causal mask of Transformer Engine does not hide."""

        def __init__(self, *args, pg_collection=None, **kwargs):
            super().__init__(*args, pg_collection=pg_collection, **kwargs)
            self.decoding = PackedAttention(*args, pg_collection=pg_collection, **kwargs)

        def forward(self, query, key, value, attention_mask, *args, packed_seq_params=None, **kwargs):
            if packed_seq_params is None and not self.training:
                return self.decoding(query, key, value, attention_mask)
            kwargs["packed_seq_params"] = packed_seq_params
            return super().forward(query, key, value, attention_mask, *args, **kwargs)

else:
    Attention = PackedAttention


def require_fp8(recipe: str) -> None:
    """Raises RuntimeError, naming the key and what to do, where a model in FP8 cannot be built."""
    key = "policy.megatron_cfg.fp8_cfg"
    if not HAVE_TE:
        raise RuntimeError(
            f"{key}.enabled=true needs Transformer Engine, which cannot be imported here; install "
            "transformer-engine[pytorch] (NGC images have it) or set it to false"
        )
    if not torch.cuda.is_available():
        raise RuntimeError(f"{key}.enabled=true needs a GPU, and there is none here; set it to false")
    supported, reason = answer(recipe)
    if not supported:
        fitting = [name for name in CHECKS if answer(name)[0]]
        advice = f"choose {' or '.join(fitting)}, or set" if fitting else "set"
        raise RuntimeError(
            f"{key}.fp8_recipe={recipe} cannot be run by {torch.cuda.get_device_name()}: {reason} {advice} "
            f"{key}.enabled=false"
        )


def answer(recipe: str) -> tuple[bool, str]:
    """Whether this GPU and its CUDA can run a recipe, and why not; not, where Transformer Engine cannot be asked."""
    import transformer_engine
    import transformer_engine.pytorch.fp8 as te_fp8

    check = getattr(te_fp8, CHECKS[recipe], None)
    if check is None:
        version = transformer_engine.__version__
        return False, f"Transformer Engine {version} has no {CHECKS[recipe]} to ask; install another (2.8 has it)."
    return check()


def require_recompute(modules: Collection[str]) -> None:
    """Raises RuntimeError for recompute_modules that need Transformer Engine's layers, where they are missing."""
    needing = sorted({"layernorm", "moe_act"} & {*modules})
    if needing and not HAVE_TE:
        raise RuntimeError(
            f"policy.megatron_cfg.recompute_modules: {' and '.join(needing)} can be recomputed with Transformer "
            "Engine's layers only, and it cannot be imported here; remove them"
        )


def keep_in_bf16(model, matrices: Collection[tuple[int, str]]) -> None:
    """Takes matrices, as (layer of the whole model from 0, name in it), out of the FP8 region around their layer."""
    for layer in model.decoder.layers:
        number = layer.layer_number - 1
        for name, module in layer.named_modules():
            if (number, name) in matrices:
                module.finish_init(QuantizationConfig(BF16, MatchContext(name, number), "bf16"))


def fill_blocks(model, recipe: str) -> None:
    """Has the experts fill up their tokens to whole blocks of a recipe; Transformer Engine's own would be 16 or 32."""
    for module in model.modules():
        for name in ("quantization_padding", "quantization_unpadding"):
            if hasattr(module, name):
                getattr(module, name).align_size = MULTIPLE[recipe]


def group_products(model) -> None:
    """Has the experts' layers multiply all at once where they can, without FP8. Transformer Engine launches a product for each."""
    for module in model.modules():
        if HAVE_TE and isinstance(module, TEGroupedLinear):
            module.forward = functools.partial(_grouped_forward, module)


def _grouped_forward(layer, x, sizes):
    weights = [getattr(layer, f"weight{number}") for number in range(layer.num_gemms)]
    if layer.config.delay_wgrad_compute or layer.use_bias or not usable(x, weights):
        return type(layer).forward(layer, x, sizes)
    return grouped_product(x, sizes, weights), None
