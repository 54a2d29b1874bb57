"""RMSNorm with its own backward, which takes fewer passes over memory than autograd's."""

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from megatron.core.tensor_parallel.random import is_checkpointing  # noqa: E402
from torch.autograd.function import once_differentiable  # noqa: E402

from nemo_cascade.models import kernels  # noqa: E402


class RMSNormFunction(torch.autograd.Function):
    """x and weight as in `rms_norm`."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = (x.to(torch.promote_types(x.dtype, torch.float32)).square().mean(-1, keepdim=True) + eps).rsqrt()
        normed = (x * scale).to(x.dtype)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, grad):
        normed, scale, weight = ctx.saved_tensors
        grad_weight = (grad * normed).flatten(0, -1 - weight.dim()).sum(0)
        grad_normed = grad * weight
        along = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = torch.addcmul(grad_normed, normed, along, value=-1).mul_(scale)
        return grad_x, grad_weight, None


class FusedRMSNorm(torch.autograd.Function):
    """RMSNormFunction by the kernels."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        out, *saved = fused_norm(x, weight, eps)
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        kernels.call("norm_backward", *_sizes(x, weight), x, weight, scale, grad.contiguous(), grad_x, grad_weight)
        return grad_x, grad_weight, None


def fused_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    """(what `rms_norm` returns, and in one piece x, weight and 1 / rms(x))."""
    x, weight = x.contiguous(), weight.contiguous()
    scale, out = x.new_empty(x.shape[:-1]), torch.empty_like(x)
    kernels.call("norm_forward", *_sizes(x, weight), x, weight, eps, scale, out)
    return out, x, weight, scale


def _sizes(x: torch.Tensor, weight: torch.Tensor) -> tuple[int, int, int]:
    """(rows, groups, width)."""
    return x.numel() // weight.numel(), weight.numel() // x.shape[-1], x.shape[-1]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight, the mean over the last axis; x [.., *weight.shape] with at least one axis more than weight."""
    if kernels.usable(x, weight, widths=x.shape[-1:]):
        return FusedRMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else fused_norm(x, weight, eps)[0]
    if not (torch.is_grad_enabled() or is_checkpointing()):
        # Decoding normalises few rows at a time, where calling an autograd function takes as long as what it does. What
        # will be recomputed in the backward pass must come out the same then, to the bit: else a token near a tie would
        # change experts.
        return F.rms_norm(x, x.shape[-1:], eps=eps) * weight
    return RMSNormFunction.apply(x, weight, eps)
