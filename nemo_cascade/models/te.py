"""Transformer Engine: whether it is here, what FP8 asks of this machine, and single matrices kept out of it."""

from collections.abc import Collection

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
from megatron.core.extensions.transformer_engine import HAVE_TE  # noqa: E402
from megatron.core.quantization.quant_config import MatchContext, QuantizationConfig  # noqa: E402

# The compute capability of the first GPUs with matrix products for a recipe: Ada, Hopper, Blackwell.
CAPABILITY = {"tensorwise": (8, 9), "delayed": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}

# As megatron-core's quantization recipes say that a matrix is in BF16, in training and in evaluation.
BF16 = {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {}}


def require_fp8(recipe: str) -> None:
    """Raises RuntimeError, naming the key and what to do, where a model in FP8 cannot be built."""
    key = "policy.megatron_cfg.fp8_cfg"
    if not HAVE_TE:
        raise RuntimeError(
            f"{key}.enabled=true needs Transformer Engine, which cannot be imported here; install transformer-engine[pytorch] "
            "(NGC images have it) or set it to false"
        )
    needed = CAPABILITY[recipe]
    if not torch.cuda.is_available():
        raise RuntimeError(f"{key}.enabled=true needs a GPU of compute capability {needed[0]}.{needed[1]}, and there is none here; set it to false")
    found = torch.cuda.get_device_capability()
    if found < needed:
        fitting = [name for name, least in CAPABILITY.items() if least <= found]
        advice = f"choose {' or '.join(fitting)}, or set" if fitting else "set"
        raise RuntimeError(
            f"{key}.fp8_recipe={recipe} needs a GPU of compute capability {needed[0]}.{needed[1]}, and this one "
            f"({torch.cuda.get_device_name()}) has {found[0]}.{found[1]}; {advice} {key}.enabled=false"
        )


def keep_in_bf16(model, matrices: Collection[tuple[int, str]]) -> None:
    """Takes matrices, as (layer of the whole model from 0, name inside it), out of the FP8 region around their layer."""
    for layer in model.decoder.layers:
        number = layer.layer_number - 1
        for name, module in layer.named_modules():
            if (number, name) in matrices:
                module.finish_init(QuantizationConfig(BF16, MatchContext(name, number), "bf16"))
