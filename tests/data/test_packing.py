"""Packing keeps every document whole and once, and wastes little."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.data.packing import pack, spread


@given(st.lists(st.integers(1, 64), max_size=80))
def test_every_document_is_in_exactly_one_pack_that_holds_it(lengths):
    packs = pack(lengths, 64)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in chosen) <= 64 for chosen in packs)
    # No two packs could be one: the greedy rule never leaves such a pair.
    loads = sorted(sum(lengths[index] for index in chosen) for chosen in packs)
    assert len(loads) < 2 or loads[0] + loads[1] > 64


def test_short_documents_fill_packs_almost_completely():
    rng = random.Random(0)
    lengths = [rng.randint(20, 120) for _ in range(1000)]
    packs = pack(lengths, 2048)
    assert sum(lengths) / (2048 * len(packs)) > 0.97


def test_a_document_longer_than_a_pack_is_named():
    with pytest.raises(ValueError, match="document 1 has 65 tokens"):
        pack([3, 65], 64)


def test_packs_in_given_order_are_full_and_keep_neighbours_together():
    rng = random.Random(0)
    lengths = [rng.randint(20, 120) for _ in range(1000)]
    packs = pack(lengths, 2048, decreasing=False)
    assert sorted(index for chosen in packs for index in chosen) == list(range(1000))
    assert sum(lengths) / (2048 * len(packs)) > 0.97
    spans = sorted(max(chosen) - min(chosen) for chosen in packs)
    assert spans[len(spans) // 2] < 60, "packs of about 29 documents"


@given(st.lists(st.integers(1, 64), max_size=40), st.integers(1, 6))
def test_documents_are_spread_evenly_or_not_at_all(lengths, count):
    packs = spread(lengths, count, 64)
    if packs is None:
        # The one that did not fit had at most the mean to share its pack with.
        assert sum(lengths) / count + max(lengths) > 64
        return
    assert len(packs) == count and sorted(index for chosen in packs for index in chosen) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in chosen) for chosen in packs]
    assert max(loads) <= 64
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_long_documents_are_dealt_round():
    packs = spread([300, 300, 300, 300, *[50] * 20], 2, 1280)
    assert [sum(index < 4 for index in chosen) for chosen in packs] == [2, 2]
