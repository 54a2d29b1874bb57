"""Packs hold every token of every sample once, whole, at every data-parallel size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.engine.batch import build_pack, plan_packs, scatter_logprobs
from tests.engine.cases import random_samples


@given(count=st.integers(1, 30), seed=st.integers(0, 99), size=st.integers(1, 4))
def test_every_sample_is_in_one_pack_and_packs_divide_by_the_ranks(count, seed, size):
    samples = random_samples(50, count=count, seed=seed)
    packs = plan_packs(samples, 64, size)
    assert len(packs) % size == 0
    assert sorted(i for pack in packs for i in pack) == list(range(count))
    assert all(sum(len(samples[i].tokens) - 1 for i in pack) <= 64 for pack in packs)


def test_a_pack_without_samples_is_padding_that_counts_nowhere():
    samples = [random_samples(50, count=1, seed=seed, reward=1.0)[0] for seed in range(3)]
    packs = plan_packs(samples, 40, 4)
    assert sorted(map(len, packs)) == [0, 1, 1, 1]
    empty = build_pack(samples, [], 8, "cpu")
    assert empty.tokens.shape == (1, 8) and empty.fields["reward"].tolist() == empty.mask.tolist() == [0.0] * 8
    assert (empty.segments == -1).all() and empty.params.cu_seqlens_q.tolist() == [0, 8]


def test_labels_fields_and_masks_line_up_with_the_token_they_belong_to():
    samples = random_samples(50, count=3, reward=1.0)
    pack = build_pack(samples, [2, 0], multiple=8, device="cpu")
    assert pack.tokens.shape[1] % 8 == 0
    position = 0
    for index in (2, 0):
        sample = samples[index]
        for t in range(1, len(sample.tokens)):
            assert pack.tokens[0, position] == sample.tokens[t - 1] and pack.labels[0, position] == sample.tokens[t]
            assert pack.mask[position] == sample.loss_mask[t] and pack.segments[position] == index
            assert pack.fields["reward"][position] == pytest.approx(sample.fields["reward"][t])
            assert pack.position_ids[0, position] == t - 1
            position += 1
    assert (pack.segments[position:] == -1).all() and (pack.mask[position:] == 0).all()
    assert pack.params.cu_seqlens_q[-1] == pack.tokens.shape[1]


def test_scattered_logprobs_come_back_to_their_tokens():
    samples = random_samples(50, count=5)
    packs = [build_pack(samples, indices, 8, "cpu") for indices in ([3, 1], [0, 4, 2])]
    flat = scatter_logprobs(packs, [pack.labels[0].float() for pack in packs], samples)
    rows = flat.split([len(sample.tokens) for sample in samples])
    for sample, row in zip(samples, rows):
        assert row.tolist() == [0.0, *map(float, sample.tokens[1:])]
    assert torch.isfinite(flat).all()
