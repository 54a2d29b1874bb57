"""What the planner counts for a rank is what a real rank of that layout holds."""

from collections import Counter
from typing import NamedTuple

import pytest

from nemo_cascade.engine.config import MegatronConfig, PolicyConfig
from nemo_cascade.engine.memory import Layout, gradient_bytes, optimizer_bytes
from tests.helpers import run_distributed

LAYOUTS = {
    "DP2": dict(world=2),
    "TP2": dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True),
    "PP2": dict(world=2, pipeline_model_parallel_size=2),
    "EP2": dict(world=2, expert_model_parallel_size=2),
    "EP2 of 4": dict(world=4, expert_model_parallel_size=2),
    "TP2+PP2+EP2": dict(
        world=8,
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        expert_model_parallel_size=2,
        sequence_parallel=True,
    ),
}
# megatron-core pads the buckets of its distributed optimizer; of 100,000 parameters that is much.
PADDING = 0.05


def policy_config(layout: dict, precision: str = "bfloat16", **settings) -> PolicyConfig:
    return PolicyConfig(model_name="micro", precision=precision, megatron_cfg=MegatronConfig(**layout, **settings))


def planned(config: PolicyConfig, world: int):
    """Runs in a worker, since torch's world and megatron-core's groups are of a process."""
    from nemo_cascade.engine.planner import rank_models

    return rank_models(config, world)


def held(config: PolicyConfig):
    """What this real rank has: place, layers, counts, and the bytes of buffers as the policy itself made them."""
    from megatron.core import parallel_state

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    parallel.init(config.megatron_cfg)
    policy = Policy(config, seed=0, max_num_steps=1)
    parameters = list(policy.model.parameters())
    buffers = policy.wrapped.buffers + policy.wrapped.expert_parallel_buffers
    masters = [p for group in policy.optimizer.param_groups for p in group["params"]]
    return {
        "stage": parallel_state.get_pipeline_model_parallel_rank(),
        "layers": "".join(policy.model.decoder.layer_type_list),
        "parameters": sum(p.numel() for p in parameters),
        "weights": sum(t.numel() * t.element_size() for t in policy._tensors().values()),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "gradients": sum(buffer.grad_data.numel() * buffer.grad_data.element_size() for buffer in buffers),
        "optimizer": sum(p.numel() * (12 if config.precision == "bfloat16" else 8) for p in masters),
        "data_parallel": parallel_state.get_data_parallel_world_size(with_context_parallel=True),
        "expert_data_parallel": parallel_state.get_expert_data_parallel_world_size(),
    }


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_real_rank_holds_what_was_planned_for_its_pipeline_stage(layout):
    world = layout["world"]
    config = policy_config({key: value for key, value in layout.items() if key != "world"})
    plan = run_distributed(planned, 1, config, world)[0]
    ranks = run_distributed(held, world, config)
    of_stage = [sum(real["stage"] == stage for real in ranks) for stage in range(len(plan))]
    assert [rank.ranks for rank in plan] == of_stage
    for real in ranks:
        rank = plan[real["stage"]]
        for key in ("layers", "parameters", "weights", "data_parallel", "expert_data_parallel"):
            assert getattr(rank, key) == real[key], key
        assert real["gradients"] == pytest.approx(gradient_bytes(rank), rel=PADDING)
        assert real["optimizer"] == pytest.approx(optimizer_bytes(rank, Layout()), rel=PADDING)


def test_a_frozen_router_has_no_gradient_in_the_plan_as_in_the_policy():
    config = policy_config({}, freeze_moe_router=True)
    (rank,) = run_distributed(planned, 1, config, 1)[0]
    (real,) = run_distributed(held, 1, config)
    assert sum(t.count for t in rank.tensors if t.trainable) == real["trainable"] < real["parameters"]


NANO = {
    "DP": dict(),
    "TP2 PP2 CP4 EP8": dict(
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        context_parallel_size=4,
        expert_model_parallel_size=8,
        sequence_parallel=True,
    ),
    # More tensor ranks than key-value groups.
    "TP8 EP16": dict(tensor_model_parallel_size=8, expert_model_parallel_size=16, sequence_parallel=True),
    "TP2 EP4 ETP2": dict(
        tensor_model_parallel_size=2,
        expert_model_parallel_size=4,
        expert_tensor_parallel_size=2,
        sequence_parallel=True,
    ),
}


class Shard(NamedTuple):
    """A part of a parameter as one rank has it: where it lies in the whole, how much, whether it is an expert's."""

    key: str
    offset: tuple[int, ...]
    numbers: int
    size: int
    expert: bool


def shards_of_every_rank(config: PolicyConfig, world: int):
    """Of each rank: its parameters, its bytes of them as planned, and the shards that its own model has."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    from nemo_cascade.engine.gather import leaves, sharded_state_dict
    from nemo_cascade.engine.planner import built, counted

    found = []
    for rank in range(world):
        shards = []
        with built(config, world, rank) as model:
            plan, parameters = counted(model, config, world), dict(model.named_parameters())
            for name, entry in sharded_state_dict(model).items():
                if name in parameters:
                    expert = not getattr(parameters[name], "allreduce", True)
                    for part in leaves(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]:
                        numbers, size = part.data.numel(), part.data.numel() * part.data.element_size()
                        shards.append(Shard(part.key, part.global_offset, numbers, size, expert))
        found.append((plan.parameters, plan.weights - plan.buffers, shards))
    return found


# The smallest worlds in which these layouts have every coordinate, dense parts and experts more than once.
SMALL_WORLDS = {
    "TP2 PP2 EP2 of 8": (8, dict(tensor=2, pipeline=2, expert=2)),
    # More tensor ranks than key-value groups.
    "TP4 EP2 of 8": (8, dict(tensor=4, expert=2)),
}


@pytest.mark.parametrize("world, sizes", SMALL_WORLDS.values(), ids=SMALL_WORLDS)
def test_shards_of_all_ranks_are_the_real_model_each_as_often_as_the_layout_copies_it(world, sizes):
    sizes = {f"{name}_model_parallel_size": size for name, size in sizes.items()}
    cfg = MegatronConfig(**sizes, sequence_parallel=True)
    config = PolicyConfig(model_name="nano_30b_a3b", precision="bfloat16", megatron_cfg=cfg)
    ranks = run_distributed(shards_of_every_rank, 1, config, world)[0]
    copies = Counter(shard for *_, shards in ranks for shard in shards)
    assert sum(shard.numbers for shard in copies) == 31_577_937_344
    assert len(copies) == len({(shard.key, shard.offset) for shard in copies})
    of_stage = world // cfg.pipeline_model_parallel_size
    for shard, count in copies.items():
        if shard.expert:
            assert count == of_stage // cfg.expert_model_parallel_size // cfg.expert_tensor_parallel, shard
        else:  # cut over tensor ranks; or a norm, a router, which all of them have
            assert count in (of_stage // cfg.tensor_model_parallel_size, of_stage), shard
    for parameters, size, shards in ranks:
        assert parameters == sum(shard.numbers for shard in shards)
        assert size == sum(shard.size for shard in shards)
    assert sum(size for _, size, _ in ranks) == sum(count * shard.size for shard, count in copies.items())


@pytest.mark.parametrize("layout", NANO.values(), ids=NANO)
def test_ranks_of_the_real_model_add_up_to_its_parameters_each_counted_once(layout):
    config = PolicyConfig(model_name="nano_30b_a3b", precision="bfloat16", megatron_cfg=MegatronConfig(**layout))
    plan = run_distributed(planned, 1, config, 128)[0]
    assert sum(rank.whole for rank in plan) == 31_577_937_344
    assert "".join(rank.layers for rank in plan) == "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


def planned_twice_and_then_real(config, world):
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.planner import pretend, rank_models

    new_group, state = dist.new_group, torch.get_rng_state()
    first, second = rank_models(config, world), rank_models(config, world)
    clean = not dist.is_initialized() and not parallel_state.is_initialized() and dist.new_group is new_group
    same_state = torch.equal(state, torch.get_rng_state())
    parallel.init(MegatronConfig())
    try:
        with pretend(config.megatron_cfg, world, 0):
            refused = False
    except RuntimeError:
        refused = True
    return first == second, clean, same_state, refused, dist.get_world_size()


def test_nothing_of_a_pretended_world_stays_behind():
    config = policy_config({"expert_model_parallel_size": 2})
    assert run_distributed(planned_twice_and_then_real, 1, config, 64)[0] == (True, True, True, True, 1)
