"""Continuous batching changes when replies are drawn and nothing else: the same tokens, log-probs and experts in whatever company."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from nemo_cascade.rollout.types import SamplingParams
from tests.helpers import run_distributed
from tests.rollout.test_megatron_engine import build, requests

# One token in ten ends a reply, so that lengths are spread.
PARAMS = SamplingParams(max_new_tokens=20, seed=5, stop_ids=tuple(range(0, 640, 10)))


def finished_by_step(engine, entries) -> list[list]:
    """Adds (requests, params) and steps to the end; the rollouts of every step."""
    for asked, params in entries:
        engine.add(asked, params)
    steps = []
    while engine.busy():
        steps.append(engine.step())
        if engine.batch is not None:
            cached = engine.batch.cache.context.key_value_memory_dict.values()
            assert sum(state.nbytes for states in cached for state in states) <= engine.max_cache_bytes
            assert len(engine.batch.rows) <= engine.max_batch_size
    return steps


def by_request(steps) -> dict:
    return {(rollout.prompt_id, rollout.sample): rollout for rollouts in steps for rollout in rollouts}


def same(a, b) -> bool:
    experts = a.experts is None and b.experts is None or torch.equal(a.experts, b.experts)
    return a == dataclasses.replace(b, logprobs=a.logprobs) and a.logprobs == pytest.approx(b.logprobs, abs=1e-5) and experts


def through_batches(_):
    _, engine = build(router_replay=True)
    asked = requests(prompts=14, samples=3)[:40]
    params = dataclasses.replace(PARAMS, report_experts=True)
    everything = by_request(finished_by_step(engine, [(asked, params)]))
    lengths = [len(rollout.response) for rollout in everything.values()]
    assert len(lengths) == 40 and len(set(lengths)) > 12
    for rollout in everything.values():
        assert rollout.experts.shape[0] == len(rollout.prompt) + len(rollout.response) - 1
    longest = max(len(request.prompt) for request in asked) + params.max_new_tokens
    for rows, cache, fit in ((7, 2**40, 7), (256, 4 * engine._row_bytes(longest), 4)):
        engine.max_batch_size, engine.max_cache_bytes = rows, cache
        steps = finished_by_step(engine, [(asked, params)])
        others = by_request(steps)
        assert all(same(rollout, others[key]) for key, rollout in everything.items()), rows
        # Batches of their own, each to its longest reply, would take more than twice that without reading any prompt.
        assert len(steps) < 1.3 * sum(lengths) / fit + len({request.prompt for request in asked})
    return True


def test_forty_requests_are_the_same_replies_through_batches_of_forty_and_seven_rows_and_a_cache_for_four():
    assert run_distributed(through_batches, 1, None) == [True]


def company(_):
    _, engine = build()
    asked = requests(prompts=12, samples=2)
    one, *short = asked
    kinds = [
        PARAMS,
        dataclasses.replace(PARAMS, max_new_tokens=7, seed=6),
        dataclasses.replace(PARAMS, stop_ids=(), max_new_tokens=3),
        dataclasses.replace(PARAMS, temperature=0.5, top_p=0.9),
    ]
    apart = {}
    for place, kind in enumerate(kinds):
        apart |= by_request(finished_by_step(engine, [(asked[place::4], kind)]))
    whole = by_request(finished_by_step(engine, [(short, PARAMS)]))
    engine.max_batch_size = 4

    mixed = by_request(finished_by_step(engine, [([request], kinds[place % 4]) for place, request in enumerate(asked)]))
    assert mixed.keys() == apart.keys() and all(same(apart[key], mixed[key]) for key in apart)

    endless = dataclasses.replace(PARAMS, max_new_tokens=60, stop_ids=())
    beside = finished_by_step(engine, [([one], endless), (short, dataclasses.replace(PARAMS, max_new_tokens=4))])
    ends = [(rollout.prompt_id, rollout.sample) for rollouts in beside for rollout in rollouts]
    assert len(ends) == len(asked) and ends[-1] == (one.prompt_id, one.sample), "the others went on beside it"

    engine.add([one], endless)
    for _ in range(10):
        assert not engine.step()
    engine.add(short, PARAMS)
    ended = by_request(engine.step() for _ in range(20))
    running = {(row.request.prompt_id, row.request.sample) for row in engine.batch.rows if not row.over}
    waiting = [(request.prompt_id, request.sample) for request, _ in engine.waiting]
    gone = {(one.prompt_id, one.sample), min(running - {(one.prompt_id, one.sample)}), waiting[1]}
    engine.abort(gone)
    ended |= by_request(finished_by_step(engine, []))
    assert ended.keys() == whole.keys() - gone and all(same(rollout, whole[key]) for key, rollout in ended.items())
    return True


def test_long_replies_hold_up_nobody_and_settings_arrivals_and_aborts_beside_it_change_no_reply():
    assert run_distributed(company, 1, None) == [True]


def test_rows_that_move_take_their_last_columns_and_states_along_and_what_is_hidden_is_zero():
    from nemo_cascade.rollout.cache import Cache

    cache = Cache([SimpleNamespace(layer_number=2)], "cpu")
    cache.arrange([], 0, rows=3, columns=6, position=4)
    read = SimpleNamespace(max_sequence_length=2, key_value_memory_dict={})
    keys, states = torch.rand(2, 2, 1, 5), torch.rand(2, 7, 3)
    read.key_value_memory_dict |= {1: (keys, -keys), 2: (states, torch.rand(2, 4, 3, 2))}
    cache.put(read, [1, 0, 1], [0, 1, 2])
    memory = cache.context.key_value_memory_dict
    assert torch.equal(memory[1][0][2:4], keys[:, [1, 0, 1]]) and not memory[1][0][:2].any() and not memory[1][0][4:].any()
    for columns, position in ((9, 7), (5, 2)):
        cache.arrange([0, 1], 2, rows=4, columns=columns, position=position)
        moved, (inputs, _) = memory[1][1], memory[2]
        assert moved.shape == (columns, 4, 1, 5) and torch.equal(moved[position - 2 : position, :2], -keys[:, [1, 0]])
        assert not moved[:, 2:].any() and not moved[: position - 2].any() and not moved[position:].any()
        assert torch.equal(inputs[:2], states[[1, 0]]) and not inputs[2:].any()
    assert cache.position == 2 and not cache.full()
