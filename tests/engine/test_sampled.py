"""Log-probs and gradients are those of the distribution that was sampled from, whole or split over ranks."""

import dataclasses
from unittest.mock import patch

import pytest
import torch

from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.sampling import distribution
from tests.engine.cases import largest_error, layout, random_samples
from tests.engine.test_layouts import config, loss_and_gradients, write_initial_weights
from tests.helpers import run_distributed

SHARPER = GenerationConfig(temperature=0.8, top_p=0.95)
FLATTER = GenerationConfig(temperature=1.3, top_p=0.6)
TOKENS, VOCAB = 9, 8


def case():
    """Logits [tokens, vocab] in float64, labels (first the most, then the least likely token), weights of a loss."""
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(TOKENS, VOCAB, dtype=torch.float64, generator=generator)
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    labels[0], labels[1] = logits[0].argmax(), logits[1].argmin()
    return logits, labels, torch.randn(TOKENS, dtype=torch.float64, generator=generator)


def in_words(logits, labels, generation):
    """log q of the labels, from the sampler's nucleus and the definition."""
    p = (logits / generation.temperature).softmax(-1)
    nucleus = distribution(logits, generation.temperature, generation.top_p) > -torch.inf
    nucleus[range(TOKENS), labels] = True
    return (p[range(TOKENS), labels] / (p * nucleus).sum(-1)).log()


def through_the_head(generation, tensor_parallel):
    """log q and the gradient of its weighted sum by this rank's logits, which are hidden states, the weight being 1."""
    from megatron.core import parallel_state

    from nemo_cascade.engine import head, parallel

    layout = dict(tensor_model_parallel_size=tensor_parallel, sequence_parallel=tensor_parallel > 1)
    parallel.init(config(True, **layout).megatron_cfg)
    logits, labels, weights = case()
    logits = logits.float().requires_grad_()
    group = parallel_state.get_tensor_model_parallel_group()
    mine = torch.eye(VOCAB).chunk(tensor_parallel)[group.rank()]
    with patch.multiple(head, CHUNK=4 * len(mine), BLOCK=3 * VOCAB):
        logprobs, _ = head.label_logprobs(logits, mine, labels, generation, group=group)
    (gradient,) = torch.autograd.grad((logprobs * weights.float()).sum(), logits)
    return logprobs.detach(), gradient.chunk(tensor_parallel, -1)[group.rank()]


@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize(
    "generation",
    [SHARPER, FLATTER, GenerationConfig(temperature=0.7), GenerationConfig(top_p=0.9)],
    ids=lambda g: f"{g.temperature}, {g.top_p}",
)
def test_the_gradient_is_that_of_finite_differences(generation, tensor_parallel):
    logits, labels, weights = case()
    expected = torch.zeros_like(logits)
    for index in range(logits.numel()):
        step = torch.zeros_like(logits).view(-1).index_fill(0, torch.tensor(index), 1e-6).view_as(logits)
        up, down = (in_words(logits + sign * step, labels, generation) for sign in (1, -1))
        expected.view(-1)[index] = ((up - down) * weights).sum() / 2e-6
    results = run_distributed(through_the_head, tensor_parallel, generation, tensor_parallel)
    for logprobs, _ in results:
        torch.testing.assert_close(logprobs.double(), in_words(logits, labels, generation), atol=1e-6, rtol=1e-6)
    gradient = torch.cat([part for _, part in results], -1).double()
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)


def test_a_label_outside_the_nucleus_counts_as_its_last_member():
    logits, labels, _ = case()
    assert distribution(logits, 0.8, 0.95)[1, labels[1]] == -torch.inf
    ((logprobs, _),) = run_distributed(through_the_head, 1, SHARPER, 1)
    plain = (logits / 0.8).log_softmax(-1)[1, labels[1]]
    assert logprobs.isfinite().all() and plain < logprobs[1] < plain - torch.tensor(0.95).log()


def with_generation(generation, distributed_optimizer=False, **layout):
    return dataclasses.replace(config(distributed_optimizer, **layout), generation=generation)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Weights written, loss and gradients under SHARPER by one process."""
    directory = tmp_path_factory.mktemp("initial")
    run_distributed(write_initial_weights, 1, directory, config(True))
    return directory, *run_distributed(loss_and_gradients, 1, directory, with_generation(SHARPER))[0]


@pytest.mark.parametrize("name", ["DP2", "TP2", "EP2", "PP2", "TP2+PP2"])
def test_every_layout_equals_one_process(name, single):
    directory, loss, gradients = single
    world, settings = layout(name)
    sharper = with_generation(SHARPER, **settings)
    for other_loss, other in run_distributed(loss_and_gradients, world, directory, sharper):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        error, where = largest_error(other, gradients)
        assert error < 1e-5, where


def losses(generation, as_sampled):
    """What the policy gives, and what mcore's own loss over plain logits gives, at the trained positions of the same packs."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.batch import scored_positions
    from nemo_cascade.engine.policy import Policy

    policy_config = with_generation(generation, distributed_optimizer=True)
    parallel.init(policy_config.megatron_cfg)
    policy = Policy(policy_config, seed=0, max_num_steps=1)
    samples, seen = random_samples(policy.preset.vocab_size), []

    def watched(logprobs, pack):
        seen.append(logprobs.detach()[scored_positions(pack.mask)])
        return -(logprobs * pack.mask).sum(), pack.mask.sum(), {}

    policy.model.train()
    plain = []
    for pack in policy._packs(samples):
        where = scored_positions(pack.mask)
        # At these positions alone, as matmuls of other sizes round otherwise.
        hook = policy.model.output_layer.register_forward_pre_hook(lambda _, inputs: (inputs[0][where],))
        with torch.no_grad():
            labels = pack.labels[:, where]
            own = policy.model(pack.tokens, pack.position_ids, None, labels=labels, packed_seq_params=pack.params)
        hook.remove()
        plain.append(-own[0])
    policy.train_step(samples, watched, as_sampled=as_sampled)
    return [torch.equal(a, b) for a, b in zip(seen, plain, strict=True)]


@pytest.mark.parametrize(
    ("generation", "as_sampled", "plain"),
    [
        (GenerationConfig(), True, True),
        (SHARPER, False, True),
        (GenerationConfig(temperature=0.0), True, True),
        (SHARPER, True, False),
    ],
    ids=["at 1, 1", "texts that were not sampled", "greedy", "a nucleus"],
)
def test_at_1_and_for_texts_not_sampled_logprobs_are_the_models_own_bit_for_bit(generation, as_sampled, plain):
    (equal,) = run_distributed(losses, 1, generation, as_sampled)
    assert all(equal) if plain else not any(equal)
