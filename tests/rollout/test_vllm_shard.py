"""What one of vLLM's tensor ranks is to hold of a network; that vLLM's loaders put it there is seen where vLLM is (test_vllm.py)."""

from dataclasses import replace

import pytest
import torch

from nemo_cascade.models.presets import PRESETS
from nemo_cascade.rollout.vllm_shard import PARTS, Shard, local_part, sharing_problems
from tests.helpers import run_distributed

TINY, NANO = PRESETS["tiny"], PRESETS["nano_30b_a3b"]


def shapes(preset) -> dict[str, tuple[int, ...]]:
    """One tensor of every kind, columns cut short where they are not shared."""
    inner = preset.mamba_num_heads * preset.mamba_head_dim
    convolved = inner + 2 * preset.mamba_num_groups * preset.mamba_state_dim
    keys = preset.num_query_groups * preset.kv_channels
    queries = preset.num_attention_heads * preset.kv_channels
    layer = "backbone.layers.0.mixer"
    found = {"backbone.embeddings.weight": (preset.vocab_size, 2), "lm_head.weight": (preset.vocab_size, 2)}
    found |= {f"{layer}.{letter}_proj.weight": (rows, 2) for letter, rows in (("q", queries), ("k", keys), ("v", keys))}
    found |= {f"{layer}.o_proj.weight": (2, queries), f"{layer}.out_proj.weight": (2, inner), f"{layer}.norm.weight": (inner,)}
    found |= {f"{layer}.{name}": (preset.mamba_num_heads,) for name in ("A_log", "D", "dt_bias")}
    found |= {f"{layer}.in_proj.weight": (preset.mamba_in_proj_size, 2)}
    found |= {f"{layer}.conv1d.weight": (convolved, 1, 4), f"{layer}.conv1d.bias": (convolved,)}
    width = preset.moe_shared_expert_intermediate_size
    found |= {f"{layer}.shared_experts.up_proj.weight": (width, 2), f"{layer}.shared_experts.down_proj.weight": (2, width)}
    for expert in (0, preset.num_moe_experts - 1):
        found[f"{layer}.experts.{expert}.up_proj.weight"] = (preset.moe_ffn_hidden_size, 2)
        found[f"{layer}.experts.{expert}.down_proj.weight"] = (2, preset.moe_ffn_hidden_size)
    return found


@pytest.mark.parametrize("preset, ranks", [(TINY, 2), (NANO, 2), (NANO, 4), (NANO, 8)], ids=lambda one: str(getattr(one, "name", one)))
def test_every_number_lies_on_one_rank_and_heads_that_are_fewer_than_ranks_on_as_many_each(preset, ranks):
    assert all(any(name.endswith(ending) for name in shapes(preset)) for ending in PARTS)
    for whole_experts in (False, True):
        shards = [Shard(rank, ranks, whole_experts) for rank in range(ranks)]
        assert list(sharing_problems(preset, shards[0])) == []
        for name, shape in shapes(preset).items():
            numbers = torch.arange(torch.Size(shape).numel()).view(shape)
            parts = [local_part(name, numbers, preset, shard) for shard in shards]
            times = max(1, ranks // preset.num_query_groups) if ".k_proj" in name or ".v_proj" in name else 1
            held = torch.cat([part.flatten() for part in parts if part is not None])
            assert held.bincount(minlength=numbers.numel()).tolist() == [times] * numbers.numel(), name
            if not (whole_experts and ".experts." in name or name.endswith(("embeddings.weight", "lm_head.weight"))):
                assert len({part.shape for part in parts}) == 1, f"{name}: ranks hold equally much"


def test_each_block_of_mambas_projection_is_dealt_out_by_itself():
    name, size = "backbone.layers.0.mixer.in_proj.weight", TINY.mamba_in_proj_size
    inner, states = TINY.mamba_num_heads * TINY.mamba_head_dim, TINY.mamba_num_groups * TINY.mamba_state_dim
    blocks = torch.arange(size).split([inner, inner, states, states, TINY.mamba_num_heads])
    second = local_part(name, torch.arange(size), TINY, Shard(1, 2))
    assert second.tolist() == [int(row) for block in blocks for row in block[len(block) // 2 :]]


def test_what_so_many_ranks_cannot_share_is_named():
    told = " / ".join(sharing_problems(NANO, Shard(size=3)))
    for name in ("num_attention_heads 32", "mamba_num_heads 64", "mamba_num_groups 8", "num_query_groups 2"):
        assert name in told
    one_group = replace(NANO, mamba_num_groups=1)
    assert list(sharing_problems(one_group, Shard(size=2))) == ["the model's mamba_num_groups 1 cannot be shared by 2 ranks"]


def grouped():
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.rollout.vllm_build import ranks_of

    parallel.init(MegatronConfig())
    two, one = ranks_of(2, dist.group.WORLD), ranks_of(1, dist.group.WORLD)
    found = [dist.get_process_group_ranks(group) for group in (two.holders, two.sharing, one.sharing)]
    try:
        ranks_of(3, dist.group.WORLD)
    except ValueError as error:
        return *found, one.holders, str(error)


def test_neighbours_hold_an_engine_and_those_of_one_place_share_the_requests():
    told = "policy.generation.vllm_cfg.tensor_parallel_size: 3 does not divide the 4 ranks"
    for rank, found in enumerate(run_distributed(grouped, 4)):
        first = rank // 2 * 2
        assert found == ([first, first + 1], [rank % 2, rank % 2 + 2], [0, 1, 2, 3], None, told)
