"""All that differs between megatron-core 0.16 and 0.19, decided by what is there.

The hybrid model moved from `mamba` to `hybrid`; what a MoE layer is built of is bound in functools.partial instead of a
ModuleSpec; packs say themselves which token is of which document; whether a forward pass decodes is a flag of the process;
decoding has an axis of tokens, and keeps Mamba's decay rates from one token to the next.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterable

from nemo_cascade.engine import cpu

cpu.install()

import megatron.core.inference.utils as inference_utils  # noqa: E402
import torch  # noqa: E402
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec  # noqa: E402
from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.ssm.mamba_mixer import MambaMixer  # noqa: E402

try:
    import megatron.core.models.hybrid.hybrid_block as hybrid_block
    from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
    from megatron.core.models.hybrid.hybrid_model import HybridModel
except ImportError:
    import megatron.core.ssm.mamba_block as hybrid_block
    from megatron.core.models.mamba.mamba_model import MambaModel as HybridModel
    from megatron.core.ssm.mamba_block import MambaStack as HybridStack
    from megatron.core.ssm.mamba_block import MambaStackSubmodules as HybridStackSubmodules

__all__ = ["HybridModel", "HybridStack", "HybridStackSubmodules", "PackedSeqParams", "hybrid_block"]
__all__ += ["PATTERN", "conv_of", "decoding", "decoding_kernel", "moe_spec", "packed_params", "weights_changed"]

# The newer ones number each token's document when the parameters are made, from this; without it documents run together.
_COUNTS_TOKENS = any(field.name == "total_tokens" for field in dataclasses.fields(PackedSeqParams))
# The argument that is the network's pattern of layers.
_NAMES = ("hybrid_layer_pattern", "hybrid_override_pattern")
PATTERN = next(name for name in _NAMES if name in inspect.signature(HybridModel).parameters)
# Newer ones may decode several tokens of a row at once, for speculative decoding.
_HAS_TOKEN_AXIS = "intermediate_conv_state" in inspect.signature(MambaMixer._ssm_decode).parameters


def packed_params(boundaries: torch.Tensor, longest: int) -> PackedSeqParams:
    """boundaries [documents + 1], int32 from 0 to the pack's tokens; longest: tokens of the longest document."""
    lengths = dict(cu_seqlens_q=boundaries, cu_seqlens_kv=boundaries, max_seqlen_q=longest, max_seqlen_kv=longest)
    total = dict(total_tokens=int(boundaries[-1])) if _COUNTS_TOKENS else {}
    return PackedSeqParams(qkv_format="thd", **lengths, **total)


def decoding() -> contextlib.AbstractContextManager:
    """Around forward passes with an inference context, which are training's outside of it."""
    mode = getattr(inference_utils, "InferenceMode", None)
    return mode.active() if mode else contextlib.nullcontext()


def weights_changed(mixers: Iterable[MambaMixer]) -> None:
    """To be called before decoding with other weights than in the last step: what mixers keep of them is stale."""
    for mixer in mixers:
        mixer._A_neg_exp_cache_stale = True


def conv_of(mixer: MambaMixer) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [channels, width] and bias [channels] of a mixer's convolution."""
    conv = getattr(mixer, "conv1d", None)
    weight, bias = (conv.weight, conv.bias) if conv is not None else (mixer.conv1d_weight, mixer.conv1d_bias)
    return weight[:, 0], bias


def decoding_kernel(kernel, *one_token: int):
    """A kernel for one token a row, as the mixer calls it: its arguments at these places may have an axis of one token.

    Raises ValueError, when called, for speculative decoding.
    """

    @functools.wraps(kernel)
    def with_axis(*args, intermediate_conv_states=None, intermediate_ssm_states=None, **kwargs):
        if intermediate_conv_states is not None or intermediate_ssm_states is not None:
            raise ValueError("speculative decoding needs the CUDA kernels")
        # First, as hidden states have it: only dynamic batching turns tokens and rows around.
        args = [arg[0] if place in one_token else arg for place, arg in enumerate(args)]
        return kernel(*args, **kwargs)[None]

    return with_axis if _HAS_TOKEN_AXIS else kernel


def moe_spec(use_te: bool, router: type, experts: type | None = None):
    """A TransformerLayer's MoE part with our router and, unless None, our experts in place of megatron-core's sequential ones."""
    # Any number says that there are experts; how many is the configuration's.
    spec = get_moe_module_spec(use_te=use_te, num_experts=1, moe_grouped_gemm=use_te)
    bound = isinstance(spec, functools.partial)
    submodules = spec.keywords["submodules"] if bound else spec.submodules
    submodules.router = router
    if experts is not None and bound:
        submodules.experts = functools.partial(experts, **submodules.experts.keywords)
    elif experts is not None:
        submodules.experts.module = experts
    return spec
