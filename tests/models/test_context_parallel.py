"""A pack held in parts by several ranks is the same pack."""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers import run_distributed

LENGTHS = [4, 12, 40, 8]


def boundaries():
    return torch.tensor([0, *LENGTHS]).cumsum(0)


@pytest.mark.parametrize("size", [1, 2])
def test_every_token_is_held_once_and_each_rank_holds_as_many(size):
    from nemo_cascade.models.context_parallel import partitioned_indices

    held = [partitioned_indices(boundaries(), 64, size, rank) for rank in range(size)]
    assert {len(part) for part in held} == {64 // size}
    assert torch.cat(held).sort().values.equal(torch.arange(64))


def test_a_rank_holds_an_early_and_a_late_chunk_of_each_document():
    from nemo_cascade.models.context_parallel import partitioned_indices

    first = partitioned_indices(torch.tensor([0, 8, 12]), 12, 2, 0)
    assert first.tolist() == [0, 1, 6, 7, 8, 11]
    assert partitioned_indices(torch.tensor([0, 8, 12]), 12, 2, 1).tolist() == [2, 3, 4, 5, 9, 10]


@pytest.mark.parametrize("ends, told", [([0, 6], "pad it to 4"), ([0, 4], "the pack has 6 tokens")])
def test_documents_that_cannot_be_cut_are_refused(ends, told):
    from nemo_cascade.models.context_parallel import partitioned_indices

    with pytest.raises(ValueError, match=told):
        partitioned_indices(torch.tensor(ends), 6, 2, 0)


def attended(size):
    """This rank's tokens, answers and gradients of a pack's attention, the queries, keys and values being its own share."""
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.attention import PackedAttention
    from nemo_cascade.models.context_parallel import partitioned_indices

    parallel.init(MegatronConfig())
    config = SimpleNamespace(attention_dropout=0.0, context_parallel_size=size)
    layer = PackedAttention(config, 1, None, None, pg_collection=SimpleNamespace(cp=dist.group.WORLD))
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(64, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
    weights = torch.randn(64, 32, generator=generator, dtype=torch.float64)
    mine = partitioned_indices(boundaries(), 64, size, dist.get_rank())
    query, key, value = (tensor[mine].requires_grad_() for tensor in whole)
    out = layer(query, key, value, packed_seq_params=SimpleNamespace(cu_seqlens_q=boundaries()))
    (out * weights[mine]).sum().backward()
    return mine, out.detach(), query.grad, key.grad, value.grad


def test_attention_over_two_ranks_equals_that_of_one():
    ((_, *alone),) = run_distributed(attended, 1, 1)
    for mine, *parts in run_distributed(attended, 2, 2):
        for part, whole in zip(parts, alone):
            torch.testing.assert_close(part, whole[mine], rtol=1e-12, atol=1e-12)
