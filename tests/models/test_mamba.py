"""The packed convolution, prefill, decoding and the gated norm against their definitions, in float64."""

import pytest
import torch
import torch.nn.functional as F

from nemo_cascade.models.mamba import (
    GatedRMSNorm,
    PackedConv,
    chunk_scan,
    conv_update,
    foreign_rows,
    selective_state_update,
)
from nemo_cascade.models.scan import CHUNK
from tests.models.recurrence import HEADS, STATE, WIDTH, documents, inputs, recurrence


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


@pytest.mark.parametrize("lengths", [[1], [2, 1, 5], [4, 3, 9], [1, 1, 1, 1, 1, 1]])
def test_the_convolution_starts_anew_with_each_document(lengths):
    generator = torch.Generator().manual_seed(0)
    channels, width, total = 6, 4, sum(lengths)
    x = torch.randn(1, total, channels, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(channels, width, generator=generator).double(), torch.randn(channels, generator=generator).double()
    mine = PackedConv.apply(x, weight, bias, foreign_rows(documents(lengths), width))
    for part, out in zip(x.split(lengths, 1), mine.split(lengths, 1)):
        padded = F.pad(part.transpose(1, 2), (width - 1, 0))
        expected = F.silu(F.conv1d(padded, weight[:, None], bias, groups=channels)).transpose(1, 2)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def test_the_convolution_has_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    foreign = foreign_rows(torch.stack([documents([4, 5])[0], documents([1, 2, 6])[0]]), 4)
    assert torch.autograd.gradcheck(lambda *t: PackedConv.apply(*t, foreign), (x, weight, bias))


def test_the_convolution_does_not_mind_how_its_input_and_its_gradient_lie_in_memory():
    generator = torch.Generator().manual_seed(0)
    x, slope = (torch.randn(2, 9, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (3,)))
    foreign = foreign_rows(torch.cat([documents([4, 5]), documents([1, 2, 6])]), 4)
    results = []
    for turn in (lambda t: t, lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)):
        leaf = turn(x).requires_grad_()
        y = PackedConv.apply(leaf, weight, bias, foreign)
        results.append((y, *torch.autograd.grad(y, leaf, turn(slope))))
    assert all(torch.equal(one, other) for one, other in zip(*results))


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
