"""The head in chunks gives what all logits at once would, values and gradients, and never makes them."""

from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_cascade.engine import head
from nemo_cascade.engine.head import label_logprobs
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.rollout.sampling import distribution
from tests.engine.cases import full_gradients
from tests.engine.test_layouts import config, samples_for
from tests.helpers import run_distributed

TOKENS, HIDDEN, VOCAB = 7, 5, 12
DISTRIBUTIONS = [
    GenerationConfig(),
    GenerationConfig(temperature=0.7),
    GenerationConfig(temperature=1.3, top_p=0.8),
    GenerationConfig(temperature=0.0, top_p=0.5),
]
SLOPES = {
    "no slope told": None,
    "the true slope": lambda logprobs, chunk: weights()[0][chunk].to(logprobs.dtype),
    "a wrong slope": lambda logprobs, chunk: logprobs.cos(),
}


def in_chunks(tokens: int, width: int = VOCAB):
    """Inside, chunks have so many tokens, and blocks one less."""
    return patch.multiple(head, CHUNK=tokens * width, BLOCK=max(tokens - 1, 1) * width)


def case(dtype=torch.float64, tokens=TOKENS):
    """Hidden states, weight, labels, of which the second is the least likely."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, HIDDEN, dtype=torch.float64, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, dtype=torch.float64, generator=generator)
    labels = torch.randint(VOCAB, (tokens,), generator=generator)
    labels[1:2] = (hidden[1:2] @ weight.T).argmin(-1)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels


def weights(tokens=TOKENS):
    """Of log-probs and entropies in a loss; one token of each has none."""
    both = torch.randn(2, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    both[0, 2:3] = both[1, 4:5] = 0
    return both


def in_words(hidden, weight, labels, generation):
    """log q and the entropy of q from the definitions, over all logits at once."""
    temperature, top_p = (generation.temperature, generation.top_p) if generation.temperature else (1.0, 1.0)
    logits = hidden @ weight.T
    kept = distribution(logits.detach(), temperature, top_p) > -torch.inf
    kept[range(len(labels)), labels] = True
    p = (logits / temperature).softmax(-1) * kept
    q = p / p.sum(-1, keepdim=True)
    return q[range(len(labels)), labels].log(), -torch.where(kept, q * q.where(kept, 1).log(), 0).sum(-1)


def logprobs_in_words(*arguments):
    return in_words(*arguments)[0], None


def with_gradients(function, hidden, weight, labels, generation, **options):
    """[log-probs, entropy if any, gradients by hidden states and weight of their sum weighted by `weights`]."""
    values = [value for value in function(hidden, weight, labels, generation, **options) if value is not None]
    total = sum((value * factors).sum() for value, factors in zip(values, weights(len(labels))))
    return [value.detach() for value in values] + [*torch.autograd.grad(total, (hidden, weight))]


def assert_all_close(found, expected, **tolerances):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerances)


@pytest.mark.parametrize("tokens", [1, 3, 7, 100])
@pytest.mark.parametrize("told", SLOPES)
@pytest.mark.parametrize("generation", DISTRIBUTIONS, ids=lambda g: f"{g.temperature}, {g.top_p}")
def test_values_and_gradients_are_those_of_the_definition_whatever_the_chunks_and_the_slope(generation, told, tokens):
    inputs = case()
    expected = with_gradients(in_words, *inputs, generation)
    with in_chunks(tokens):
        found = with_gradients(label_logprobs, *inputs, generation, slope=SLOPES[told], with_entropy=True)
    assert_all_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("told", SLOPES)
def test_entropy_is_optional(told):
    inputs = case()
    expected = with_gradients(logprobs_in_words, *inputs, GenerationConfig())
    with in_chunks(3):
        found = with_gradients(label_logprobs, *inputs, GenerationConfig(), slope=SLOPES[told])
    assert_all_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_single_token_and_none(tokens):
    inputs = case(tokens=tokens)
    expected = with_gradients(in_words, *inputs, GenerationConfig(top_p=0.8))
    found = with_gradients(label_logprobs, *inputs, GenerationConfig(top_p=0.8), with_entropy=True)
    assert_all_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("generation", [GenerationConfig(), GenerationConfig(temperature=0.7, top_p=0.8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_float32_and_gradients_of_the_inputs_type(dtype, generation):
    inputs = case(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs[:2]]
    expected = with_gradients(in_words, *exact, inputs[2], generation)
    with in_chunks(3):
        found = with_gradients(label_logprobs, *inputs, generation, with_entropy=True)
    assert [tensor.dtype for tensor in found] == [torch.float32, torch.float32, dtype, dtype]
    for one, other in zip(found, expected):
        assert (one - other).norm() / other.norm() < (1e-6 if dtype == torch.float32 else 2e-2)


def test_a_kept_graph_gives_the_same_gradient_again():
    hidden, weight, labels = case()
    with in_chunks(3):
        logprobs, _ = label_logprobs(hidden, weight, labels, slope=SLOPES["the true slope"])
    total = (logprobs * weights()[0]).sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    assert_all_close(torch.autograd.grad(total, (hidden, weight)), first, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(frozen):
    inputs = case()
    _, *expected = with_gradients(logprobs_in_words, *inputs, GenerationConfig())
    inputs[frozen].requires_grad_(False)
    with in_chunks(3):
        logprobs, _ = label_logprobs(*inputs, slope=SLOPES["the true slope"])
    (logprobs * weights()[0]).sum().backward()
    assert inputs[frozen].grad is None
    torch.testing.assert_close(inputs[1 - frozen].grad, expected[1 - frozen], atol=1e-12, rtol=1e-10)


class Watch(TorchDispatchMode):
    """Sizes of all tensors that are made, and how often logits are."""

    def __init__(self):
        super().__init__()
        self.largest, self.logits = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        self.logits += function.name() == "aten::mm.out"
        return result


@pytest.mark.parametrize(
    ("told", "made"), [("no slope told", 8 + 7), ("the true slope", 8), ("a wrong slope", 8 + 7)]
)
@pytest.mark.parametrize("generation", [GenerationConfig(), GenerationConfig(temperature=0.7, top_p=0.8)], ids=str)
def test_nothing_is_larger_than_a_chunk_and_a_told_slope_saves_making_it_twice(generation, told, made):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(32, 3, generator=generator).requires_grad_()
    weight = torch.randn(100, 3, generator=generator).requires_grad_()
    labels, factors = torch.randint(100, (32,), generator=generator), torch.randn(32, generator=generator)
    slope = {**SLOPES, "the true slope": lambda _, chunk: factors[chunk]}[told]
    with in_chunks(4, width=100), Watch() as watch:
        logprobs, _ = label_logprobs(hidden, weight, labels, generation, slope=slope)
        (logprobs * factors).sum().backward()
    assert watch.largest == 4 * 100
    assert watch.logits == made


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_without_gradients_no_slope_is_asked_for_and_nothing_kept(needs_gradient):
    hidden, weight, labels = case()
    hidden, weight = (tensor.detach().requires_grad_(needs_gradient) for tensor in (hidden, weight))
    with in_chunks(3), torch.set_grad_enabled(not needs_gradient):
        logprobs, entropy = label_logprobs(hidden, weight, labels, slope=pytest.fail, with_entropy=True)
    assert not logprobs.requires_grad and not entropy.requires_grad


def split(generation, told, sequence_parallel):
    """As `with_gradients`, of this rank's part of the weight and, under sequence parallel, of the hidden states."""
    from megatron.core import parallel_state

    from nemo_cascade.engine import parallel

    parallel.init(config(True, tensor_model_parallel_size=2, sequence_parallel=True).megatron_cfg)
    group = parallel_state.get_tensor_model_parallel_group()
    hidden, weight, labels = case(tokens=8)
    hidden = (hidden.chunk(2)[group.rank()] if sequence_parallel else hidden).detach()[:, None].requires_grad_()
    weight = weight.chunk(2)[group.rank()].detach().requires_grad_()

    def through_the_mapping(hidden, *arguments, **options):
        return label_logprobs(head.whole_pack(hidden, sequence_parallel), *arguments, group=group, **options)

    slope = told and (lambda logprobs, chunk: weights(8)[0][chunk])
    with in_chunks(3, width=VOCAB // 2):
        return with_gradients(through_the_mapping, hidden, weight, labels, generation, slope=slope, with_entropy=True)


@pytest.mark.parametrize("sequence_parallel", [True, False])
@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("generation", DISTRIBUTIONS, ids=lambda g: f"{g.temperature}, {g.top_p}")
def test_two_tensor_ranks_equal_one_process(generation, told, sequence_parallel):
    logprobs, entropy, of_hidden, of_weight = with_gradients(in_words, *case(tokens=8), generation)
    for rank, found in enumerate(run_distributed(split, 2, generation, told, sequence_parallel)):
        mine = of_hidden.chunk(2)[rank] if sequence_parallel else of_hidden
        expected = [logprobs, entropy, mine[:, None], of_weight.chunk(2)[rank]]
        assert_all_close(found, expected, atol=1e-12, rtol=1e-10)


def token_loss(logprobs, pack):
    """A sum over tokens in which the slope depends on the log-prob, as with importance weights."""
    return (logprobs * logprobs.detach().exp() * pack.mask).sum(), pack.mask.sum(), {}


def sequence_loss(logprobs, pack):
    """Of a product of all log-probs, so that none has a slope of its own."""
    return (logprobs * pack.mask).sum().square() / 100, pack.mask.sum(), {}


def of_policy(layout, loss, tokens):
    """Loss, gradients, how often a softmax is made, packs and chunks of so many tokens, on this rank."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.batch import scored_positions
    from nemo_cascade.engine.policy import Policy

    policy_config = config(False, **layout)
    parallel.init(policy_config.megatron_cfg)
    policy = Policy(policy_config, seed=0, max_num_steps=1)
    samples = samples_for(policy)
    scored = [len(scored_positions(pack.mask)) for pack in policy._packs(samples)]
    with (
        in_chunks(tokens, width=len(policy.model.output_layer.weight)),
        patch.object(head._Head, "softmax", autospec=True, side_effect=head._Head.softmax) as softmax,
    ):
        value, gradients = full_gradients(policy, samples, loss)
    return value, gradients, softmax.call_count, len(scored), sum(-(-count // tokens) for count in scored)


@pytest.mark.parametrize("layout", [{}, dict(tensor_model_parallel_size=2, sequence_parallel=True)], ids=str)
@pytest.mark.parametrize(("loss", "twice"), [(token_loss, False), (sequence_loss, True)], ids=["of tokens", "of all"])
def test_the_policys_gradients_do_not_depend_on_the_chunks(loss, twice, layout):
    world = layout.get("tensor_model_parallel_size", 1)
    whole = run_distributed(of_policy, world, layout, loss, 1000)
    chunked = run_distributed(of_policy, world, layout, loss, 10)
    for (value, gradients, *counts), (other_value, others, made, packs, chunks) in zip(whole, chunked):
        assert counts == [packs] * 3 and chunks > 2 * packs
        assert made == chunks + (chunks - packs if twice else 0)
        assert other_value == pytest.approx(value, rel=1e-5)
        for name, gradient in gradients.items():
            assert (others[name] - gradient).norm() <= 1e-5 * gradient.norm().clamp(min=1e-12), name
