"""Mamba-2's state-space dual scan in torch, over packed documents, with its own backward pass.

Chunked as in Dao & Gu 2024 ("Transformers are SSDs", section 6): by matrix products inside a chunk, by recurrence from chunk to
chunk. The chunk here does not change results. Inside, one head of every group is done at a time, because what that
needs stays in a core's cache; what a chunk adds to the state is one product for all heads of a group.
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# On a CPU small chunks win: the work inside a chunk grows with its square (1.4x against 128 at length 4096).
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

    x [b, l, heads, p], dt [b, l, heads] (positive), A [heads] (negative), B and C [b, l, groups, n], D [heads] ->
    [b, l, heads, p], computed and returned in A's type, because decays multiplied in bfloat16 would not hold over a chunk.
    """
    x, dt, B, C, D = (t.to(A.dtype) for t in (x, dt, B, C, D))
    return Scan.apply(x, dt, A, B, C, D, masks)


class Scan(torch.autograd.Function):
    """`ssd` in A's type.

    y_l is the sum over the chunk's s <= l of exp(decay_l - decay_s) dt_s (C_l . B_s) x_s, where decay is the sum of dt A from the
    chunk's start, and of exp(decay_l) C_l E. E is the state at the chunk's start; the next chunk's is exp(decay_end) E + S with
    S = sum exp(decay_end - decay_s) dt_s B_s x_s. Gradients of exponents come from inner products: y_l scales with
    exp(decay_l) and all that x_s does with dt_s exp(-decay_s), so theirs are dy_l . y_l and dx_s . x_s.
    """

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, masks):
        length, groups = x.shape[1], B.shape[2]
        X, B, C = _chunked(x, groups), _chunked(B, groups)[..., 0, :], _chunked(C, groups)[..., 0, :]
        decays = _Decays(_chunked(dt[..., None], groups)[..., 0], A.view(groups, -1), masks)
        CB = (C @ B.transpose(-1, -2)).mul_(decays.visible)
        weighted = X * decays.into
        S = (weighted.flatten(-2).transpose(-1, -2) @ B).unflatten(-2, X.shape[-2:])  # b g c r p n
        E = torch.empty_like(S)
        E[:, :, 0] = 0
        for c in range(S.shape[2] - 1):
            torch.addcmul(S[:, :, c], E[:, :, c], decays.over[:, :, c], out=E[:, :, c + 1])
        Y = (C @ E.flatten(3, 4).transpose(-1, -2)).view_as(X).mul_(decays.out_of)
        for r in range(E.shape[3]):
            Y[..., r, :] += decays.inside(r).mul_(CB) @ X[..., r, :]
        ctx.save_for_backward(x, B, C, CB, D, X, weighted, E, Y)
        ctx.decays = decays
        return torch.addcmul(_unchunked(Y, length), x, D[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, B, C, CB, D, X, weighted, E, Y = ctx.saved_tensors
        decays, length = ctx.decays, grad.shape[1]
        dY = _chunked(grad, B.shape[1])
        of_state = (dY * decays.out_of).flatten(-2)
        dE = (of_state.transpose(-1, -2) @ C).view_as(E)
        dS, of_end = torch.empty_like(E), []
        dS[:, :, -1] = 0
        for c in range(dS.shape[2] - 1, 0, -1):
            torch.addcmul(dE[:, :, c], dS[:, :, c], decays.over[:, :, c], out=dS[:, :, c - 1])
            of_end.append(_inner(dS[:, :, c - 1].flatten(-2), E[:, :, c].flatten(-2)))
        dX = (B @ dS.flatten(3, 4).transpose(-1, -2)).view_as(X).mul_(decays.into)
        dCB, of_target, of_source = torch.zeros_like(CB), [], []
        for r in range(E.shape[3]):
            inside = decays.inside(r)
            dCB.addcmul_(dY[..., r, :] @ X[..., r, :].transpose(-1, -2), inside)
            dX[..., r, :] += inside.mul_(CB).transpose(-1, -2) @ dY[..., r, :]
            of_target.append(_inner(Y[..., r, :], dY[..., r, :]))
            of_source.append(_inner(X[..., r, :], dX[..., r, :]))
        dCB *= decays.visible
        dB = (weighted.flatten(-2) @ dS.flatten(3, 4)).add_(dCB.transpose(-1, -2) @ C)
        dC = (of_state @ E.flatten(3, 4)).add_(dCB @ B)
        dt, dA = decays.backward(torch.stack(of_target), torch.stack(of_source), of_end[::-1])
        dx = torch.addcmul(_unchunked(dX, length), grad, D[:, None])
        dD = torch.linalg.vecdot(grad, x, dim=1).sum((0, 2))
        dt, dB, dC = (_unchunked(t, length) for t in (dt[..., None], dB[..., None, :], dC[..., None, :]))
        return dx, dt[..., 0], dA, dB, dC, dD, None


class _Decays:
    """What steps [b, g, c, l, r] and A [g, r] say about who hears whom; r numbers the heads of a group.

    into [b, g, c, l, r, 1]: x_l in what its chunk adds to the state; out_of [b, g, c, l, r, 1]: the state at the chunk's start in y_l;
    over [b, g, c, r, 1, 1]: that state in the one at the chunk's end.
    """

    def __init__(self, step: torch.Tensor, A: torch.Tensor, masks: Masks):
        self.visible, keep, takes, carries = (mask[:, None] for mask in masks)
        # A step that underflowed has no logarithm; the smallest number does as little as it.
        self.step = step.permute(4, 0, 1, 2, 3).clamp_min(torch.finfo(step.dtype).tiny)  # r b g c l
        self.A = A.t()[:, None, :, None, None]
        self.decay = (self.step * self.A).cumsum(-1)
        self.source = self.decay - self.step.log()
        total = self.decay[..., -1:]
        into = (total - self.decay).exp_().mul_(self.step).mul_(keep)
        out_of = self.decay.exp().mul_(takes)
        self.into, self.out_of = (t.permute(1, 2, 3, 4, 0).contiguous()[..., None] for t in (into, out_of))
        self.over = (total.exp().mul_(carries[..., None])).permute(1, 2, 3, 0, 4)[..., None]

    def inside(self, r: int) -> torch.Tensor:
        """x_s in y_l of the same chunk, for head r of every group [b, g, c, l, s]; any number where s is not visible.

        Only there an exponent can be large; and of -inf, which would hide by itself, exp takes ten times as long.
        """
        return (self.decay[r][..., :, None] - self.source[r][..., None, :]).clamp_max_(80).exp_()

    def backward(self, of_target: torch.Tensor, of_source: torch.Tensor, of_end: list[torch.Tensor]):
        """(gradient of the steps [b, g, c, l, r], of A [heads]) from those of exponents: of decay in y_l and, negative, in x_s
        [r, b, g, c, l], and in the state at a chunk's end [b, g, r], for all chunks but the last, which has no use for it."""
        of_decay = of_target - of_source
        if of_end:
            of_decay[..., :-1, -1] += torch.stack(of_end, -1).permute(2, 0, 1, 3)
        of_product = of_decay.flip(-1).cumsum(-1).flip(-1)
        of_A = (of_product * self.step).sum((1, 3, 4)).t().flatten()
        return (of_product * self.A + of_source / self.step).permute(1, 2, 3, 4, 0), of_A


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
