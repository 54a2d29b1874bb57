"""Mamba-2's recurrence by its definition, token by token, and random inputs for it."""

import torch
import torch.nn.functional as F

HEADS, GROUPS, WIDTH, STATE = 4, 2, 3, 5


def inputs(length, rows=2, seed=0, groups=GROUPS):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, dt = normal(rows, length, HEADS, WIDTH), F.softplus(normal(rows, length, HEADS))
    return x, dt, -normal(HEADS).exp(), normal(rows, length, groups, STATE), normal(rows, length, groups, STATE)


def recurrence(x, dt, A, B, C, seq_idx):
    """The definition, token by token: h_t = exp(dt A) h_{t-1} + dt B x, y_t = C h_t; h starts at 0 in every document."""
    rows, length = x.shape[:2]
    B, C = (t.repeat_interleave(HEADS // t.shape[2], 2) for t in (B, C))
    state = torch.zeros(rows, HEADS, WIDTH, STATE, dtype=x.dtype)
    outputs = []
    for t in range(length):
        if t > 0:
            state = state * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        state = state * (dt[:, t] * A).exp()[..., None, None]
        state = state + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        outputs.append((state * C[:, t, :, None, :]).sum(-1))
    return torch.stack(outputs, 1), state


def documents(lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].int()
