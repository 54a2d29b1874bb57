"""Training goes through the experts that were chosen while sampling, at every layout, and else is what it was."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, RouterReplayConfig, SequencePackingConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.types import Request, SamplingParams
from tests.engine.cases import full_gradients, largest_error, layout, random_samples
from tests.helpers import run_distributed

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
RECOMPUTED = (
    dict(activation_checkpointing=True),
    dict(recompute_granularity="full", recompute_method="block", recompute_num_layers=2),
    dict(recompute_granularity="selective", recompute_modules=["moe"]),
)


def build(enabled=True, std=0.3, max_num_steps=4, distributed_optimizer=False, **megatron_cfg):
    """A policy whose weights are large, so that other experts give other answers."""
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    config = PolicyConfig(
        model_name="micro",
        sequence_packing=SequencePackingConfig(train_mb_tokens=64),
        generation=GenerationConfig(max_batch_size=8),
        router_replay=RouterReplayConfig(enabled=enabled),
        megatron_cfg=MegatronConfig(optimizer=OptimizerConfig(lr=0.0, use_distributed_optimizer=distributed_optimizer), **megatron_cfg),
    )
    if not dist.is_initialized():
        parallel.init(config.megatron_cfg)
    policy = Policy(config, seed=3, max_num_steps=max_num_steps)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "norm" not in name:
                parameter.mul_(std / policy.preset.init_method_std)
    return policy


def likelihood(logprobs, pack):
    return -(logprobs * pack.mask).sum(), pack.mask.sum(), {}


def own_experts(policy, samples):
    """The samples with the experts that the routers choose for them in training (needs a single process)."""
    from nemo_cascade.models.replay import recorded, recording, replays_of

    replays, found = replays_of(policy.model), []
    with torch.no_grad(), recording(replays):
        for number, sample in enumerate(samples):
            (pack,) = policy._packs(samples, [[number]])
            policy.model(pack.tokens, pack.position_ids, None, packed_seq_params=pack.params)
            found.append(replace(sample, experts=recorded(replays)))
    return found


def other_experts(policy, samples, seed=5):
    """The samples with experts that have nothing to do with them."""
    generator, preset = torch.Generator().manual_seed(seed), policy.preset

    def drawn(sample):
        shape = len(sample.tokens) - 1, preset.pattern.count("E"), preset.num_moe_experts
        return torch.rand(shape, generator=generator).topk(preset.moe_router_topk).indices.to(torch.uint8)

    return [replace(sample, experts=drawn(sample)) for sample in samples]


def same(one, other) -> bool:
    """Whether two (loss, gradients) are one to the bit."""
    return one[0] == other[0] and all(torch.equal(gradient, other[1][name]) for name, gradient in one[1].items())


def with_and_without(directory):
    """(loss, gradients) by one process through other experts, whose weights are written to `directory`."""
    answers = []
    for settings in ({}, *RECOMPUTED):
        policy = build(**settings)
        samples = random_samples(policy.preset.vocab_size)
        through_own, through_others = own_experts(policy, samples), other_experts(policy, samples)
        plain = full_gradients(policy, samples, likelihood)
        assert same(full_gradients(policy, through_own, likelihood, replay=True), plain), settings
        answers.append(full_gradients(policy, through_others, likelihood, replay=True))
        assert same(full_gradients(policy, samples, likelihood), plain), "nothing of it is left"
        assert same(full_gradients(policy, through_others, likelihood), plain), "they are there, but not replayed"
        assert abs(answers[-1][0] - plain[0]) > 1e-3 and same(answers[-1], answers[0]), settings
    policy.save(directory, optimizer=False)
    return answers[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    return directory, *run_distributed(with_and_without, 1, directory)[0]


def test_experts_that_routing_chooses_anyway_change_no_bit_and_recomputed_layers_take_those_of_their_pack(alone):
    assert alone[1] > 1


def through_others(directory, settings):
    policy = build(**settings)
    policy.load(directory, optimizer=False)
    return full_gradients(policy, other_experts(policy, random_samples(policy.preset.vocab_size)), likelihood, replay=True)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("DP2", "TP2+EP2", "TP2+PP2", "TP2+CP2")]


@pytest.mark.parametrize("name", ["TP2", "EP2", "PP2", "CP2", *SLOW])
def test_every_layout_goes_through_the_experts_that_one_process_goes_through(name, alone):
    directory, loss, gradients = alone
    world, settings = layout(name)
    for other_loss, other in run_distributed(through_others, world, directory, dict(settings, activation_checkpointing=True)):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        error, where = largest_error(other, gradients)
        assert error < 2e-5, where


def by_the_formula(layer, hidden, experts, router_weight):
    """A MoE layer's output [tokens, hidden] through these experts [tokens, topk], in float64, token by token."""

    def answer(module, x):
        first, second = (linear.weight.detach().double() for linear in (module.linear_fc1, module.linear_fc2))
        return (x @ first.T).relu().square() @ second.T

    rows = []
    for x, chosen in zip(hidden, experts.long()):
        scores = (router_weight @ x).sigmoid()[chosen]
        gates = scores / scores.sum() * layer.config.moe_router_topk_scaling_factor
        routed = sum(gate * answer(layer.experts.local_experts[e], x) for gate, e in zip(gates, chosen.tolist()))
        rows.append(routed + answer(layer.shared_experts, x))
    return torch.stack(rows)


def a_layer_and_its_formula(_):
    from megatron.core.transformer.moe.moe_layer import MoELayer

    from nemo_cascade.models.replay import counted, forget, replaying

    policy = build(max_num_steps=0)
    preset, generator = policy.preset, torch.Generator().manual_seed(1)
    (sample,) = other_experts(policy, random_samples(preset.vocab_size, count=1, seed=4))
    layer = next(module for module in policy.model.modules() if isinstance(module, MoELayer))
    experts, weight = sample.experts[:, 0], layer.router.weight
    # Whom the bias would choose is nothing to those that are given.
    layer.router.expert_bias.copy_(torch.randn(preset.num_moe_experts, generator=generator))
    hidden, slopes = torch.randn(2, len(experts), 1, preset.hidden_size, generator=generator)
    hidden.requires_grad_()
    with replaying(policy.model, sample.experts.short()):
        output = layer(hidden)[0]
    forget(policy.model)
    replayed, changed = counted(policy.model)
    assert replayed == experts.numel() and 0 < changed < replayed
    found = output[:, 0], *torch.autograd.grad(output, (hidden, weight), slopes)
    wide = hidden.detach()[:, 0].double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = by_the_formula(layer, wide[0], experts, wide[1])
    expected = expected, *torch.autograd.grad(expected, wide, slopes[:, 0].double())
    for got, wanted in zip(found, expected):
        torch.testing.assert_close(got.detach().double().reshape(wanted.shape), wanted.detach(), rtol=1e-4, atol=1e-5)
    assert expected[2].abs().max() > 1e-3, "the gradient reaches the router"


def test_outputs_and_gradients_are_those_of_the_formula_with_the_given_experts():
    run_distributed(a_layer_and_its_formula, 1, None)


def replayed_logprobs(policy, samples, plan):
    """Log-probs of each sample's labels through its experts; plan: which samples share a pack."""

    def kept(values, pack):
        return values.sum(), torch.ones((), dtype=torch.int), {"of": [values[pack.segments == n] for n in range(len(samples))]}

    with torch.no_grad():
        results = policy._run(policy._packs(samples, plan, replay=True), kept, forward_only=True, trained_only=False)
    return [torch.cat(parts) for parts in zip(*(result["of"] for result in results))]


def packed_and_alone(_):
    policy = build(max_num_steps=0)
    samples = other_experts(policy, random_samples(policy.preset.vocab_size, count=5, seed=2))
    policy.model.eval()
    together, single = (replayed_logprobs(policy, samples, plan) for plan in ([[3, 0, 4, 1, 2]], [[n] for n in range(5)]))
    for sample, one, other in zip(samples, together, single):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert len(one) == len(sample.tokens) - 1
    turned = replayed_logprobs(policy, [replace(sample, experts=sample.experts.flip(0)) for sample in samples], [[3, 0, 4, 1, 2]])
    assert not torch.allclose(torch.cat(turned), torch.cat(together), atol=1e-3), "a shift would show"
    mixed = [*samples[:-1], replace(samples[-1], experts=None, name="prompt ab, reply 3")]
    with pytest.raises(ValueError, match="prompt ab, reply 3 has no experts to replay and others"):
        policy._packs(mixed, [[0, 1]], replay=True)
    with pytest.raises(ValueError, match="Sample.experts has 2 rows for"):
        replace(samples[0], experts=samples[0].experts[:2])


def test_each_of_several_packed_sequences_goes_through_its_own_experts():
    run_distributed(packed_and_alone, 1, None)


# -------------------------------------------------------------------------------- what the engine reports


def requests(vocab_size, prompts=6, samples=3):
    generator = torch.Generator().manual_seed(9)
    made = []
    for number in range(prompts):
        length = int(torch.randint(1, 40, (), generator=generator))
        prompt = tuple(torch.randint(18, vocab_size, (length,), generator=generator).tolist())
        made += [Request(f"{number:02x}", k, prompt) for k in range(samples)]
    return made


def drawn(policy):
    """Training samples of what the embedded engine draws, stopping often."""
    from nemo_cascade.rollout.engine import generate_global
    from nemo_cascade.stages.rl import rollout_sample
    from nemo_cascade.stages.rollouts import make_engine

    stops = tuple(range(0, policy.preset.vocab_size, 12))
    params = SamplingParams(max_new_tokens=24, stop_ids=stops, seed=2, report_experts=True)
    rollouts = generate_global(make_engine(policy), requests(policy.preset.vocab_size), params)
    return [rollout_sample(rollout, True, advantages=1.0) for rollout in rollouts]


def reported(directory, settings):
    """(what the engine reported, share of it that training's own routing would not have chosen)"""
    policy = build(distributed_optimizer=True, **settings)
    policy.load(directory, optimizer=False)
    samples = drawn(policy)
    return [sample.experts for sample in samples], policy.train_step(samples, likelihood)["router_replay_changed"]


@pytest.mark.parametrize("name", ["one", *(pytest.param(name, marks=pytest.mark.slow) for name in ("DP2", "TP2", "EP2"))])
def test_the_engine_reports_the_experts_that_training_would_choose(name, alone):
    world, settings = layout(name)
    for experts, changed in run_distributed(reported, world, alone[0], settings):
        assert changed < 0.01
        assert len({len(rows) for rows in experts}) > 3 and len(torch.cat(experts).unique()) == 8


def with_a_rounded_engine(_):
    """Metrics of one batch, sampled with weights rounded to FP4 and trained as it is: without replay, with it."""
    from nemo_cascade.stages.config import LossConfig
    from nemo_cascade.stages.loss import make_loss

    sys.path.append(BENCHMARKS)
    from evidence import stand_ins

    policy = build(distributed_optimizer=True)
    with stand_ins.rounded(policy.model):
        samples = drawn(policy)
    loss = make_loss(LossConfig(), distil=False)
    return [policy.train_step(batch, loss) for batch in ([replace(sample, experts=None) for sample in samples], samples)]


def test_where_the_engine_samples_with_other_weights_replay_brings_training_nearer():
    ((without, replayed),) = run_distributed(with_a_rounded_engine, 1, None)
    assert "router_replay_changed" not in without and replayed["router_replay_changed"] > 0.02
    for name in ("token_mult_prob_error", "gen_kl_error", "policy_kl_error", "js_divergence_error"):
        print(f"{name} without and with replay: {without[name]:.4f}, {replayed[name]:.4f}")
        assert replayed[name] < without[name]
