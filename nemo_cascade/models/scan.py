"""Mamba-2's state-space dual scan in torch, over packed documents, with its own backward pass.

Chunked as in Dao & Gu 2024 ("Transformers are SSDs", section 6): by matrix products inside a chunk, by recurrence from chunk to
chunk. The chunk here does not change results. Inside, one head of every group is done at a time, because what that
needs stays in a core's cache; what a chunk adds to the state is one product for all heads of a group.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# The fastest of 16, 32 and 64 on a CPU: work inside chunks grows with it, what is kept at their borders shrinks.
CHUNK = 32

Masks = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def scan_masks(seq_idx: torch.Tensor, length: int) -> Masks:
    """Who sees whom: (visible [b, c, l, s], keep [b, c, l], takes [b, c, l], carries [b, c]), all bool.

    visible: s is l or an earlier token of l's document in the chunk. keep: l's document reaches the chunk's end, so l enters
    the state there. takes: the state at the chunk's start is of l's document. carries: that state reaches the chunk's end.
    """
    padded = F.pad(seq_idx, (0, -length % CHUNK), value=-1)
    document = padded.view(padded.shape[0], -1, CHUNK)
    triangle = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=seq_idx.device).tril()
    visible = triangle & (document[..., :, None] == document[..., None, :])
    last = document[..., -1]
    before = torch.cat([torch.full_like(last[:, :1], -2), last[:, :-1]], 1)
    return visible, document == last[..., None], document == before[..., None], last == before


def ssd(x, dt, A, B, C, D, masks: Masks) -> torch.Tensor:
    """y_t = C_t h_t + D x_t with h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, within documents.

    x [b, l, heads, p], dt [b, l, heads] (not negative), A [heads] (negative), B and C [b, l, groups, n], D [heads] ->
    [b, l, heads, p], computed and returned in A's type, because decays multiplied in bfloat16 would not hold over a chunk.
    Raises ValueError for D [heads, p].
    """
    if D.dim() > 1:
        raise ValueError("D [heads, p] is not implemented; leave D_has_hdim of megatron-core's mixer off")
    x, dt, B, C, D = (t.to(A.dtype) for t in (x, dt, B, C, D))
    return Scan.apply(x, dt, A, B, C, D, masks)


class Scan(torch.autograd.Function):
    """`ssd` in A's type.

    With X = dt x and decay the sum of dt A from the chunk's start, y_l is the sum over the chunk's s <= l of
    exp(decay_l - decay_s) (C_l . B_s) X_s, and of exp(decay_l) C_l E. E is the state at the chunk's start; the next chunk's is
    exp(decay_end) E + S with S = sum exp(decay_end - decay_s) B_s X_s. The gradient of one token's dt A is the sum over all that
    passes it: from the state and tokens before it to tokens from it on and to the chunk's end. What does not pass it, as a
    token's part in its own y, is left out of the sum and not subtracted from it, for it can be all there is.
    """

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, masks):
        length, groups = x.shape[1], B.shape[2]
        B, C = (_chunked(t, groups)[..., 0, :] for t in (B, C))
        step = _chunked(dt[..., None], groups)  # b g c l r 1
        X = _chunked(x, groups).mul_(step)
        decays = _decays(step[..., 0], A.view(groups, -1), masks)
        CB = (C @ B.transpose(-1, -2)).mul_(decays.visible)
        weighted = X * decays.into
        S = (weighted.flatten(-2).transpose(-1, -2) @ B).unflatten(-2, X.shape[-2:])  # b g c r p n
        E = torch.empty_like(S)
        E[:, :, 0] = 0
        for c in range(S.shape[2] - 1):
            torch.addcmul(S[:, :, c], E[:, :, c], decays.over[:, :, c], out=E[:, :, c + 1])
        carried = (C @ E.flatten(3, 4).transpose(-1, -2)).view_as(X).mul_(decays.out_of)
        Y = torch.empty_like(carried)
        for r in range(E.shape[3]):
            torch.add(carried[..., r, :], decays.inside(r).mul_(CB) @ X[..., r, :], out=Y[..., r, :])
        ctx.save_for_backward(x, A, B, C, CB, D, step, X, weighted, E, carried, *decays)
        return torch.addcmul(_unchunked(Y, length), x, D[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, A, B, C, CB, D, step, X, weighted, E, carried, *decays = ctx.saved_tensors
        decays, length, groups = _Decays(*decays), grad.shape[1], B.shape[1]
        dY = _chunked(grad, groups)
        of_state = (dY * decays.out_of).flatten(-2)
        dE = (of_state.transpose(-1, -2) @ C).view_as(E)
        dS, through = torch.empty_like(E), torch.zeros_like(decays.over)
        dS[:, :, -1] = 0
        for c in range(dS.shape[2] - 1, 0, -1):
            torch.addcmul(dE[:, :, c], dS[:, :, c], decays.over[:, :, c], out=dS[:, :, c - 1])
            torch.sum(dS[:, :, c - 1] * E[:, :, c - 1], (-1, -2), keepdim=True, out=through[:, :, c - 1])
        dX = (B @ dS.flatten(3, 4).transpose(-1, -2)).view_as(X).mul_(decays.into)
        dCB, passed, into_state = torch.zeros_like(CB), [], _inner(X, dX)
        for r in range(E.shape[3]):
            inside, dM = decays.inside(r), dY[..., r, :] @ X[..., r, :].transpose(-1, -2)
            dCB.addcmul_(dM, inside)
            M = inside.mul_(CB)
            dX[..., r, :] += M.transpose(-1, -2) @ dY[..., r, :]
            pairs = dM.mul_(M)
            pairs.diagonal(dim1=-2, dim2=-1).zero_()
            passed.append(pairs.sum(-1) - pairs.sum(-2) + _inner(dY[..., r, :], carried[..., r, :]))
        dCB *= decays.visible
        dB = (weighted.flatten(-2) @ dS.flatten(3, 4)).add_(dCB.transpose(-1, -2) @ C)
        dC = (of_state @ E.flatten(3, 4)).add_(dCB @ B)
        of_product = torch.stack(passed, -1).flip(3).cumsum(3).flip(3)  # b g c l r
        of_product += (through * decays.over)[..., 0].transpose(-1, -2)
        of_product[:, :, :, 1:] += into_state.cumsum(3)[:, :, :, :-1]
        dA = (of_product * step[..., 0]).sum((0, 2, 3)).flatten()
        dX, of_product = _unchunked(dX, length), _unchunked((of_product * A.view(groups, 1, 1, -1))[..., None], length)
        dx = torch.addcmul(_unchunked(step, length) * dX, grad, D[:, None])
        dD = torch.linalg.vecdot(grad, x, dim=1).sum((0, 2))
        dt = _inner(dX, x) + of_product[..., 0]
        return dx, dt, dA, *(_unchunked(t[..., None, :], length) for t in (dB, dC)), dD, None


class _Decays(NamedTuple):
    """Who hears how much of whom; r numbers the heads of a group.

    visible [b, 1, c, l, s]; decay [r, b, g, c, l]; into [b, g, c, l, r, 1]: X_l in what its chunk adds to the state; out_of
    [b, g, c, l, r, 1]: the state at the chunk's start in y_l; over [b, g, c, r, 1, 1]: that state in the one at the chunk's end.
    """

    visible: torch.Tensor
    decay: torch.Tensor
    into: torch.Tensor
    out_of: torch.Tensor
    over: torch.Tensor

    def inside(self, r: int) -> torch.Tensor:
        """X_s in y_l of the same chunk, for head r of every group [b, g, c, l, s]; at most 1 where s is not visible.

        A mask of -inf before exp would hide those by itself, but exp takes ten times as long over it.
        """
        return (self.decay[r][..., :, None] - self.decay[r][..., None, :]).clamp_max_(0).exp_()


def _decays(step: torch.Tensor, A: torch.Tensor, masks: Masks) -> _Decays:
    """Of steps [b, g, c, l, r] and A [g, r]."""
    visible, keep, takes, carries = (mask[:, None] for mask in masks)
    decay = (step * A[:, None, None]).permute(4, 0, 1, 2, 3).cumsum(-1)
    total = decay[..., -1:]
    into, out_of = (total - decay).exp_().mul_(keep), decay.exp().mul_(takes)
    into, out_of = (t.permute(1, 2, 3, 4, 0).contiguous()[..., None] for t in (into, out_of))
    over = total.exp().mul_(carries[..., None]).permute(1, 2, 3, 0, 4)[..., None]
    return _Decays(visible, decay, into, out_of, over)


def _inner(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one * other).sum(-1)


def _chunked(t: torch.Tensor, groups: int) -> torch.Tensor:
    """[b, l, heads, width] -> [b, groups, c, CHUNK, heads / groups, width] in one piece, with zeros after the end."""
    b, length, heads, width = t.shape
    out = t.new_empty(b, groups, -(-length // CHUNK) * CHUNK, heads // groups, width)
    out[:, :, :length] = t.view(b, length, groups, -1, width).transpose(1, 2)
    out[:, :, length:] = 0
    return out.unflatten(2, (-1, CHUNK))


def _unchunked(t: torch.Tensor, length: int) -> torch.Tensor:
    """The way back: [b, groups, c, CHUNK, heads / groups, width] -> [b, l, heads, width]."""
    return t.flatten(2, 3)[:, :, :length].transpose(1, 2).flatten(2, 3)
