"""What stands in for CUDA on a CPU does what it stands for."""

import pytest
import torch

from nemo_cascade.engine import cpu
from nemo_cascade.engine.cpu import GroupStepAdam

cpu.install()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_takes_the_steps_of_torchs_adamw(weight_decay):
    generator = torch.Generator().manual_seed(0)
    initial = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,), (2, 2, 2))]
    settings = dict(lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=weight_decay)
    # The last lies otherwise in memory than its gradient.
    initial.append(initial[0].t())
    mine, theirs = ([p.clone().requires_grad_() for p in initial] for _ in range(2))
    optimizers = GroupStepAdam(mine, **settings), torch.optim.AdamW(theirs, **settings)
    for step in range(20):
        for parameters in (mine, theirs):
            for p, shape in zip(parameters, initial):
                p.grad = torch.randn(shape.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert optimizers[0].param_groups[0]["step"] == 20


def test_adam_leaves_parameters_without_a_gradient_alone():
    moved, still = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = GroupStepAdam([moved, still], lr=0.1)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert (moved < 1).all() and (still == 1).all()


def test_cuda_devices_mean_this_machine():
    if torch.cuda.is_available():
        pytest.skip("a GPU answers for itself here")
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.ones(2).cuda().to("cuda:0").device.type == "cpu"
    assert torch.empty_like(torch.ones(2), device="cuda").device.type == "cpu"
    assert torch.ones(2).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, device=torch.cuda.current_device()).device.type == "cpu"


def test_a_model_can_still_be_built_without_memory():
    with torch.device("meta"):
        assert torch.empty(10**12).is_meta
        assert torch.zeros(10**12, device=torch.cuda.current_device()).is_meta or torch.cuda.is_available()


def test_megatrons_helpers_are_not_compiled_and_torch_still_can():
    import megatron.core.fusions.fused_bias_dropout as fused
    import megatron.core.transformer.moe.router as router

    functions = [fused.bias_dropout_add_fused_train, router.TopKRouter._apply_expert_bias]
    assert not any(hasattr(function, "_torchdynamo_orig_callable") for function in functions)
    assert hasattr(torch.compile(lambda x: x), "_torchdynamo_orig_callable")
