"""The reverse KL over the whole vocabulary in training: the definition's value and gradient, at every split of the vocabulary."""

import contextlib
from unittest.mock import patch

import pytest
import torch

from nemo_cascade.algorithms import reverse_kl
from nemo_cascade.engine import head
from nemo_cascade.stages.config import LossConfig
from tests.engine.cases import full_gradients, largest_error, random_samples
from tests.engine.test_policy import build
from tests.helpers import run_distributed

TOKENS, HIDDEN, VOCAB = 7, 5, 12


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(4)
    shapes = ((TOKENS, HIDDEN), (VOCAB, HIDDEN), (TOKENS, HIDDEN), (VOCAB, HIDDEN), (TOKENS,))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_in_chunks_it_is_the_definition_and_all_logits_are_never_there(chunk, temperature):
    from nemo_cascade.engine.full_vocabulary import head_reverse_kl

    *both, slopes = tensors()
    for tensor in both[:2]:
        tensor.requires_grad_()
    expected = reverse_kl(both[0] @ both[1].T / temperature, both[2] @ both[3].T / temperature)
    wanted = torch.autograd.grad((expected * slopes).sum(), both[:2])
    with patch.object(head, "CHUNK", chunk * VOCAB):
        found = head_reverse_kl(*both, temperature=temperature)
        got = torch.autograd.grad((found * slopes).sum(), both[:2])
    torch.testing.assert_close(found, expected)
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b)


def taught(directory, name, layout) -> tuple:
    """(loss and gradients under two teachers, loss under itself, its largest gradient) at a layout."""
    from nemo_cascade.stages.loss import make_full_vocabulary_loss
    from nemo_cascade.stages.rl import lessons_of

    policy = build(distributed_optimizer=False, **layout)
    samples = random_samples(policy.preset.vocab_size, sampling_logprobs=0.0, domain=0.0)
    teachers = {who: directory / who for who in ("own", "other", "third")}
    if name == "alone":
        for factor, who in ((1.0, "own"), (1.1, "other"), (1.3, "third")):
            with changed(policy, factor):
                policy.save(teachers[who] / "policy", optimizer=False)
    policy.load(teachers["own"] / "policy", optimizer=False)  # fresh weights differ between layouts
    loss = make_full_vocabulary_loss(LossConfig(token_level_loss=False), ["math"])
    # Itself first: a step's gradients move the router's expert bias.
    own, of_own = full_gradients(policy, samples, loss, **lessons_of(policy, samples, ["own"] * len(samples), teachers))
    value, of_others = full_gradients(policy, samples, loss, **lessons_of(policy, samples, ["other"] * 5 + ["third"] * 7, teachers))
    return value, of_others, own, max(gradient.abs().max().item() for gradient in of_own.values())


@contextlib.contextmanager
def changed(policy, factor):
    """Inside, every parameter is so many times as large."""
    kept = [parameter.detach().clone() for parameter in policy.model.parameters()]
    for parameter in policy.model.parameters():
        parameter.data.mul_(factor)
    yield
    for parameter, value in zip(policy.model.parameters(), kept):
        parameter.data.copy_(value)


SPLITS = {
    "TP2": dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True),
    "DP2": dict(world=2),
    "PP2": dict(world=2, pipeline_model_parallel_size=2),
    "CP2": dict(world=2, context_parallel_size=2),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return folder, run_distributed(taught, 1, folder, "alone", {})[0]


@pytest.mark.parametrize("name", ["TP2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("DP2", "PP2", "CP2"))])
def test_two_teachers_teach_the_same_on_two_processes_and_the_student_itself_teaches_nothing(name, alone):
    folder, (value, gradients, own, of_own) = alone
    assert value > 1e-3 and own == of_own == 0.0
    layout = dict(SPLITS[name])
    for found in run_distributed(taught, layout.pop("world"), folder, name, layout):
        assert found[0] == pytest.approx(value, rel=1e-5) and found[2:] == (0.0, 0.0)
        assert largest_error(found[1], gradients)[0] < 1e-4
