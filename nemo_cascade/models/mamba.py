"""Mamba-2 in torch: the depthwise convolution, the scan's callers and the gated norm, with packed documents.

Stand behind the names megatron-core's MambaMixer imports from mamba-ssm (`mamba_chunk_scan_combined`,
`mamba_split_conv1d_scan_combined`, `selective_state_update`, RMSNormGated) and causal-conv1d (`causal_conv1d_update`).
`seq_idx` [batch, length] numbers a row's documents; neither convolution nor state crosses from one to the next.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nemo_cascade.models import kernels
from nemo_cascade.models.norm import rms_norm
from nemo_cascade.models.scan import CHUNK, scan_masks, ssd


class PackedConv(torch.autograd.Function):
    """silu of the depthwise causal convolution [b, l, d] that starts anew with each document, with its own backward pass.

    weight [d, width], bias [d], foreign as `foreign_rows` gives it.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, foreign):
        taps, out = weight.t().contiguous(), x.new_empty(x.shape)
        torch.addcmul(bias, x, taps[-1], out=out)
        for k, rows in enumerate(foreign, 1):
            kept = out.view(-1, len(bias))[rows]
            out[:, k:].addcmul_(x[:, :-k], taps[-1 - k])
            out.view(-1, len(bias))[rows] = kept
        ctx.save_for_backward(x, taps, out)
        ctx.foreign = foreign
        return F.silu(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, taps, out = ctx.saved_tensors
        grad = torch.ops.aten.silu_backward(grad.contiguous(), out)
        grad_bias, grad_x = grad.sum((0, 1)), grad * taps[-1]
        grad_taps = [torch.linalg.vecdot(grad, x, dim=1).sum(0)]
        for k, rows in enumerate(ctx.foreign, 1):
            # What does not look k back does not look farther back either.
            grad.view(-1, grad.shape[-1])[rows] = 0
            grad_x[:, :-k].addcmul_(grad[:, k:], taps[-1 - k])
            grad_taps.append(torch.linalg.vecdot(grad[:, k:], x[:, :-k], dim=1).sum(0))
        return grad_x, torch.stack(grad_taps[::-1], 1), grad_bias, None


def foreign_rows(seq_idx: torch.Tensor, width: int) -> list[torch.Tensor]:
    """For k = 1 .. width - 1 the places in [b * l] whose token k back is of another document."""
    length = seq_idx.shape[1]
    other = [F.pad(seq_idx[:, k:] != seq_idx[:, : max(length - k, 0)], (min(k, length), 0)) for k in range(1, width)]
    return [mask.flatten().nonzero()[:, 0] for mask in other]


def split_conv1d_scan(
    zxBCdt, conv_weight, conv_bias, dt_bias, A, D, chunk_size, headdim=None, ngroups=1, seq_idx=None, **_
) -> torch.Tensor:
    """mcore's training path: [b, l, z + x + B + C + dt] -> y * silu(z) [b, l, heads * headdim].

    The norm that follows the gate is the mixer's own module, and chunk_size that of the CUDA kernel.
    """
    inner = A.shape[0] * headdim
    state = (zxBCdt.shape[-1] - 2 * inner - A.shape[0]) // (2 * ngroups)
    z, xBC, dt = zxBCdt.split([inner, inner + 2 * ngroups * state, A.shape[0]], -1)
    if seq_idx is None:
        seq_idx = torch.zeros(zxBCdt.shape[:2], dtype=torch.int32, device=zxBCdt.device)
    parameters = conv_weight, conv_bias, dt_bias, A, D
    if kernels.usable(zxBCdt, *parameters, widths=(headdim, state)) and D.dim() == 1:
        return FusedMixer.apply(zxBCdt, *parameters, seq_idx, ngroups)
    xBC = PackedConv.apply(xBC, conv_weight, conv_bias, foreign_rows(seq_idx, conv_weight.shape[1]))
    x, B, C = xBC.split([inner, ngroups * state, ngroups * state], -1)
    x = x.unflatten(-1, (A.shape[0], headdim))
    B, C = (t.unflatten(-1, (ngroups, state)) for t in (B, C))
    y = ssd(x, F.softplus(dt + dt_bias), A, B, C, D, scan_masks(seq_idx, x.shape[1]))
    return (y.flatten(-2) * F.silu(z)).to(zxBCdt.dtype)


class FusedMixer(torch.autograd.Function):
    """`split_conv1d_scan` by the kernels."""

    @staticmethod
    def forward(ctx, zxBCdt, weight, bias, dt_bias, A, D, seq_idx, groups):
        zxBCdt, taps, (bias, D) = zxBCdt.contiguous(), weight.t().contiguous(), (t.contiguous() for t in (bias, D))
        z, xBC, dt = zxBCdt.split(_widths(zxBCdt, taps, A), -1)
        reach = _reach(seq_idx, len(taps))
        active = torch.empty_like(xBC, memory_format=torch.contiguous_format)
        kernels.call("conv_forward", *_conv_sizes(zxBCdt, taps), xBC, zxBCdt.shape[-1], taps, bias, reach, active)
        step = F.softplus(dt + dt_bias)
        decay = (step * A).exp_().masked_fill_((reach == 0)[..., None], 0)
        sizes = _scan_sizes(z, active, A, groups)
        y, gated = (torch.empty_like(z, memory_format=torch.contiguous_format) for _ in range(2))
        batch, length, heads, _, p, n = sizes
        states = z.new_empty(batch, heads, -(-length // CHUNK), n, p)
        kernels.call("scan_forward", *sizes, active, step, decay, D, z, zxBCdt.shape[-1], y, gated, states)
        ctx.save_for_backward(zxBCdt, taps, bias, A, D, reach, active, step, decay, y, states)
        ctx.groups = groups
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        zxBCdt, taps, bias, A, D, reach, active, step, decay, y, states = ctx.saved_tensors
        width, widths, grad_all = zxBCdt.shape[-1], _widths(zxBCdt, taps, A), torch.empty_like(zxBCdt)
        (z, xBC, _), (grad_z, grad_xBC, grad_dt) = zxBCdt.split(widths, -1), grad_all.split(widths, -1)
        grad_active, grad_step, grad_exponent = (torch.empty_like(t) for t in (active, step, step))
        grad_D = D.new_empty(len(zxBCdt), len(D))
        kernels.call(
            *("scan_backward", *_scan_sizes(z, active, A, ctx.groups), active, step, decay, D, z, width, y, states),
            *(grad.contiguous(), grad_active, grad_z, grad_step, grad_exponent, grad_D),
        )
        grad_taps = taps.new_empty(len(taps) + 1, len(bias))
        kernels.call(
            *("conv_backward", *_conv_sizes(zxBCdt, taps), xBC, width, taps, bias, reach),
            *(grad_active, grad_xBC, grad_taps),
        )
        grad_A = (grad_exponent * step).sum((0, 1))
        # softplus' slope at what gave step.
        torch.mul(grad_step.addcmul_(grad_exponent, A), -torch.expm1(-step), out=grad_dt)
        return grad_all, grad_taps[:-1].t(), grad_taps[-1], grad_dt.sum((0, 1)), grad_A, grad_D.sum(0), None, None


def _widths(zxBCdt: torch.Tensor, taps: torch.Tensor, A: torch.Tensor) -> list[int]:
    """Of z, of what the convolution takes, and of dt."""
    return [zxBCdt.shape[-1] - taps.shape[1] - len(A), taps.shape[1], len(A)]


def _conv_sizes(zxBCdt: torch.Tensor, taps: torch.Tensor) -> tuple[int, int, int]:
    """(rows, channels, width)."""
    return zxBCdt.shape[0] * zxBCdt.shape[1], taps.shape[1], len(taps)


def _scan_sizes(z: torch.Tensor, active: torch.Tensor, A: torch.Tensor, groups: int) -> tuple[int, ...]:
    """(batch, length, heads, groups, p, n)."""
    inner = z.shape[-1]
    return *z.shape[:2], len(A), groups, inner // len(A), (active.shape[-1] - inner) // (2 * groups)


def _reach(seq_idx: torch.Tensor, width: int) -> torch.Tensor:
    """How many tokens back of its document a token has [b, l], at most width - 1."""
    place = torch.arange(seq_idx.shape[1], dtype=torch.int32, device=seq_idx.device).expand_as(seq_idx)
    starts = place * F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0))
    return (place - starts.cummax(1)[0]).clamp_max_(width - 1)


def chunk_scan(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False, return_final_states=False, seq_idx=None, **_
):
    """mcore's prefill path: y [b, l, heads, p], and with return_final_states the state [b, heads, p, n] after the last token.

    As in training, steps and decays are computed in A's type.
    """
    dt = dt.to(A.dtype) if dt_bias is None else dt.to(A.dtype) + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    if seq_idx is None:
        seq_idx = torch.zeros(x.shape[:2], dtype=torch.int32, device=x.device)
    D = torch.zeros_like(A) if D is None else D
    y = ssd(x, dt, A, B, C, D, scan_masks(seq_idx, x.shape[1]))
    y = (y if z is None else y * F.silu(z)).to(x.dtype)
    return (y, final_state(x, dt, A, B)) if return_final_states else y


def final_state(x, dt, A, B) -> torch.Tensor:
    """h after the last token of rows that are one document each: sum_t exp(sum_{s>t} dt_s A) dt_t x_t B_t^T, in A's type."""
    x, dt, B = (t.to(A.dtype) for t in (x, dt, B))
    decay = (dt * A).cumsum(1)
    weighted = x * ((decay[:, -1:] - decay).exp() * dt)[..., None]
    b, length, h, p = x.shape
    grouped = weighted.view(b, length, B.shape[2], h // B.shape[2], p)
    return torch.einsum("blgrp,blgn->bgrpn", grouped, B).reshape(b, h, p, B.shape[3])


def conv_update(x, state, weight, bias, activation, conv_state_indices=None) -> torch.Tensor:
    """mcore's decoding path: one token x [b, d] into the last inputs, state [b, d, width], in place; -> silu(convolution) [b, d].

    Fast where channels lie side by side in the state's memory. Raises ValueError for what decoding here has no use for.
    """
    if activation not in ("silu", "swish") or conv_state_indices is not None:
        raise ValueError("decoding has silu after the convolution and a state for every row: no conv_state_indices")
    taps = weight.t().contiguous()
    width, channels = taps.shape
    in_kernel = state.stride() == (width * channels, 1, channels) and x.stride(-1) == 1
    if in_kernel and kernels.usable(x, state, taps, bias, widths=(channels,)):
        out = x.new_empty(x.shape)
        kernels.call("conv_step", len(x), channels, width, x, x.stride(0), state, taps, bias, out)
        return out
    out = torch.addcmul(bias, x, taps[-1])
    for k in range(len(taps) - 1):
        state[..., k] = state[..., k + 1]
        out.addcmul_(state[..., k], taps[k])
    state[..., -1] = x
    return F.silu(out)


def selective_state_update(
    state, x, dt, A, B, C, D, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None
) -> torch.Tensor:
    """mcore's decoding path: one token x [b, h, p] through state [b, h, p, n], in place; -> y [b, h, p].

    mcore hands Mamba-2's values a head over as wide as Mamba-1's kernel wants them: dt, dt_bias, A and D are the same along p
    (and n) and only their first entries are read. Computed in the state's type, returned in x's. Raises ValueError for arguments
    that decoding here has no use for.
    """
    if z is not None or state_batch_indices is not None:
        raise ValueError("decoding gates in the norm after it and has a state for every row: no z, no state_batch_indices")
    kind, (x, dt, B, C) = x.dtype, (t.to(state.dtype) for t in (x, dt, B, C))
    dt = dt[..., 0] if dt_bias is None else dt[..., 0] + dt_bias[:, 0]
    dt = F.softplus(dt) if dt_softplus else dt
    return advance(state, x, dt, (dt * A[:, 0, 0]).exp(), B, C, D[:, 0]).to(kind)


def advance(state, x, dt, decay, B, C, D) -> torch.Tensor:
    """h <- decay h + dt x B^T in place, -> C h + D x [b, h, p]: one token of every row.

    state [b, h, p, n], x [b, h, p], dt and decay [b, h], B and C [b, g, n], D [h], all of one type.
    """
    b, h, p, n = state.shape
    g = B.shape[1]
    row_by_row = state.is_contiguous() and all(t.stride()[1:] == (t.shape[2], 1) for t in (x, B, C))
    if row_by_row and kernels.usable(state, x, B, C, dt, decay, D, widths=(n,)):
        strided = [part for t in (x, B, C) for part in (t, t.stride(0))]
        y = x.new_empty(b, h, p)
        kernels.call("state_step", b, h, g, p, n, state, *strided, dt.contiguous(), decay, D.contiguous(), y)
        return y
    state.mul_(decay[..., None, None])
    state.view(b, g, h // g * p, n).addcmul_((x * dt[..., None]).view(b, g, -1, 1), B[:, :, None])
    y = (state.view(b, g, -1, n) @ C[..., None]).view(b, h, p)
    return y + x * D[:, None]


class GatedRMSNorm(torch.nn.Module):
    """RMSNorm over groups of channels, of x * silu(z) when a gate is given; mcore's arguments."""

    def __init__(self, hidden_size, eps=1e-5, group_size=None, norm_before_gate=False, device=None, dtype=None):
        super().__init__()
        if norm_before_gate:
            raise ValueError("Nemotron gates before the norm; norm_before_gate=True is not implemented")
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=dtype, device=device))
        self.eps, self.group_size = eps, group_size or hidden_size

    def forward(self, x, z=None):
        x = x if z is None else x * F.silu(z)
        grouped = x.unflatten(-1, (-1, self.group_size))
        return rms_norm(grouped, self.weight.view(-1, self.group_size), self.eps).flatten(-2)
