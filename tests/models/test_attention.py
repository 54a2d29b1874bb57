"""Packed attention is softmax attention over each document's past, computed here the plain way."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_cascade.models.attention import packed_attention, plan_buckets

HEADS, GROUPS, WIDTH = 4, 2, 6


def plain(query, key, value):
    """[tokens, heads, dim] of one document -> [tokens, heads * dim]."""
    key, value = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) / WIDTH**0.5
    future = torch.ones(len(query), len(query), dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), value).flatten(1)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_each_document_attends_to_its_own_past_only(lengths):
    generator = torch.Generator().manual_seed(len(lengths))
    query, key, value = (
        torch.randn(sum(lengths), heads, WIDTH, generator=generator, dtype=torch.float64) for heads in (HEADS, GROUPS, GROUPS)
    )
    mine = packed_attention(query, key, value, torch.tensor([0, *lengths]).cumsum(0))
    parts = [t.split(lengths) for t in (query, key, value)]
    expected = torch.cat([plain(*part) for part in zip(*parts)])
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30))
def test_buckets_hold_every_token_once_and_waste_little(lengths):
    borders = torch.tensor([0, *lengths]).cumsum(0).tolist()
    buckets, position = plan_buckets(borders, "cpu")
    flat = torch.cat([index.flatten() for index in buckets])
    assert flat[position].tolist() == list(range(sum(lengths)))
    assert sum(index.numel() for index in buckets) <= sum(1.25 * n + 4 for n in lengths)


def test_a_new_token_attends_to_what_is_visible_of_the_cache_alone():
    from nemo_cascade.models.attention import attend_to_cache

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 1, 8, generator=generator)
    key, value = (torch.randn(2, 2, 7, 8, generator=generator) for _ in range(2))
    visible = torch.arange(7) >= torch.tensor([[0], [3]])
    together = attend_to_cache(query, key, value, visible)
    for row, first in enumerate((0, 3)):
        alone = attend_to_cache(query[row : row + 1], key[row : row + 1, :, first:], value[row : row + 1, :, first:])
        torch.testing.assert_close(together[:, row : row + 1], alone)
