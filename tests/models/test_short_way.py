"""One token by the short way is the token by megatron-core's modules: its logits and what the caches hold afterwards."""

import copy
import dataclasses

import pytest
import torch

from tests.engine.cases import layout
from tests.helpers import run_distributed
from tests.rollout.test_megatron_engine import PARAMS, build, requests


def states(context) -> list[torch.Tensor]:
    return [state for states in context.key_value_memory_dict.values() for state in states]


def both_ways(model: str, shortest: int) -> list[tuple[float, float, bool]]:
    """(largest difference of a logit, of a number in the caches, whether rows are padded) of each step of rows that come and go."""
    policy, engine = build(model, max_batch_size=6)
    short, found = engine.short_way, []

    def compared(tokens, context, visible):
        other = copy.copy(context)
        other.key_value_memory_dict = {k: tuple(t.clone() for t in v) for k, v in context.key_value_memory_dict.items()}
        logits = short(tokens, context, visible)
        engine.short_way = None
        long = engine._forward(tokens[:, None], context.sequence_len_offset, other, visible)
        engine.short_way = compared
        largest = max(float((a - b).abs().max()) for a, b in zip(states(context), states(other), strict=True))
        found.append((float((logits[:, : policy.preset.vocab_size] - long).abs().max()), largest, visible is not None))
        return logits

    engine.short_way = compared
    engine.add(requests(prompts=5, shortest=shortest, longest=40), dataclasses.replace(PARAMS, stop_ids=tuple(range(0, 640, 9))))
    while engine.busy():
        engine.step()
    return found


@pytest.mark.parametrize("model", ["micro", "tiny"])
def test_logits_and_caches_are_those_of_the_modules(model):
    found = [*run_distributed(both_ways, 1, model, 1)[0], *run_distributed(both_ways, 1, model, 40)[0]]
    assert len(found) >= 30 and {padded for _, _, padded in found} == {True, False}
    assert max(logit for logit, _, _ in found) < 1e-4 and max(state for _, state, _ in found) < 1e-5


def has_short_way(settings: dict) -> bool:
    """Whether a policy of these settings has a short way."""
    return build(**settings)[1].short_way is not None


@pytest.mark.parametrize("name", ["TP2", "EP2"])
def test_a_network_in_parts_goes_by_the_modules(name):
    world, settings = layout(name)
    assert run_distributed(has_short_way, world, settings) == [False] * world


def test_a_network_that_overrides_changed_goes_by_the_modules():
    assert run_distributed(has_short_way, 1, {"model_overrides": {"moe_router_num_groups": 2, "moe_router_group_topk": 1}}) == [False]
    assert run_distributed(has_short_way, 1, {}) == [True]
