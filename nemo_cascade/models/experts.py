"""The experts of a MoE layer with few large operations in place of many small ones: megatron-core's sequential experts, made fast.

Per expert only the matrix products remain, and they write into one buffer; activation and routing weight are applied to all
experts' tokens at once, forward and backward.
"""

import itertools

import torch
from megatron.core.transformer.moe.experts import SequentialMLP

from nemo_cascade.models import kernels
from nemo_cascade.models.layers import relu2


class ExpertsFunction(torch.autograd.Function):
    """y = p * relu(x W1_e^T)^2 W2_e^T for x's rows, sorted by their expert e.

    x [tokens, hidden], probs [tokens], sizes: rows of each expert; weights: all W1_e [ffn, hidden], then all W2_e [hidden, ffn].
    accumulate: weights' gradients are added to their `main_grad`.
    """

    @staticmethod
    def forward(ctx, x, probs, sizes, accumulate, *weights):
        rows = rows_of(sizes)
        out, active, scaled, ctx.fused = products(x, probs, rows, weights[: len(rows)], weights[len(rows) :])
        ctx.rows, ctx.accumulated = rows, weights if accumulate else None
        ctx.save_for_backward(x, probs, active, scaled, *weights)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, probs, active, scaled, *weights = ctx.saved_tensors
        rows = ctx.rows
        first, second = weights[: len(rows)], weights[len(rows) :]
        grad_active, grad_x = torch.empty_like(active), torch.empty_like(x)
        for row, weight in zip(rows, second):
            torch.mm(grad[row], weight, out=grad_active[row])
        # d/dh p relu(h)^2 = 2 p relu(h)
        if ctx.fused:
            grad_probs = torch.empty_like(probs)
            kernels.call("relu2_backward", *active.shape, active, probs, grad_active, grad_active, grad_probs)
        else:
            grad_active.mul_(active)
            grad_probs = (grad_active * active).sum(-1, dtype=probs.dtype)
            grad_active.mul_(2 * probs[:, None])
        for row, weight in zip(rows, first):
            torch.mm(grad_active[row], weight, out=grad_x[row])
        factors = [(grad_active[row].t(), x[row]) for row in rows] + [(grad[row].t(), scaled[row]) for row in rows]
        if ctx.accumulated is None:
            return grad_x, grad_probs, None, None, *(one @ other for one, other in factors)
        for weight, (one, other) in zip(ctx.accumulated, factors):
            weight.main_grad.addmm_(one, other)
            weight.grad_added_to_main_grad = True
        return grad_x, grad_probs, None, None, *(None for _ in weights)


def rows_of(sizes: list[int]) -> list[slice]:
    """Where each expert's rows are."""
    return [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes))]


def products(x, probs, rows, first, second) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """(y of `ExpertsFunction`, what the activation was given or gave, p times what it gave, whether the kernels did it)."""
    active = x.new_empty(len(x), first[0].shape[0])
    for row, weight in zip(rows, first):
        torch.mm(x[row], weight.t(), out=active[row])
    fused = kernels.usable(active, probs, widths=active.shape[1:])
    if fused:
        scaled = torch.empty_like(active)
        kernels.call("relu2_forward", *active.shape, active, probs, scaled)
    else:
        active.relu_()
        scaled = (active.square() * probs[:, None]).to(x.dtype)
    out = torch.empty_like(x)
    for row, weight in zip(rows, second):
        torch.mm(scaled[row], weight.t(), out=out[row])
    return out, active, scaled, fused


class Experts(SequentialMLP):
    """megatron-core's module with its parameters and checkpoints; relu^2 experts without bias, as the family has them.

    Raises ValueError for a config that says otherwise.
    """

    def __init__(self, num_local_experts, config, *args, **kwargs):
        other = config.gated_linear_unit or config.add_bias_linear or config.moe_apply_probs_on_input
        if other or config.activation_func is not relu2:
            raise ValueError(
                "these experts are relu^2 without gate or bias, weighted by the router after the activation; leave gated_linear_unit, "
                "add_bias_linear, moe_apply_probs_on_input and activation_func out of policy.megatron_cfg.model_overrides"
            )
        super().__init__(num_local_experts, config, *args, **kwargs)
        self.gradient_accumulation_fusion = False

    def forward(self, permuted_local_hidden_states, tokens_per_expert, permuted_probs):
        """[tokens, hidden] sorted by local expert -> ([tokens, hidden], None)."""
        weights = [expert.linear_fc1.weight for expert in self.local_experts]
        weights += [expert.linear_fc2.weight for expert in self.local_experts]
        sizes = tokens_per_expert.tolist()
        accumulate = self.gradient_accumulation_fusion and weights[0].requires_grad
        return ExpertsFunction.apply(permuted_local_hidden_states, permuted_probs, sizes, accumulate, *weights), None
