"""The embedded engine samples from the model that is trained: log-probs, layouts, batches, limits."""

import dataclasses
import random

import pytest

from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, RouterReplayConfig, SequencePackingConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.types import Request, SamplingParams
from tests.engine.cases import layout
from tests.helpers import run_distributed

LAYOUTS = ["one", "TP2", "EP2", "DP2", "TP2+EP2"]
PARAMS = SamplingParams(max_new_tokens=24, seed=5)


def build(model="micro", max_batch_size=256, std=0.08, temperature=1.0, top_p=1.0, router_replay=False, **layout):
    """A policy whose weights have this standard deviation, so that logits are far from uniform, with its engine."""
    import torch

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.rollouts import make_engine

    config = PolicyConfig(
        model_name=model,
        sequence_packing=SequencePackingConfig(train_mb_tokens=256),
        generation=GenerationConfig(max_batch_size=max_batch_size, temperature=temperature, top_p=top_p),
        megatron_cfg=MegatronConfig(**layout),
        router_replay=RouterReplayConfig(enabled=router_replay),
    )
    parallel.init(config.megatron_cfg)
    policy = Policy(config, seed=3, max_num_steps=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "layer_norm" not in name and "norm" not in name:
                parameter.mul_(std / policy.preset.init_method_std)
    return policy, make_engine(policy)


def requests(prompts=6, samples=2, shortest=1, longest=70, seed=0) -> list[Request]:
    rng = random.Random(seed)
    made = []
    for _ in range(prompts):
        prompt = tuple(rng.randrange(18, 600) for _ in range(rng.randint(shortest, longest)))
        made += [Request(f"{rng.getrandbits(64):016x}", k, prompt) for k in range(samples)]
    return made


def incremental_error(model, settings, sampling=None):
    """Largest difference between the log-probs of sampled tokens and the training forward's."""
    from nemo_cascade.rollout.engine import generate_global
    from nemo_cascade.stages.rl import rollout_sample

    sampling = sampling or {}
    policy, engine = build(model, **sampling, **settings)
    rollouts = generate_global(engine, requests(), dataclasses.replace(PARAMS, **sampling))
    trained = policy.logprobs([rollout_sample(rollout, True) for rollout in rollouts])
    difference = 0.0
    for rollout, logprobs in zip(rollouts, trained):
        pairs = zip(rollout.logprobs, logprobs[len(rollout.prompt) :], strict=True)
        difference = max(difference, *(abs(a - b) for a, b in pairs))
    return difference, [rollout.response for rollout in rollouts], max(abs(x) for r in rollouts for x in r.logprobs)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("model", ["micro", "tiny"])
def test_incremental_logprobs_equal_the_training_forward(model, name):
    world, settings = layout(name)
    for error, responses, spread in run_distributed(incremental_error, world, model, settings):
        assert error < 1e-5
        assert spread > 1.0 and len({tuple(response) for response in responses}) > 6, "a flat model would hide errors"


@pytest.mark.parametrize("name", ["one", "TP2", "EP2"])
def test_logprobs_after_temperature_and_nucleus_equal_the_training_forward(name):
    (world, settings), sampling = layout(name), dict(temperature=0.8, top_p=0.95)
    for error, _, spread in run_distributed(incremental_error, world, "micro", settings, sampling):
        assert error < 1e-5 and spread > 1.0


def write_weights(directory):
    policy, _ = build()
    policy.save(directory, optimizer=False)


def responses_with(directory, settings):
    from nemo_cascade.rollout.engine import generate_global

    policy, engine = build(**settings)
    policy.load(directory, optimizer=False)
    return [rollout.response for rollout in generate_global(engine, requests(), PARAMS)]


def test_every_layout_samples_the_same_replies(tmp_path):
    run_distributed(write_weights, 1, tmp_path)
    answers = []
    for world, settings in map(layout, LAYOUTS):
        # Alone all at once, elsewhere a few at a time.
        answers += run_distributed(responses_with, world, tmp_path, {**settings, "max_batch_size": 256 if world == 1 else 4})
    assert all(answer == answers[0] for answer in answers)
    assert len({tuple(response) for response in answers[0]}) > 6, "a model that says one thing would hide errors"


def compositions(_):
    """The same requests alone, together, in reverse, in small batches."""
    from nemo_cascade.rollout.engine import generate

    asked = requests(prompts=5, samples=3)
    _, engine = build()
    together = generate(engine, asked, PARAMS)
    alone = [generate(engine, [request], PARAMS)[0] for request in asked]
    reverse = generate(engine, asked[::-1], PARAMS)[::-1]
    engine.max_batch_size = 4
    small = generate(engine, asked, PARAMS)
    for other in (alone, reverse, small):
        for a, b in zip(together, other):
            assert a.response == b.response and a.finish_reason == b.finish_reason
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert len({tuple(r.response) for r in together}) > 10
    return True


def test_a_reply_does_not_depend_on_the_batch_it_was_drawn_in():
    assert run_distributed(compositions, 1, None) == [True]


def greedy_pairs(_):
    import torch

    from nemo_cascade.rollout.engine import generate

    policy, engine = build()
    pairs = []
    for rollout in generate(engine, requests(), SamplingParams(temperature=0.0, max_new_tokens=12)):
        ids, expected = list(rollout.prompt), []
        policy.model.eval()
        while len(expected) < 12 and (not expected or expected[-1] not in (2, 11)):
            with torch.no_grad():
                logits = policy.model(torch.tensor([ids]), torch.arange(len(ids))[None], None)
            expected.append(int(logits[0, -1].argmax()))
            ids.append(expected[-1])
        pairs.append((rollout.response, expected))
    return pairs


def test_greedy_decoding_is_the_argmax_of_the_full_forward():
    for response, expected in run_distributed(greedy_pairs, 1, None)[0]:
        assert response == expected


def limits(_):
    from nemo_cascade.rollout.engine import generate

    _, engine = build(std=0.02)
    asked = requests(prompts=40, samples=2)
    everything = tuple(range(0, 640, 8))
    rollouts = generate(engine, asked, SamplingParams(max_new_tokens=6, stop_ids=everything))
    for rollout in rollouts:
        *body, last = rollout.response
        assert not set(body) & set(everything)
        assert (last in everything) == (rollout.finish_reason == "stop")
        assert len(rollout.response) <= 6 and (rollout.finish_reason == "stop" or len(rollout.response) == 6)
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    return True


def test_replies_end_at_stop_tokens_or_at_the_limit():
    assert run_distributed(limits, 1, None) == [True]


def aborted(_):
    _, engine = build(max_batch_size=4)
    asked = requests(prompts=4, samples=2)
    engine.add(asked, PARAMS)
    engine.step()
    gone = {(asked[0].prompt_id, asked[0].sample), (asked[-1].prompt_id, asked[-1].sample)}
    engine.abort(gone)
    seen = set()
    while engine.busy():
        seen |= {(rollout.prompt_id, rollout.sample) for rollout in engine.step()}
    return seen == {(r.prompt_id, r.sample) for r in asked} - gone


def test_aborted_requests_never_come_back_and_the_others_do():
    assert run_distributed(aborted, 1, None) == [True]


def unequal_work(_):
    import torch.distributed as dist

    from nemo_cascade.rollout.engine import generate

    _, engine = build(expert_model_parallel_size=2, max_batch_size=3)
    mine = requests(prompts=3) if dist.get_rank() == 0 else []
    return len(generate(engine, mine, PARAMS))


def test_expert_parallel_ranks_without_work_keep_the_others_company():
    assert run_distributed(unequal_work, 2, None) == [6, 0]


def modes(_):
    policy, engine = build(tensor_model_parallel_size=2, sequence_parallel=True)
    policy.model.train()
    engine.add(requests(), PARAMS)
    engine._forward = None
    with pytest.raises(TypeError):
        engine.step()
    return policy.model.training and policy.model.config.sequence_parallel


def test_a_failing_step_leaves_the_model_ready_to_train():
    assert run_distributed(modes, 2, None) == [True, True]


def too_large(_):
    _, engine = build()
    engine.max_cache_bytes = 1000
    engine.add(requests(), PARAMS)
    with pytest.raises(MemoryError, match="policy.generation.max_new_tokens"):
        engine.step()
    return True


def test_a_batch_beyond_the_cache_bound_is_refused_with_the_remedy():
    assert run_distributed(too_large, 1, None) == [True]


def reading_plan(_):
    from nemo_cascade.rollout import batch

    batch.MAX_PREFILL_TOKENS, before = 6, batch.MAX_PREFILL_TOKENS
    try:
        a, b, c, d, e = (1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11), tuple(range(20))
        return list(batch.prompts_to_read([a, a, b, c, b, d, e]))
    finally:
        batch.MAX_PREFILL_TOKENS = before


def test_prompts_of_about_one_length_are_read_together_and_equal_ones_once():
    assert run_distributed(reading_plan, 1, None) == [[[[0, 1], [2, 4]], [[3], [5]], [[6]]]]
