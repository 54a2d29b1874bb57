"""The chunked scan and its gradient against the recurrence, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_cascade.models.scan import CHUNK, scan_masks, ssd
from tests.models.recurrence import HEADS, documents, inputs, recurrence

SKIP = torch.linspace(-1, 2, HEADS).double()


def scan(x, dt, A, B, C, D, seq_idx):
    return ssd(x, dt, A, B, C, D, scan_masks(seq_idx, x.shape[1]))


def definition(x, dt, A, B, C, D, seq_idx):
    return recurrence(x, dt, A, B, C, seq_idx)[0] + x * D[:, None]


def gradients(function, leaves, seq_idx, slope=1.0):
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = function(*leaves, seq_idx)
    return torch.autograd.grad((y * (slope * torch.arange(y.numel()) / y.numel()).view_as(y)).sum(), leaves)


@settings(max_examples=25)
@given(st.lists(st.one_of(st.just(1), st.just(CHUNK), st.integers(1, 3 * CHUNK)), min_size=1, max_size=6))
def test_the_chunked_scan_is_the_recurrence_in_every_document(lengths):
    of = *inputs(sum(lengths), rows=1), SKIP, documents(lengths)
    torch.testing.assert_close(scan(*of), definition(*of), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[3, CHUNK + 2, 1, CHUNK], [5 * CHUNK], [1, CHUNK - 1, 2 * CHUNK + 1], [2]])
def test_the_scan_has_the_gradient_of_the_recurrence(lengths, groups):
    leaves, seq_idx = (*inputs(sum(lengths), rows=1, groups=groups), SKIP), documents(lengths)
    for mine, expected in zip(gradients(scan, leaves, seq_idx), gradients(definition, leaves, seq_idx), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [CHUNK + 7, 2 * CHUNK])
def test_rows_are_scanned_each_by_itself(length, groups):
    leaves = *inputs(length, rows=3, groups=groups), SKIP
    seq_idx = torch.cat([documents([CHUNK, length - CHUNK]), documents([length]), documents([1, length - 1])])
    torch.testing.assert_close(scan(*leaves, seq_idx), definition(*leaves, seq_idx), rtol=1e-9, atol=1e-10)
    for mine, expected in zip(gradients(scan, leaves, seq_idx), gradients(definition, leaves, seq_idx), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [1e4, 0.0], ids=["forgets completely", "takes no step"])
def test_extreme_steps_are_no_special_case(scale):
    x, dt, *rest = inputs(2 * CHUNK)
    seq_idx = torch.zeros(2, 2 * CHUNK).int()
    leaves = x, dt * scale, *rest, SKIP
    torch.testing.assert_close(scan(*leaves, seq_idx), definition(*leaves, seq_idx), rtol=1e-9, atol=1e-10)
    for mine, expected in zip(gradients(scan, leaves, seq_idx), gradients(definition, leaves, seq_idx), strict=True):
        assert (mine - expected).abs().max() <= 1e-9 * expected.abs().max() + 1e-12


@pytest.mark.parametrize("slope", [1.0, 1e6])
@pytest.mark.parametrize("step", [0.1, 1.0, 10.0])
def test_in_float32_result_and_gradients_are_those_of_float64_but_for_rounding(step, slope):
    """Also for heads that forget from token to token, whose exponents are large; and no product with them overflows."""
    x, dt, _, *rest = inputs(10 * CHUNK, rows=1)
    leaves, seq_idx = (x, dt * step, -torch.tensor([1.0, 4.0, 8.0, 16.0]).double(), *rest, SKIP), documents([10 * CHUNK])
    narrow = [t.float() for t in leaves]

    def error(mine, expected):
        return float((mine - expected).norm() / expected.norm())

    assert error(scan(*narrow, seq_idx), definition(*leaves, seq_idx)) < 1e-6
    found = gradients(scan, narrow, seq_idx, slope), gradients(definition, leaves, seq_idx, slope)
    errors = dict(zip(("x", "dt", "A", "B", "C", "D"), map(error, *found), strict=True))
    # An exponent of 100 is known to 1e-5.
    assert max(errors.values()) < 5e-6 * max(step, 1), errors


def test_what_forgets_completely_costs_what_follows_no_precision_in_float32():
    """Sums of decays from a row's start would be large numbers with small differences: 2e-3 of the largest y here."""
    x, dt, A, *rest = inputs(20 * CHUNK, rows=1)
    dt[:, : 10 * CHUNK] *= 1e4
    leaves, seq_idx = (x, dt * 0.01, A, *rest, 0 * SKIP), documents([20 * CHUNK])
    mine, expected = (f[:, 10 * CHUNK :] for f in (scan(*(t.float() for t in leaves), seq_idx), definition(*leaves, seq_idx)))
    assert (mine - expected).abs().max() / expected.abs().max() < 2e-6
