"""All experts at once give what megatron-core's experts give one after the other."""

import torch

from tests.helpers import run_distributed


def compare_with_sequential_experts():
    """(differences of outputs and of every gradient) on random tokens, one expert without any."""
    from megatron.core.transformer.moe.experts import SequentialMLP

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.experts import Experts
    from nemo_cascade.models.presets import get_preset
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    parallel.set_seed(0)
    preset = get_preset("micro")
    model = build_model(preset, transformer_config(preset))
    (experts, *_) = [module for module in model.modules() if isinstance(module, Experts)]
    sizes = torch.tensor([3, 0, 5, 1, 7, 2, 4, 10])
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(32, preset.hidden_size, generator=generator) * 10
    probs, upstream = torch.rand(32, generator=generator), torch.randn(32, preset.hidden_size, generator=generator)
    results = []
    for kind in (Experts, SequentialMLP):
        inputs = tokens.clone().requires_grad_(), probs.clone().requires_grad_()
        output, bias = kind.forward(experts, inputs[0], sizes, inputs[1])
        assert bias is None
        gradients = torch.autograd.grad(output, [*inputs, *experts.parameters()], upstream)
        results.append([output.detach(), *gradients])
    return [(float((a - b).abs().max()), float(b.abs().max())) for a, b in zip(*results)]


def test_outputs_and_gradients_are_those_of_sequential_experts():
    (differences,) = run_distributed(compare_with_sequential_experts, 1)
    assert len(differences) == 1 + 2 + 2 * 8
    assert all(difference <= 1e-5 * largest for difference, largest in differences)
    assert sum(largest > 0 for _, largest in differences) == len(differences) - 2, "one expert has no tokens"


def gradients_by_finite_differences():
    from nemo_cascade.engine import cpu

    cpu.install()
    from nemo_cascade.models.experts import ExpertsFunction

    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    weights = [normal(4, 3) for _ in range(3)] + [normal(3, 4) for _ in range(3)]
    return torch.autograd.gradcheck(
        lambda x, probs, *weights: ExpertsFunction.apply(x, probs, [2, 0, 3], False, *weights), (normal(5, 3), normal(5), *weights)
    )


def test_gradients_are_finite_differences():
    assert run_distributed(gradients_by_finite_differences, 1) == [True]
