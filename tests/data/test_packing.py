"""Packing keeps every document whole and once, and wastes little."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_cascade.data.packing import document_multiple, pack, pack_multiple, round_up, spread


@given(st.lists(st.integers(1, 64), max_size=80))
def test_every_document_is_in_exactly_one_pack_that_holds_it(lengths):
    packs = pack(lengths, 64)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in chosen) <= 64 for chosen in packs)
    # No two packs could be one: the greedy rule never leaves such a pair.
    loads = sorted(sum(lengths[index] for index in chosen) for chosen in packs)
    assert len(loads) < 2 or loads[0] + loads[1] > 64


@given(st.lists(st.integers(1, 64), max_size=80), st.booleans())
def test_each_document_goes_into_the_fullest_pack_that_it_fits(lengths, decreasing):
    packs, rooms = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]) if decreasing else range(len(lengths)):
        fitting = [(room, number) for number, room in enumerate(rooms) if room >= lengths[index]]
        number = min(fitting)[1] if fitting else len(packs)
        if not fitting:
            packs.append([])
            rooms.append(64)
        packs[number].append(index)
        rooms[number] -= lengths[index]
    assert pack(lengths, 64, decreasing=decreasing) == packs


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spread_of_lengths", [0.5, 1.0, 1.5])
def test_never_more_packs_than_first_fit_decreasing(seed, spread_of_lengths):
    # On mixtures like those of training: there are a few lists, made for it, on which first-fit is a pack better.
    rng = random.Random(seed)
    lengths = [min(int(rng.lognormvariate(6, spread_of_lengths)) + 1, 8192) for _ in range(2000)]
    rooms = []
    for length in sorted(lengths, reverse=True):
        place = next((place for place, room in enumerate(rooms) if room >= length), len(rooms))
        rooms[place:] = rooms[place:] or [8192]
        rooms[place] -= length
    assert len(pack(lengths, 8192)) <= len(rooms)


@pytest.mark.parametrize("decreasing", [True, False])
def test_packs_of_262144_tokens_are_nearly_full(decreasing):
    rng = random.Random(0)
    lengths = [min(int(rng.lognormvariate(8.6, 1.2)) + 16, 262_144) for _ in range(20_000)]
    packs = pack(lengths, 262_144, decreasing=decreasing)
    assert sum(lengths) / (262_144 * len(packs)) > 0.995


@given(st.integers(1, 16), st.integers(1, 16))
def test_every_rank_gets_an_equal_share_of_documents_and_packs(tp, cp):
    document, whole = document_multiple(cp), pack_multiple(tp, cp)
    assert cp == 1 or document % (2 * cp) == 0
    assert whole % document == 0 and whole // cp % tp == 0 and whole % cp == 0


def test_without_a_parallel_layout_nothing_is_padded():
    assert document_multiple(1) == pack_multiple(1, 1) == 1
    assert (pack_multiple(8, 1), document_multiple(4), pack_multiple(2, 4), pack_multiple(8, 4)) == (8, 8, 8, 32)


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_rounding_up_adds_less_than_the_multiple(length, multiple):
    rounded = round_up(length, multiple)
    assert rounded % multiple == 0 and length <= rounded < length + multiple


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
