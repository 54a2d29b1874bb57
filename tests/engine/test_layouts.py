"""The same weights give the same loss, the same gradients and the same training at every layout."""

from unittest.mock import patch

import pytest
import torch

from nemo_cascade.engine.batch import plan_packs
from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from tests.engine.cases import full_gradients, random_samples
from tests.helpers import run_distributed

LAYOUTS = {
    "DP2": dict(world=2),
    "TP2": dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True),
    "EP2": dict(world=2, expert_model_parallel_size=2),
    "TP2+EP2": dict(world=2, tensor_model_parallel_size=2, expert_model_parallel_size=2, sequence_parallel=True),
    "PP2": dict(world=2, pipeline_model_parallel_size=2),
    "CP2": dict(world=2, context_parallel_size=2),
    "TP2+PP2": dict(world=4, tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True),
}
# With these, all of what a cluster would combine; they take longer.
MORE_LAYOUTS = {
    "PP2+EP2": dict(world=4, pipeline_model_parallel_size=2, expert_model_parallel_size=2),
    "TP2+CP2": dict(world=4, tensor_model_parallel_size=2, context_parallel_size=2, sequence_parallel=True),
    "TP2+PP2+EP2": dict(
        world=8,
        tensor_model_parallel_size=2,
        pipeline_model_parallel_size=2,
        expert_model_parallel_size=2,
        sequence_parallel=True,
    ),
}
STEPS = 5


def config(distributed_optimizer: bool, **layout) -> PolicyConfig:
    return PolicyConfig(
        model_name="micro",
        sequence_packing=SequencePackingConfig(train_mb_tokens=64),
        megatron_cfg=MegatronConfig(
            moe_router_load_balancing_type="seq_aux_loss",
            moe_aux_loss_coeff=1e-2,
            moe_router_bias_update_rate=1e-3,
            optimizer=OptimizerConfig(lr=1e-3, use_distributed_optimizer=distributed_optimizer),
            **layout,
        ),
    )


def samples_for(policy):
    """Samples whose packs are the same at every layout. Were they cut anew, mcore's balancing loss, which is a mean over each
    pack, would not be the same."""
    samples = random_samples(policy.preset.vocab_size, seed=1177)
    ways = [(ranks, multiple) for ranks in (1, 2) for multiple in (1, 4)]
    plans = [plan_packs(samples, policy.config.sequence_packing.train_mb_tokens, *way) for way in ways]
    assert all(plan == plans[0] for plan in plans) and any((len(sample.tokens) - 1) % 4 for sample in samples)
    return samples


def loss_and_gradients(checkpoint, policy_config):
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.sft import sft_loss

    parallel.init(policy_config.megatron_cfg)
    policy = Policy(policy_config, seed=0, max_num_steps=STEPS)
    policy.load(checkpoint, optimizer=False)
    return full_gradients(policy, samples_for(policy), sft_loss)


def along_a_run(directory, policy_config):
    """Weights of five checkpoints of a run, and the smallest distance between a chosen expert and one that was not."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.models.router import Router
    from nemo_cascade.stages.sft import sft_loss

    parallel.init(policy_config.megatron_cfg)
    policy = Policy(policy_config, seed=0, max_num_steps=4 * STEPS)
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


def five_losses_and_gradients(directory, policy_config):
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.sft import sft_loss

    parallel.init(policy_config.megatron_cfg)
    results = []
    for number in range(STEPS):
        policy = Policy(policy_config, seed=0, max_num_steps=1)
        policy.load(directory / str(number), optimizer=False)
        results.append(full_gradients(policy, samples_for(policy), sft_loss))
    return results


def training_losses(checkpoint, policy_config):
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.stages.sft import sft_loss

    parallel.init(policy_config.megatron_cfg)
    policy = Policy(policy_config, seed=0, max_num_steps=STEPS)
    policy.load(checkpoint, optimizer=False)
    samples = samples_for(policy)
    return [policy.train_step(samples, sft_loss)["loss"] for _ in range(STEPS)]


def write_initial_weights(directory, policy_config):
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    parallel.init(policy_config.megatron_cfg)
    Policy(policy_config, seed=0).save(directory, optimizer=False)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Weights written, and loss, gradients and five losses computed, by one process."""
    directory = tmp_path_factory.mktemp("initial")
    run_distributed(write_initial_weights, 1, directory, config(True))
    loss, gradients = run_distributed(loss_and_gradients, 1, directory, config(False))[0]
    losses = run_distributed(training_losses, 1, directory, config(True))[0]
    return directory, loss, gradients, losses


@pytest.mark.parametrize("name", LAYOUTS)
def test_loss_and_every_gradient_equal_one_process(name, single):
    directory, loss, gradients, _ = single
    layout = dict(LAYOUTS[name])
    for other_loss, other in run_distributed(loss_and_gradients, layout.pop("world"), directory, config(False, **layout)):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            error = (other[parameter] - gradient).norm() / gradient.norm().clamp(min=1e-12)
            assert error < 1e-5, f"{parameter}: {error:.2e}"


@pytest.fixture(scope="module", params=["router trained", "router frozen"])
def run(request, tmp_path_factory):
    """A run's checkpoints with loss and gradients of each, by one process."""
    frozen = dict(freeze_moe_router=request.param == "router frozen")
    directory = tmp_path_factory.mktemp("run")
    ((margin, bias),) = run_distributed(along_a_run, 1, directory, config(True, **frozen))
    print(f"{request.param}: smallest router margin {margin:.1e}, expert biases up to {bias:.3f}")
    assert bias > 0, "a bias of 0 would hide one that is lost"
    (expected,) = run_distributed(five_losses_and_gradients, 1, directory, config(False, **frozen))
    return directory, frozen, margin, expected


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS | MORE_LAYOUTS)
def test_along_a_run_loss_and_every_gradient_equal_one_process(name, run):
    directory, frozen, margin, expected = run
    layout = dict((LAYOUTS | MORE_LAYOUTS)[name])
    worst = 0.0
    for of_rank in run_distributed(
        five_losses_and_gradients, layout.pop("world"), directory, config(False, **layout, **frozen)
    ):
        for (other_loss, other), (loss, gradients) in zip(of_rank, expected, strict=True):
            assert other_loss == pytest.approx(loss, rel=1e-5)
            assert other.keys() == gradients.keys()
            for parameter, gradient in gradients.items():
                error = float((other[parameter] - gradient).norm() / gradient.norm().clamp(min=1e-12))
                assert error < 1e-5, f"{parameter}: {error:.2e}; smallest router margin {margin:.1e}"
                worst = max(worst, error)
    print(f"{name}: largest error of a gradient {worst:.1e}")


@pytest.mark.parametrize("name", LAYOUTS)
def test_five_steps_train_to_the_same_losses(name, single):
    directory, *_, losses = single
    layout = dict(LAYOUTS[name])
    for others in run_distributed(training_losses, layout.pop("world"), directory, config(True, **layout)):
        assert others == pytest.approx(losses, rel=1e-3)
        assert losses[-1] < losses[0], "the test would not notice a step that does nothing"
    assert torch.tensor(losses).isfinite().all()
