"""The chunked scan, the packed convolution and the gated norm against their definitions, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_cascade.models.mamba import (
    CHUNK,
    GatedRMSNorm,
    PackedConv,
    chunk_scan,
    conv_update,
    same_document,
    scan_masks,
    selective_state_update,
    ssd,
)

HEADS, GROUPS, WIDTH, STATE = 4, 2, 3, 5


def inputs(length, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, dt = normal(rows, length, HEADS, WIDTH), F.softplus(normal(rows, length, HEADS))
    return x, dt, -normal(HEADS).exp(), normal(rows, length, GROUPS, STATE), normal(rows, length, GROUPS, STATE)


def recurrence(x, dt, A, B, C, seq_idx):
    """The definition, token by token: h_t = exp(dt A) h_{t-1} + dt B x, y_t = C h_t; h starts at 0 in every document."""
    rows, length = x.shape[:2]
    B, C = (t.repeat_interleave(HEADS // GROUPS, 2) for t in (B, C))
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


@settings(max_examples=25)
@given(st.lists(st.one_of(st.just(1), st.just(CHUNK), st.integers(1, 3 * CHUNK)), min_size=1, max_size=6))
def test_the_chunked_scan_is_the_recurrence_in_every_document(lengths):
    x, dt, A, B, C = inputs(sum(lengths), rows=1)
    seq_idx = documents(lengths)
    expected, _ = recurrence(x, dt, A, B, C, seq_idx)
    torch.testing.assert_close(ssd(x, dt, A, B, C, scan_masks(seq_idx, sum(lengths))), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_prefill_hands_over_the_state_after_the_last_token(length):
    x, dt, A, B, C = inputs(length)
    y, state = chunk_scan(x, dt, A, B, C, CHUNK, return_final_states=True)
    expected, last = recurrence(x, dt, A, B, C, torch.zeros(2, length))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-9, atol=1e-10)


def test_decoding_goes_on_where_prefill_stopped():
    length, more = CHUNK + 3, 4
    x, dt, A, B, C = inputs(length + more)
    bias, D = torch.linspace(-1, 1, HEADS).double(), torch.linspace(0, 2, HEADS).double()
    raw = dt.expm1().log() - bias  # softplus(raw + bias) is dt again
    expected, last = recurrence(x, dt, A, B, C, torch.zeros(2, length + more))
    expected = expected + x * D[:, None]
    _, state = chunk_scan(*(t[:, :length] for t in (x, dt)), A, B[:, :length], C[:, :length], CHUNK, return_final_states=True)
    wide = [t[:, None].expand(HEADS, WIDTH) for t in (bias, D)]
    for t in range(length, length + more):
        step = raw[:, t, :, None].expand(-1, -1, WIDTH)
        decays = A[:, None, None].expand(HEADS, WIDTH, STATE)
        y = selective_state_update(state, x[:, t], step, decays, B[:, t], C[:, t], wide[1], dt_bias=wide[0], dt_softplus=True)
        torch.testing.assert_close(y, expected[:, t], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-9, atol=1e-10)


def test_the_scan_has_the_gradient_of_the_recurrence():
    lengths = [3, CHUNK + 2, 1, CHUNK]
    seq_idx = documents(lengths)
    results = []
    for scan in (lambda *t: ssd(*t, scan_masks(seq_idx, sum(lengths))), lambda *t: recurrence(*t, seq_idx)[0]):
        leaves = [t.requires_grad_() for t in inputs(sum(lengths), rows=1)]
        y = scan(*leaves)
        results.append(torch.autograd.grad((y * torch.arange(y.numel()).view_as(y) / y.numel()).sum(), leaves))
    for mine, expected in zip(*results):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)


def test_a_state_that_forgets_completely_is_not_a_nan():
    x, dt, A, B, C = inputs(2 * CHUNK)
    assert ssd(x, dt * 1e4, A, B, C, scan_masks(torch.zeros(2, 2 * CHUNK).int(), 2 * CHUNK)).isfinite().all()


@pytest.mark.parametrize("lengths", [[1], [2, 1, 5], [4, 3, 9], [1, 1, 1, 1, 1, 1]])
def test_the_convolution_starts_anew_with_each_document(lengths):
    generator = torch.Generator().manual_seed(0)
    channels, width, total = 6, 4, sum(lengths)
    x = torch.randn(1, total, channels, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(channels, width, generator=generator).double(), torch.randn(channels, generator=generator).double()
    mine = PackedConv.apply(x, weight, bias, *same_document(documents(lengths), width, x.dtype))
    for part, out in zip(x.split(lengths, 1), mine.split(lengths, 1)):
        padded = F.pad(part.transpose(1, 2), (width - 1, 0))
        expected = F.conv1d(padded, weight[:, None], bias, groups=channels).transpose(1, 2)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_the_convolution_has_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    same = same_document(torch.stack([documents([4, 5])[0], documents([1, 2, 6])[0]]), 4, x.dtype)
    assert torch.autograd.gradcheck(lambda *t: PackedConv.apply(*t, *same), (x, weight, bias))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["widths side by side", "channels side by side"])
def test_decoding_convolves_the_newest_inputs(order):
    """Token by token from zeros it is the convolution of the whole row, however the state lies in memory."""
    generator = torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(*shape, generator=generator).double() for shape in ((2, 6, 5), (5, 4), (5,)))
    expected = F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight[:, None], bias, groups=5)).transpose(1, 2)
    state = torch.zeros([(2, 5, 4)[axis] for axis in order], dtype=x.dtype).permute(order)
    got = torch.stack([conv_update(x[:, t], state, weight, bias, "silu") for t in range(6)], 1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, x[:, 2:].transpose(1, 2), rtol=0, atol=0)


def test_the_gated_norm_normalises_each_group_after_the_gate():
    norm = GatedRMSNorm(12, eps=1e-5, group_size=4).double()
    x, z = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    gated = (x * z * torch.sigmoid(z)).view(2, 5, 3, 4)
    expected = (gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(2, 5, 12) * norm.weight
    torch.testing.assert_close(norm(x, z), expected)
    with pytest.raises(ValueError, match="norm_before_gate"):
        GatedRMSNorm(12, norm_before_gate=True)
