"""vLLM beside the trainer: it samples from the trained weights after every push, and a push that goes wrong is told.

Run by `make test-vllm` in the environment that has vLLM; skipped elsewhere. All of it in one world of two processes, which keep
their engines, since starting one takes seconds.
"""

import random
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import pytest

from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, SequencePackingConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.types import Request, SamplingParams
from tests.helpers import run_distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here: make test-vllm has an environment with it"),
]

EXPERT = "backbone.layers.5.mixer.experts.5.up_proj.weight"
STEPS = 20
LAYOUTS = {
    "TP2": dict(tensor_model_parallel_size=2, sequence_parallel=True),
    "EP2": dict(expert_model_parallel_size=2),
    "PP2": dict(pipeline_model_parallel_size=2),
}

# Engines over both ranks: each with a part of every expert, or with half of the experts.
ENGINES = {"TP2": dict(tensor_parallel_size=2), "EP2": dict(tensor_parallel_size=2, expert_parallel_size=2)}


def policy_of(steps: int = 0, generation: dict | None = None, **layout):
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    config = PolicyConfig(
        model_name="tiny",
        generation=GenerationConfig(**{"backend": "vllm", "max_batch_size": 64, **(generation or {})}),
        sequence_packing=SequencePackingConfig(train_mb_tokens=1024),
        max_total_sequence_length=1024,
        megatron_cfg=MegatronConfig(**layout),
    )
    config.megatron_cfg.optimizer.lr = 1e-3
    parallel.init(config.megatron_cfg)
    return Policy(config, seed=1, max_num_steps=steps)


def requests(prompts: int, samples: int) -> list[Request]:
    draw = random.Random(7)
    rows = [tuple(draw.randrange(18, 800) for _ in range(draw.randrange(3, 40))) for _ in range(prompts)]
    return [Request(f"{number:016x}", sample, row) for number, row in enumerate(rows) for sample in range(samples)]


def differences(policy, rollouts) -> list[float]:
    """trainer's log-prob - that of sampling, of every sampled token."""
    from nemo_cascade.stages.rl import rollout_sample

    trained = policy.logprobs([rollout_sample(rollout, True) for rollout in rollouts])
    return [a - b for row, r in zip(trained, rollouts) for a, b in zip(row[len(r.prompt) :], r.logprobs, strict=True)]


def left_after_an_abort(engine, params) -> list[str]:
    """The prompts that are answered where the first two of three are aborted."""
    engine.add(requests(3, 1), params)
    engine.abort({(request.prompt_id, request.sample) for request in requests(2, 1)})
    left = []
    while engine.busy():
        left += engine.step()
    return [r.prompt_id for r in left]


class Asks:
    """A tool, and a model's protocol in which each of the first two turns calls it."""

    tools, max_steps = ["count"], 3

    def __init__(self):
        self.calls_made = 0

    def call(self, name, arguments):
        self.calls_made += 1
        return "a"

    def calls(self, tokens, tools):
        return [{"name": "count", "arguments": {}}]

    def told(self, answers, thinking):
        return [100 + len(answers)] * 3


def sampled_over_ranks(policy, sizes: dict) -> dict:
    """What one engine on both ranks sampled after a push, and what became of a number that changed in one rank's part of it."""
    from functools import partial

    from nemo_cascade.engine import parallel
    from nemo_cascade.rollout.agent import Talk, converse
    from nemo_cascade.rollout.config import VllmConfig
    from nemo_cascade.rollout.engine import EngineError, generate_global
    from nemo_cascade.stages.rollouts import make_engine

    policy.config.generation.vllm_cfg = VllmConfig(**sizes)
    engine = make_engine(policy)
    engine.sync(policy)
    params = SamplingParams(max_new_tokens=32, stop_ids=tuple(range(0, 40)), seed=3)
    rollouts = generate_global(engine, requests(12, 4), params)
    tool = Asks()
    talk = Talk(tool, lambda request: (tool, True), 3, 1000)
    talked = generate_global(engine, requests(6, 2), params, partial(converse, talk=talk))
    name = "model.layers.5.mixer.shared_experts.down_proj.weight"
    refuse, changed = ours().refuse_changed, []
    try:
        ours().refuse_changed = lambda *asked: changed.append(asked)  # looked at after the change below, not before
        engine.sync(policy)
        if parallel.rank() == 1:
            engine.parameters[name][2, 3] += 1e-6
        refuse(*changed[0])
        told = ""
    except EngineError as error:
        told = str(error)
    finally:
        ours().refuse_changed = refuse
    return {"rollouts": rollouts, "talked": talked, "calls": tool.calls_made, "differences": differences(policy, rollouts), "told": told}


def ours():
    import nemo_cascade.rollout.vllm as module

    return module


def trained_beside() -> dict:
    """What one world of two data-parallel ranks saw, from the first push to the last."""
    import math

    import torch

    from nemo_cascade.engine import parallel
    from nemo_cascade.rollout import vllm_push
    from nemo_cascade.rollout.engine import EngineError, generate_global
    from nemo_cascade.stages.rl import rollout_sample
    from nemo_cascade.stages.rollouts import make_engine, served

    seen: dict = {}
    policy = policy_of(STEPS)
    engine = make_engine(policy)
    params = SamplingParams(max_new_tokens=32, stop_ids=tuple(range(0, 40)), seed=3)
    engine.sync(policy)
    rollouts = generate_global(engine, requests(12, 4), params)
    seen["rollouts"], seen["again"] = rollouts, generate_global(engine, requests(12, 4), params)
    seen["start"] = differences(policy, rollouts)
    nucleus = SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=32, stop_ids=(), seed=5)
    generation = policy.config.generation
    policy.config.generation = replace(generation, temperature=0.7, top_p=0.9)
    seen["nucleus"] = differences(policy, generate_global(engine, requests(8, 2), nucleus))
    policy.config.generation = generation
    greedy = SamplingParams(temperature=0, max_new_tokens=8, stop_ids=())
    seen["greedy"] = generate_global(engine, requests(4, 1), greedy)
    policy.config.generation.backend = "megatron"
    embedded = make_engine(policy)
    policy.config.generation.backend = "vllm"
    seen["greedy embedded"] = generate_global(embedded, requests(4, 1), greedy)

    def loss(logprobs, pack):
        kept = pack.mask > 0
        return -(logprobs * kept).sum(), kept.sum(), {}

    weights = [policy.weights_hash()]
    for step in range(STEPS):
        few = rollouts[step % 4 :: 4]
        policy.train_step([rollout_sample(r, True) for r in few], loss)
        engine.sync(policy)
        rollouts = generate_global(engine, requests(12, 4), SamplingParams(max_new_tokens=12, stop_ids=(), seed=step))
        seen["end"] = differences(policy, rollouts)
    weights.append(policy.weights_hash())
    seen["moved"] = weights[0] != weights[1]
    samples = [[r.prompt + r.response for r in rollouts][0]]
    seen["scored"] = (served(policy)(samples)[0], policy.logprobs([rollout_sample(rollouts[0], True)])[0])

    seen["left"] = left_after_an_abort(engine, params)

    # One number of one expert of one rank's vLLM, changed behind everybody's back while weights arrive.
    checked = vllm_push.refuse_changed

    def corrupting(parameters, sent, first_expert):
        if parallel.rank() == 1:
            vllm_push.lying(EXPERT, sent[EXPERT].shape, parameters)[2, 3] += 1e-6
        checked(parameters, sent, first_expert)

    ours().refuse_changed = corrupting
    try:
        engine.sync(policy)
    except EngineError as error:
        seen["corrupt"] = str(error)
    finally:
        ours().refuse_changed = checked
    engine.sync(policy)

    execute = engine.llm.step
    if parallel.rank() == 1:
        engine.llm.step = lambda: (_ for _ in ()).throw(MemoryError("no room for the cache"))
    try:
        generate_global(engine, requests(2, 1), params)
    except EngineError as error:
        seen["raised"] = str(error)
    finally:
        engine.llm.step = execute
    engine.abort({(request.prompt_id, request.sample) for request in requests(2, 1)})
    seen["over ranks"] = {name: sampled_over_ranks(policy, sizes) for name, sizes in ENGINES.items()}
    assert all(math.isfinite(x) for x in seen["end"]) and torch.get_default_dtype() == torch.float32
    return seen


@cache
def beside() -> list[dict]:
    return run_distributed(trained_beside, 2, timeout=1500)


def figures(found: list[float]) -> tuple[float, float, float]:
    """(share of tokens within 2e-3, mean |difference|, mean importance ratio)."""
    import math

    near = sum(abs(x) <= 2e-3 for x in found) / len(found)
    return near, sum(map(abs, found)) / len(found), sum(map(math.exp, found)) / len(found)


@pytest.mark.parametrize("when", ["start", "end"])
def test_sampled_tokens_have_the_trainers_log_probs_at_the_start_and_after_twenty_pushes(when):
    found = beside()[0]
    near, mean, ratio = figures(found[when])
    print(f"{when}: {len(found[when])} tokens, {near:.4f} within 2e-3, mean {mean:.2e}, ratio {ratio:.6f}, worst {max(map(abs, found[when])):.2e}")
    assert found["moved"] and len(found[when]) > 400
    assert near >= 0.99 and mean <= 2e-4 and abs(ratio - 1) <= 1e-3


def test_ranks_share_the_requests_and_all_have_all_replies():
    first, second = beside()
    assert [r.prompt_id for r in first["rollouts"]] == [r.prompt_id for r in requests(12, 4)]
    assert first["rollouts"] == second["rollouts"]


def test_a_reply_is_drawn_again_from_its_seed_and_samples_of_a_prompt_differ():
    rollouts, again = beside()[0]["rollouts"], beside()[0]["again"]
    assert [r.response for r in rollouts] == [r.response for r in again]
    assert len({tuple(r.response) for r in rollouts if r.prompt_id == rollouts[0].prompt_id}) == 4


def test_replies_end_as_the_embedded_engines_do():
    for rollout in beside()[0]["rollouts"]:
        assert len(rollout.logprobs) == len(rollout.response)
        assert all(token >= 40 for token in rollout.response[:-1])
        assert rollout.finish_reason == ("stop" if rollout.response[-1] < 40 else "length")
        assert rollout.finish_reason == "stop" or len(rollout.response) == 32
    assert {r.finish_reason for r in beside()[0]["rollouts"]} == {"stop", "length"}


def test_log_probs_are_those_of_the_nucleus_that_was_sampled_from():
    near, mean, ratio = figures(beside()[0]["nucleus"])
    print(f"nucleus: {near:.4f} within 2e-3, mean {mean:.2e}, ratio {ratio:.6f}")
    # Rounding may move a token across the nucleus's edge, which changes the others by what it had.
    assert near >= 0.97 and abs(ratio - 1) <= 1e-2


def test_greedy_replies_are_the_embedded_engines():
    pairs = zip(beside()[0]["greedy"], beside()[0]["greedy embedded"])
    assert all(ours.response == theirs.response for ours, theirs in pairs)
    for ours, theirs in zip(beside()[0]["greedy"], beside()[0]["greedy embedded"]):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-3)


def test_scores_of_a_text_are_the_trainers():
    served, trained = beside()[0]["scored"]
    assert served == pytest.approx(trained, abs=2e-3)


def test_what_is_aborted_never_comes_back():
    assert beside()[0]["left"] == [requests(3, 1)[2].prompt_id]


def test_one_changed_number_of_one_expert_on_one_rank_is_named_on_every_rank():
    for found in beside():
        assert EXPERT in found["corrupt"] and " 1 are not there as they were sent" in found["corrupt"]


def test_an_engine_that_raises_stops_every_rank_with_the_cause():
    for found in beside():
        # The shorter of two prompts is the second rank's share.
        assert found["raised"] == f"vLLM on rank 1 failed at request {1:016x}/0 and 0 more: MemoryError: no room for the cache"


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_over_two_ranks_samples_with_the_trainers_log_probs_and_both_ranks_have_the_same_replies(name):
    first, second = (found["over ranks"][name] for found in beside())
    near, mean, ratio = figures(first["differences"])
    print(f"{name}: {len(first['differences'])} tokens, {near:.4f} within 2e-3, mean {mean:.2e}, ratio {ratio:.6f}")
    assert near >= 0.99 and mean <= 2e-4 and abs(ratio - 1) <= 1e-3
    assert [(r.prompt_id, r.sample) for r in first["rollouts"]] == [(r.prompt_id, r.sample) for r in requests(12, 4)]
    assert first["rollouts"] == second["rollouts"] and first["talked"] == second["talked"]


@pytest.mark.parametrize("name", ENGINES)
def test_tools_of_an_engine_over_two_ranks_are_called_once(name):
    first, second = (found["over ranks"][name] for found in beside())
    assert first["calls"] == sum(r.info["tool_calls"] for r in first["talked"]) > 0 == second["calls"]


@pytest.mark.parametrize("name", ENGINES)
def test_one_changed_number_in_one_ranks_part_is_named_there(name):
    first, second = (found["over ranks"][name]["told"] for found in beside())
    assert first == "" and "backbone.layers.5.mixer.shared_experts.down_proj.weight" in second


def pushed_from(layout: dict) -> list[float]:
    from nemo_cascade.engine import probe
    from nemo_cascade.stages.rollouts import make_engine

    policy = policy_of(**layout)
    engine = make_engine(policy)
    engine.sync(policy)
    known = probe.take(policy)
    scores = engine.score(known.tokens)
    return [a - b for one, other in zip(known.logprobs, scores) for a, b in zip(one[1:], other[1:])]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_parallel_trainers_weights_arrive_whole(name):
    for found in run_distributed(pushed_from, 2, LAYOUTS[name], timeout=900):
        near, mean, ratio = figures(found)
        print(f"{name}: {len(found)} tokens, {near:.4f} within 2e-3, mean {mean:.2e}, worst {max(map(abs, found)):.2e}")
        assert near >= 0.99 and mean <= 2e-4 and abs(ratio - 1) <= 1e-3
