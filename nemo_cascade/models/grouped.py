"""Products of all experts with their tokens in one launch each: torch's grouped_mm in place of a product an expert.

With 128 experts a layer a step waits for launches: six times 128 products of a few hundred tokens. Here the weights, which
are parameters each, are laid side by side for a moment, which takes two passes over their memory, and their gradients are
added to `main_grad` by one kernel.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# Newer than the torch of some images; there experts are multiplied one by one.
GROUPED_MM = getattr(F, "grouped_mm", None)


def usable(x: torch.Tensor, weights: list[torch.Tensor]) -> bool:
    """Whether `grouped_product` takes them: bfloat16 on a GPU, and weights that are trained have a float32 `main_grad`."""
    if GROUPED_MM is None or not x.is_cuda or x.dtype != torch.bfloat16 or not len(x):
        return False
    # Their rows begin where 16 bytes do.
    aligned = all(side % 8 == 0 for side in weights[0].shape)
    trained = torch.is_grad_enabled() and weights[0].requires_grad
    total = getattr(weights[0], "main_grad", None)
    return aligned and (not trained or (total is not None and total.dtype == torch.float32))


def grouped_product(x: torch.Tensor, sizes: list[int], weights: list[torch.Tensor]) -> torch.Tensor:
    """x W_e^T for x's rows [tokens, in], sorted by their expert e, which has sizes[e] of them; weights: all W_e [out, in].

    Backwards the weights' gradients are added to their `main_grad`.
    """
    ends = torch.tensor(sizes, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(x.device, non_blocking=True)
    return GroupedProduct.apply(x, ends, *weights)


class GroupedProduct(torch.autograd.Function):
    """ends: where each expert's rows end, int32."""

    @staticmethod
    def forward(ctx, x, ends, *weights):
        ctx.save_for_backward(x, ends, *weights)
        return GROUPED_MM(x, torch.stack(weights).transpose(1, 2), offs=ends)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, ends, *weights = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), None
        if ctx.needs_input_grad[0]:
            grad_x = GROUPED_MM(grad, torch.stack(weights), offs=ends)
        if ctx.needs_input_grad[2]:
            add_gradients([weight.main_grad for weight in weights], GROUPED_MM(grad.t(), x, offs=ends), ends)
            for weight in weights:
                weight.grad_added_to_main_grad = True
        return grad_x, None, *(None for _ in weights)


def add_gradients(sums: list[torch.Tensor], gradients: torch.Tensor, ends: torch.Tensor) -> None:
    """Adds gradients [experts, out, in] to an expert's sum each; one without tokens keeps its sum."""
    if not gradients.is_cuda:
        for total, gradient, size in zip(sums, gradients, ends.diff(prepend=ends.new_zeros(1)).tolist()):
            if size:
                total.add_(gradient)
        return
    from nemo_cascade.models.grouped_kernel import add  # late, because there is Triton only where there are GPUs

    add(sums, gradients, ends)
