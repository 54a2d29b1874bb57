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


def gradients(function, leaves, seq_idx):
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = function(*leaves, seq_idx)
    return torch.autograd.grad((y * torch.arange(y.numel()).view_as(y) / y.numel()).sum(), leaves)


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


def test_rows_are_scanned_each_by_itself():
    leaves = *inputs(CHUNK + 7, rows=3), SKIP
    seq_idx = torch.cat([documents([CHUNK, 7]), documents([CHUNK + 7]), documents([1, CHUNK + 6])])
    torch.testing.assert_close(scan(*leaves, seq_idx), definition(*leaves, seq_idx), rtol=1e-9, atol=1e-10)
    for mine, expected in zip(gradients(scan, leaves, seq_idx), gradients(definition, leaves, seq_idx), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [1e4, 0.0], ids=["forgets completely", "takes no step"])
def test_extreme_steps_are_not_a_nan(scale):
    x, dt, *rest = inputs(2 * CHUNK)
    seq_idx = torch.zeros(2, 2 * CHUNK).int()
    leaves = x, dt * scale, *rest, SKIP
    torch.testing.assert_close(scan(*leaves, seq_idx), definition(*leaves, seq_idx), rtol=1e-9, atol=1e-10)
    assert all(grad.isfinite().all() for grad in gradients(scan, leaves, seq_idx))


def test_what_forgets_completely_costs_what_follows_no_precision_in_float32():
    """Sums of decays from a row's start would be large numbers with small differences: 2e-3 of the largest y here."""
    x, dt, A, *rest = inputs(20 * CHUNK, rows=1)
    dt[:, : 10 * CHUNK] *= 1e4
    leaves, seq_idx = (x, dt * 0.01, A, *rest, 0 * SKIP), documents([20 * CHUNK])
    mine, expected = (f[:, 10 * CHUNK :] for f in (scan(*(t.float() for t in leaves), seq_idx), definition(*leaves, seq_idx)))
    assert (mine - expected).abs().max() / expected.abs().max() < 2e-6
