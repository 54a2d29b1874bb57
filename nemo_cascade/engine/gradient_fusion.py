"""Weights' gradients added to `main_grad` by the very product that makes them, not in a pass of its own over both: which layers can.

`policy.megatron_cfg.gradient_accumulation_fusion` is true, false or auto: each layer that can. Transformer Engine's layers have kernels
of their own. megatron-core's linear layers call Apex's extension `fused_weight_gradient_mlp_cuda` where it can be imported and, in
float32 on a CPU, what `engine.cpu` puts in its place. Our experts' one product takes a `main_grad` of the weights' own type.
"""

from nemo_cascade.engine import cpu

cpu.install()

import megatron.core.tensor_parallel.layers as layers  # noqa: E402
import torch  # noqa: E402

from nemo_cascade.models.experts import Experts  # noqa: E402

KEY = "policy.megatron_cfg.gradient_accumulation_fusion"
# What Transformer Engine's layers and megatron-core's call it.
THEIRS, OURS = "fuse_wgrad_accumulation", "gradient_accumulation_fusion"


def fuse(model: torch.nn.Module, asked: bool | str) -> int:
    """Tells each layer whether to do so; how many will. The weights must have a `main_grad`.

    Raises RuntimeError, naming the key, where it is asked for and none can.
    """
    modules = [module for module in model.modules() if hasattr(module, THEIRS) or hasattr(module, OURS)]
    fused = [module for module in modules if asked is not False and can(module)]
    if asked is True and not fused:
        raise RuntimeError(
            f"{KEY}=true: no layer can here; on a GPU that takes Transformer Engine or Apex's fused_weight_gradient_mlp_cuda "
            "(nemo-cascade doctor says why it does not load), on a CPU policy.precision=float32. Set it to auto or false"
        )
    for module in modules:
        setattr(module, THEIRS if hasattr(module, THEIRS) else OURS, module in fused)
    return len(fused)


def can(module: torch.nn.Module) -> bool:
    """Whether a layer's gradients can be added so, here and in its weights' type."""
    if hasattr(module, THEIRS):
        return True
    weight = next(module.parameters(), None)
    same = weight is not None and weight.dtype == torch.float32
    if isinstance(module, Experts):
        return same
    # Apex's has products of bfloat16 for a float32 sum as well.
    return layers._grad_accum_fusion_available and (same or (weight is not None and weight.is_cuda))
