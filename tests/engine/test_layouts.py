"""The same weights give the same loss, the same gradients, the same training and the same export at every layout."""

from unittest.mock import patch

import pytest
import torch

from nemo_cascade.engine.batch import plan_packs
from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from tests.engine.cases import (
    EVERY_LAYOUT,
    float64_policies,
    full_gradients,
    largest_error,
    layout,
    random_samples,
)
from tests.helpers import run_distributed

STEPS = 5


def config(
    distributed_optimizer: bool,
    balancing: str = "seq_aux_loss",
    coefficient: float = 1e-2,
    tokens: int = 64,
    **megatron,
) -> PolicyConfig:
    return PolicyConfig(
        model_name="micro",
        sequence_packing=SequencePackingConfig(train_mb_tokens=tokens),
        megatron_cfg=MegatronConfig(
            moe_router_load_balancing_type=balancing,
            moe_aux_loss_coeff=coefficient,
            moe_router_bias_update_rate=1e-3,
            optimizer=OptimizerConfig(lr=1e-3, use_distributed_optimizer=distributed_optimizer),
            **megatron,
        ),
    )


def made(policy_config, max_num_steps=STEPS):
    """A policy in a world of its layout."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    parallel.init(policy_config.megatron_cfg)
    return Policy(policy_config, seed=0, max_num_steps=max_num_steps)


def samples_for(policy):
    """Samples whose packs are the same at every layout. Were they cut anew, mcore's balancing loss, which is a mean
    over each pack, would not be the same."""
    samples = random_samples(policy.preset.vocab_size, seed=1177)
    ways = [(ranks, multiple) for ranks in (1, 2) for multiple in (1, 4)]
    plans = [plan_packs(samples, policy.config.sequence_packing.train_mb_tokens, *way) for way in ways]
    assert all(plan == plans[0] for plan in plans) and any((len(sample.tokens) - 1) % 4 for sample in samples)
    return samples


def write_initial_weights(directory, policy_config):
    made(policy_config, max_num_steps=0).save(directory, optimizer=False)


def loss_and_gradients(checkpoint, policy_config):
    from nemo_cascade.stages.sft import sft_loss

    policy = made(policy_config)
    policy.load(checkpoint, optimizer=False)
    return full_gradients(policy, samples_for(policy), sft_loss)


def training_losses(checkpoint, policy_config):
    from nemo_cascade.stages.sft import sft_loss

    policy = made(policy_config)
    policy.load(checkpoint, optimizer=False)
    samples = samples_for(policy)
    return [policy.train_step(samples, sft_loss)["loss"] for _ in range(STEPS)]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Weights written, and loss, gradients and five losses computed, by one process."""
    directory = tmp_path_factory.mktemp("initial")
    run_distributed(write_initial_weights, 1, directory, config(True))
    loss, gradients = run_distributed(loss_and_gradients, 1, directory, config(False))[0]
    losses = run_distributed(training_losses, 1, directory, config(True))[0]
    return directory, loss, gradients, losses


@pytest.mark.parametrize("name", EVERY_LAYOUT)
def test_loss_and_every_gradient_equal_one_process(name, single):
    directory, loss, gradients, _ = single
    world, settings = layout(name)
    for other_loss, other in run_distributed(loss_and_gradients, world, directory, config(False, **settings)):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        error, where = largest_error(other, gradients)
        print(f"{name}: {error:.1e} {where}")
        assert error < 1e-5, where


def in_float64(function, *arguments):
    with float64_policies():
        return function(*arguments)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """Weights of float64, and loss and gradients computed in it, by one process."""
    directory = tmp_path_factory.mktemp("sharp")
    alone = config(False, moe_router_dtype="fp64")
    run_distributed(in_float64, 1, write_initial_weights, directory, alone)
    return directory, *run_distributed(in_float64, 1, loss_and_gradients, directory, alone)[0]


@pytest.mark.parametrize("name", EVERY_LAYOUT)
def test_in_float64_loss_and_every_gradient_equal_one_process_far_below_float32s_rounding(name, sharp):
    directory, loss, gradients = sharp
    world, settings = layout(name)
    sharp_config = config(False, moe_router_dtype="fp64", **settings)
    for other_loss, other in run_distributed(in_float64, world, loss_and_gradients, directory, sharp_config):
        assert other_loss == pytest.approx(loss, rel=1e-12)
        error, where = largest_error(other, gradients)
        print(f"{name}: {error:.1e} {where}")
        assert error < 1e-12, where


@pytest.mark.parametrize("name", EVERY_LAYOUT)
def test_five_steps_train_to_the_same_losses(name, single):
    directory, *_, losses = single
    world, settings = layout(name)
    for others in run_distributed(training_losses, world, directory, config(True, **settings)):
        assert others == pytest.approx(losses, rel=1e-3)
        assert losses[-1] < losses[0], "the test would not notice a step that does nothing"
    assert torch.tensor(losses).isfinite().all()


# ---------------------------------------------------------------------- along a run


def along_a_run(directory, policy_config):
    """Weights of five checkpoints of a run, and the smallest distance between a chosen expert and one that was not."""
    from nemo_cascade.models.router import Router
    from nemo_cascade.stages.sft import sft_loss

    policy = made(policy_config, max_num_steps=4 * STEPS)
    margins, routing = [], Router.routing

    def watched(router, logits, padding_mask=None):
        scores = logits.detach().flatten(0, 1).sigmoid() + router.expert_bias
        best = scores.topk(router.topk + 1).values
        margins.append(float((best[:, -2] - best[:, -1]).min()))
        return routing(router, logits, padding_mask)

    with patch.object(Router, "routing", watched):
        for number in range(STEPS):
            policy.save(directory / str(number), optimizer=False)
            for _ in range(4):
                policy.train_step(samples_for(policy), sft_loss)
    biases = [float(t.abs().max()) for name, t in policy.model.state_dict().items() if name.endswith("expert_bias")]
    return min(margins), min(biases)


def five_checkpoints(directory, policy_config):
    """(export, loss, gradients) of each checkpoint."""
    from nemo_cascade.stages.sft import sft_loss

    policy, results = made(policy_config), []
    for number in range(STEPS):
        policy.load(directory / str(number), optimizer=False)
        # Before the gradients, with which the expert bias moves.
        export = {name: tensor.clone() for name, tensor in policy.hf_weights()}
        results.append((export, *full_gradients(policy, samples_for(policy), sft_loss)))
    return results


@pytest.fixture(scope="module", params=["router trained", "router frozen"])
def run(request, tmp_path_factory):
    """A run's checkpoints with export, loss and gradients of each, by one process."""
    frozen = dict(freeze_moe_router=request.param == "router frozen")
    directory = tmp_path_factory.mktemp("run")
    ((margin, bias),) = run_distributed(along_a_run, 1, directory, config(True, **frozen))
    print(f"{request.param}: smallest router margin {margin:.1e}, expert biases up to {bias:.3f}")
    assert bias > 0, "a bias of 0 would hide one that is lost"
    (expected,) = run_distributed(five_checkpoints, 1, directory, config(False, **frozen))
    return directory, frozen, margin, expected


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_LAYOUT)
def test_along_a_run_the_export_is_bit_identical_and_loss_and_every_gradient_equal_one_process(name, run):
    directory, frozen, margin, expected = run
    world, settings = layout(name)
    worst = 0.0, ""
    for of_rank in run_distributed(five_checkpoints, world, directory, config(False, **settings, **frozen)):
        for (other_export, other_loss, other), (export, loss, gradients) in zip(of_rank, expected, strict=True):
            assert other_export.keys() == export.keys()
            assert [tensor for tensor in export if not torch.equal(export[tensor], other_export[tensor])] == []
            assert other_loss == pytest.approx(loss, rel=1e-5)
            worst = max(worst, largest_error(other, gradients))
    print(f"{name}: largest error of a gradient {worst[0]:.1e}, {worst[1]}")
    assert worst[0] < 1e-5, f"{worst[1]}; smallest router margin {margin:.1e}"


# ---------------------------------------------------------------------- balance between experts


def balanced_gradients(checkpoint, policy_config, count):
    """Gradients of a step on the first `count` samples, and the expert biases after it."""
    from nemo_cascade.engine.gather import full_tensors
    from nemo_cascade.stages.sft import sft_loss

    policy = made(policy_config)
    policy.load(checkpoint, optimizer=False)
    _, gradients = full_gradients(policy, random_samples(policy.preset.vocab_size, seed=1177)[:count], sft_loss)
    return gradients, {name: t.clone() for name, t in full_tensors(policy.model) if name.endswith("expert_bias")}


# The mean of aux_loss is over a pack, so packs must be those of one process (see samples_for). That of global_aux_loss
# is over what all ranks have at a time: one pack on each of them, beside one of everything on the process alone.
PACK_TOKENS = {"aux_loss": 64, "global_aux_loss": 512}


@pytest.fixture(scope="module", params=PACK_TOKENS)
def balanced(request, single):
    """The balancing loss in words of `config`, so heavy that it decides; one process's gradients and biases."""
    directory, *_ = single
    asked = dict(balancing=request.param, tokens=PACK_TOKENS[request.param])
    (without, _), (gradients, biases) = (
        run_distributed(balanced_gradients, 1, directory, config(False, coefficient=weight, **asked), 12)[0]
        for weight in (0.0, 1.0)
    )
    routers = [name for name in gradients if name.endswith("router.weight")]
    changes = [float((gradients[name] - without[name]).norm() / without[name].norm()) for name in routers]
    assert changes and min(changes) > 1, "it decides nothing"
    return directory, asked | dict(coefficient=1.0), gradients, biases


@pytest.mark.parametrize("name", ["DP2", "TP2+CP2"])
def test_a_balancing_loss_has_the_gradient_of_one_process_with_the_same_global_batch(name, balanced):
    directory, asked, gradients, biases = balanced
    world, settings = layout(name)
    asked = config(False, **asked, **settings)
    for other, other_biases in run_distributed(balanced_gradients, world, directory, asked, 12):
        error, where = largest_error(other, gradients)
        assert error < 1e-5, where
        assert all(torch.equal(biases[layer], other_biases[layer]) for layer in biases)


@pytest.mark.parametrize("balancing", ["seq_aux_loss", "global_aux_loss"])
def test_a_rank_without_a_sample_changes_no_gradient_and_no_expert_bias(balancing, single):
    directory, *_ = single
    asked = dict(balancing=balancing, coefficient=1.0)
    ((gradients, biases),) = run_distributed(balanced_gradients, 1, directory, config(False, **asked), 1)
    assert all(bias.any() for bias in biases.values()), "a bias of 0 would hide one that did not move"
    for name in ("DP2", "EP2"):
        world, settings = layout(name)
        of_layout = config(False, **asked, **settings)
        for other, other_biases in run_distributed(balanced_gradients, world, directory, of_layout, 1):
            error, where = largest_error(other, gradients)
            assert error < 1e-5, f"{name}: {where}"
            assert all(torch.equal(biases[layer], other_biases[layer]) for layer in biases), name
