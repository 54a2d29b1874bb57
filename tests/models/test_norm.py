"""RMSNorm's own backward is the derivative of its definition."""

import pytest
import torch
import torch.nn.functional as F

from nemo_cascade.models.norm import rms_norm


@pytest.mark.parametrize("shape, weight_shape", [((5, 8), (8,)), ((3, 2, 8), (8,)), ((3, 2, 4, 8), (4, 8))])
def test_values_and_gradients_are_those_of_the_definition(shape, weight_shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(weight_shape, generator=generator, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), F.rms_norm(x, shape[-1:], None, 1e-5) * weight)
    assert torch.autograd.gradcheck(lambda *inputs: rms_norm(*inputs, 1e-5), (x, weight))


def test_the_mean_of_squares_is_taken_in_float32():
    x = (torch.randn(4, 4096, generator=torch.Generator().manual_seed(0)) * 100).bfloat16()
    exact = F.rms_norm(x.double(), x.shape[-1:], None, 1e-5)
    normed = rms_norm(x, torch.ones(4096, dtype=torch.bfloat16), 1e-5)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.double(), exact, rtol=2**-8, atol=1e-4)
