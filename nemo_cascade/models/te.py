"""Transformer Engine: its attention beside our decoding, what FP8 asks of this machine, matrices that are kept out of it."""

from collections.abc import Collection

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention  # noqa: E402
from megatron.core.quantization.quant_config import MatchContext, QuantizationConfig  # noqa: E402

from nemo_cascade.models.attention import PackedAttention  # noqa: E402

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
        """Transformer Engine's attention for packs, torch's in decoding: its batches are padded on the left, which a causal
        mask of Transformer Engine does not hide."""

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
    import transformer_engine.pytorch.fp8 as te_fp8

    answers = {name: getattr(te_fp8, check, lambda: (True, ""))() for name, check in CHECKS.items()}
    supported, reason = answers[recipe]
    if not supported:
        fitting = [name for name, (other, _) in answers.items() if other]
        advice = f"choose {' or '.join(fitting)}, or set" if fitting else "set"
        raise RuntimeError(
            f"{key}.fp8_recipe={recipe} cannot be run by {torch.cuda.get_device_name()}: {reason} {advice} "
            f"{key}.enabled=false"
        )


def require_recompute(modules: Collection[str]) -> None:
    """Raises RuntimeError for recompute_modules that megatron-core recomputes by Transformer Engine only, where that is missing."""
    needing = sorted({"layernorm", "moe_act"} & {*modules})
    if needing and not HAVE_TE:
        raise RuntimeError(
            f"policy.megatron_cfg.recompute_modules: {' and '.join(needing)} can be recomputed with Transformer Engine's "
            "layers only, and it cannot be imported here; remove them"
        )


def keep_in_bf16(model, matrices: Collection[tuple[int, str]]) -> None:
    """Takes matrices, as (layer of the whole model from 0, name in it), out of the FP8 region around their layer."""
    for layer in model.decoder.layers:
        number = layer.layer_number - 1
        for name, module in layer.named_modules():
            if (number, name) in matrices:
                module.finish_init(QuantizationConfig(BF16, MatchContext(name, number), "bf16"))
