"""Mamba-2 in torch: the state-space dual scan, the depthwise convolution and the gated norm, with packed documents.

Stand behind the names megatron-core's MambaMixer imports from mamba-ssm (`mamba_chunk_scan_combined`,
`mamba_split_conv1d_scan_combined`, `selective_state_update`, RMSNormGated) and causal-conv1d (`causal_conv1d_update`). Chunked as in Dao & Gu 2024 ("Transformers are SSDs", section 6): inside a
chunk by matrix products, between chunks by one product with the decays of all chunk pairs. `seq_idx` [batch, length] numbers a
row's documents; neither convolution nor state crosses from one to the next. Any float type; the chunk here does not change results.
"""

import torch
import torch.nn.functional as F

from nemo_cascade.models.norm import rms_norm

# On a CPU small chunks win: the work inside a chunk grows with its square (1.4x against 128 at length 4096).
CHUNK = 32


def scan_masks(seq_idx: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
    """Who sees whom: (outside [b, c, l, s], keep [b, c, l], takes [b, c, l], severed [b, z, c]).

    outside: -inf where s is not l or an earlier token of l's document in the chunk, else 0. keep: l's document reaches the
    chunk's end, so l enters the state. takes: the state at the chunk's start is of l's document. severed: -inf where chunk
    c's state does not reach chunk z, else 0.
    """
    padded = F.pad(seq_idx, (0, -length % CHUNK), value=-1)
    document = padded.view(padded.shape[0], -1, CHUNK)
    triangle = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=seq_idx.device).tril()
    inside = triangle & (document[..., :, None] == document[..., None, :])
    last = document[..., -1]
    before = torch.cat([torch.full_like(last[:, :1], -2), last[:, :-1]], 1)
    earlier = torch.ones(last.shape[1], last.shape[1], dtype=torch.bool, device=seq_idx.device).tril(-1)
    reaches = (last[:, None, :] == before[:, :, None]) & earlier
    # Added before exp they need no backward of their own, as a masked_fill would.
    outside, severed = (torch.zeros(m.shape, device=m.device).masked_fill_(~m, -torch.inf) for m in (inside, reaches))
    return outside, document == last[..., None], document == before[..., None], severed


def ssd(x, dt, A, B, C, masks) -> torch.Tensor:
    """y_t = C_t h_t with h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, within documents.

    x [b, l, heads, p], dt [b, l, heads], A [heads] (negative), B and C [b, l, groups, n] -> [b, l, heads, p], computed
    and returned in A's type, because decays multiplied in bfloat16 would not hold over a chunk.
    """
    x, dt, B, C = (t.to(A.dtype) for t in (x, dt, B, C))
    b, length, h, p = x.shape
    g, n, r = B.shape[2], B.shape[3], h // B.shape[2]
    outside, keep, takes, severed = masks
    padding = -length % CHUNK
    if padding:
        x, B, C = (F.pad(t, (0, 0, 0, 0, 0, padding)) for t in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, padding))
    c = x.shape[1] // CHUNK
    decay = (dt * A).view(b, c, CHUNK, h).permute(0, 1, 3, 2).cumsum(-1)  # b c h l
    # Copied once here, or every product would copy them anew.
    X = (x * dt[..., None]).view(b, c, CHUNK, h, p).permute(0, 1, 3, 2, 4).contiguous()  # b c h l p
    Bc, Cc = (t.view(b, c, CHUNK, g, n).permute(0, 1, 3, 2, 4).contiguous() for t in (B, C))  # b c g l n

    attention = Cc @ Bc.transpose(-1, -2)  # b c g l s
    L = (decay[..., :, None] - decay[..., None, :]).add_(outside[:, :, None]).exp_()
    Y = (L.view(b, c, g, r, CHUNK, CHUNK) * attention[:, :, :, None]).view(b, c, h, CHUNK, CHUNK) @ X

    to_end = (decay[..., -1:] - decay).exp() * keep[:, :, None]  # b c h l
    weighted = (X * to_end[..., None]).reshape(b, c, g, r, CHUNK, p).transpose(3, 4).reshape(b, c, g, CHUNK, r * p)
    states = Bc.transpose(-1, -2) @ weighted  # b c g n (r p)
    total = decay[..., -1].permute(0, 2, 1)  # b h c
    upto = total.cumsum(-1)
    between = ((upto - total)[..., :, None] - upto[..., None, :]).add_(severed[:, None]).exp_()
    by_head = states.view(b, c, g, n, r, p).permute(0, 2, 4, 1, 3, 5).reshape(b, h, c, n * p)
    entering = (between @ by_head).view(b, g, r, c, n, p).permute(0, 3, 1, 4, 2, 5).reshape(b, c, g, n, r * p)
    carried = (Cc @ entering).view(b, c, g, CHUNK, r, p).transpose(3, 4).reshape(b, c, h, CHUNK, p)
    Y = Y + carried * (decay.exp() * takes[:, :, None])[..., None]
    return Y.permute(0, 1, 3, 2, 4).reshape(b, c * CHUNK, h, p)[:, :length]


class PackedConv(torch.autograd.Function):
    """Depthwise causal convolution [b, l, d] that starts anew with each document; own backward, which halves its time.

    same[k - 1] [b, l, 1] is 1 where the token k back belongs to the same document.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, *same):
        width = weight.shape[1]
        out = torch.addcmul(bias, x, weight[:, width - 1])
        for k in range(1, width):
            out[:, k:].addcmul_(x[:, :-k] * same[k - 1][:, k:], weight[:, width - 1 - k])
        ctx.save_for_backward(x, weight, *same)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, *same = ctx.saved_tensors
        width = weight.shape[1]
        grad_x = grad * weight[:, width - 1]
        grad_weight = torch.empty_like(weight)
        grad_weight[:, width - 1] = (grad * x).sum((0, 1))
        for k in range(1, width):
            inside = grad[:, k:] * same[k - 1][:, k:]
            grad_x[:, :-k].addcmul_(inside, weight[:, width - 1 - k])
            grad_weight[:, width - 1 - k] = (inside * x[:, :-k]).sum((0, 1))
        return grad_x, grad_weight, grad.sum((0, 1)), *(None,) * len(same)


def same_document(seq_idx: torch.Tensor, width: int, dtype) -> list[torch.Tensor]:
    """For k = 1 .. width - 1: [b, l, 1], 1 where the token k back is of the same document (0 before the row's start)."""
    same = []
    for k in range(1, width):
        equal = (seq_idx[:, k:] == seq_idx[:, : max(seq_idx.shape[1] - k, 0)]).to(dtype)
        same.append(F.pad(equal, (min(k, seq_idx.shape[1]), 0))[..., None])
    return same


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
    xBC = F.silu(PackedConv.apply(xBC, conv_weight, conv_bias, *same_document(seq_idx, conv_weight.shape[1], xBC.dtype)))
    x, B, C = xBC.split([inner, ngroups * state, ngroups * state], -1)
    x = x.unflatten(-1, (A.shape[0], headdim))
    B, C = (t.unflatten(-1, (ngroups, state)) for t in (B, C))
    y = ssd(x, F.softplus(dt + dt_bias), A, B, C, scan_masks(seq_idx, x.shape[1])) + x * D[:, None]
    return (y.flatten(-2) * F.silu(z)).to(zxBCdt.dtype)


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
    y = ssd(x, dt, A, B, C, scan_masks(seq_idx, x.shape[1]))
    if D is not None:
        y = y + x * (D if D.dim() > 1 else D[:, None])
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
    b, h, p, n = state.shape
    g = B.shape[1]
    state.mul_((dt * A[:, 0, 0]).exp()[..., None, None])
    state.view(b, g, h // g * p, n).addcmul_((x * dt[..., None]).view(b, g, -1, 1), B[:, :, None])
    y = (state.view(b, g, -1, n) @ C[..., None]).view(b, h, p)
    return (y + x * D[:, :1]).to(kind)


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
