"""Noise is uniform, independent and a function of the token alone; sampling follows the distribution it reports."""

import itertools

import torch

from nemo_cascade.rollout.noise import row_keys, uniforms
from nemo_cascade.rollout.sampling import distribution, sample

PROMPTS = [f"{i * 7919:016x}" for i in range(200)]


def grid() -> torch.Tensor:
    """[prompts, samples, positions] of noise."""
    rows = list(itertools.product(PROMPTS, range(8)))
    keys = row_keys(1, [prompt for prompt, _ in rows], [k for _, k in rows])
    noise = torch.stack([uniforms(keys, torch.full_like(keys, position)) for position in range(32)], 1)
    return noise.view(len(PROMPTS), 8, 32)


def test_noise_is_uniform_and_without_repetition():
    noise = grid()
    counts = torch.histc(noise, bins=64, min=0, max=1)
    expected = noise.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # 63 degrees of freedom: 30.0 and 110 are beyond the 0.02 % quantiles on either side.
    assert 30.0 < chi_square < 110.0
    assert noise.unique().numel() == noise.numel() and 0 < noise.min() and noise.max() < 1


def test_neighbouring_prompts_samples_and_positions_are_uncorrelated():
    noise = grid() - 0.5
    for axis in range(3):
        a, b = noise.narrow(axis, 0, noise.shape[axis] - 1), noise.narrow(axis, 1, noise.shape[axis] - 1)
        correlation = (a * b).mean() / noise.var()
        assert abs(correlation) < 4.5 / a.numel() ** 0.5


def test_a_row_keeps_its_noise_in_any_company():
    keys = row_keys(7, PROMPTS[:5], [0, 1, 2, 3, 4])
    assert torch.equal(row_keys(7, PROMPTS[3:4], [3]), keys[3:4])
    assert not torch.equal(row_keys(8, PROMPTS[:5], [0, 1, 2, 3, 4]), keys)


def test_samples_follow_the_distribution_and_report_its_logprobs():
    torch.manual_seed(0)
    logits = torch.randn(1, 12).mul(1.5).expand(40_000, -1)
    for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (1.0, 0.7)):
        tokens, logprobs = sample(logits, torch.rand(40_000, dtype=torch.float64), temperature, top_p)
        expected = distribution(logits[:1], temperature, top_p)[0]
        seen = torch.bincount(tokens, minlength=12) / 40_000
        assert (seen - expected.exp()).abs().max() < 4.5 * 0.5 / 40_000**0.5
        torch.testing.assert_close(logprobs, expected[tokens])
        assert torch.isclose(expected.exp().sum(), torch.ones((), dtype=torch.float64))


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = distribution(logits, 1.0, 0.8).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]], dtype=torch.float64), atol=1e-6, rtol=0)
    assert distribution(logits, 1.0, 0.81).exp()[0, 2] > 0


def test_the_ends_of_the_unit_interval_are_legal_noise():
    logits = torch.full((2, 5), -1e9).index_fill(1, torch.tensor([1, 3]), 0.0)
    tokens, _ = sample(logits, torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64), 1.0, 1.0)
    assert tokens.tolist() == [1, 3]


def test_temperature_zero_is_greedy_with_the_logprob_at_temperature_one():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    tokens, logprobs = sample(logits, torch.rand(1, dtype=torch.float64), 0, 1.0)
    assert tokens.tolist() == [1]
    torch.testing.assert_close(logprobs, logits.double().log_softmax(-1)[:, 1])
