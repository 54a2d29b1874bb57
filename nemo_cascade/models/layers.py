"""Torch layers under Transformer Engine's parameter names, so that a checkpoint moves between the two.

`RMSNorm` stands where the TE spec has TENorm, `NormColumnParallelLinear` where it has TELayerNormColumnParallelLinear
(`layer_norm_weight` and `weight`).
"""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from torch.autograd.function import once_differentiable

from nemo_cascade.models import kernels
from nemo_cascade.models.norm import rms_norm


class RMSNorm(torch.nn.Module):
    """y = x / rms(x) * weight over the last axis [.., hidden]; its gradient is summed over tensor ranks under sequence parallel."""

    def __init__(self, config, hidden_size: int, eps: float = 1e-5, **_):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


class NormColumnParallelLinear(ColumnParallelLinear):
    """RMSNorm, then a column-parallel linear layer; input [sequence, batch, input_size]."""

    def __init__(self, input_size: int, output_size: int, *, config, **settings):
        super().__init__(input_size, output_size, config=config, **settings)
        self.eps = config.layernorm_epsilon
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))
        self.layer_norm_weight.sequence_parallel = config.sequence_parallel

    def forward(self, x, *args, **kwargs):
        return super().forward(rms_norm(x, self.layer_norm_weight, self.eps), *args, **kwargs)


def relu2(x: torch.Tensor) -> torch.Tensor:
    """relu(x)^2, the experts' activation."""
    fused = torch.is_grad_enabled() and kernels.usable(x, widths=x.shape[-1:])
    return FusedRelu2.apply(x) if fused else F.relu(x).square()


class FusedRelu2(torch.autograd.Function):
    """`relu2` by the kernels."""

    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        out = torch.empty_like(x)
        kernels.call("relu2_forward", x.numel() // x.shape[-1], x.shape[-1], x, None, out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,), grad_x = ctx.saved_tensors, torch.empty_like(grad, memory_format=torch.contiguous_format)
        kernels.call("relu2_backward", x.numel() // x.shape[-1], x.shape[-1], x, None, grad.contiguous(), grad_x, None)
        return grad_x
