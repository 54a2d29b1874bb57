"""All experts' products in one call equal a product an expert, forwards and in what is added to the sums of gradients."""

import pytest
import torch

from nemo_cascade.models.grouped import GROUPED_MM, grouped_product, usable

pytestmark = pytest.mark.skipif(GROUPED_MM is None, reason="this torch has no grouped_mm")


@pytest.mark.parametrize("sizes", [[5, 3, 4], [0, 7, 5], [12, 0, 0]])
def test_grouped_products_equal_those_of_each_expert(sizes):
    torch.manual_seed(0)
    x = torch.randn(12, 32).bfloat16().requires_grad_()
    weights = [torch.randn(16, 32).bfloat16().requires_grad_() for _ in sizes]
    for weight in weights:
        weight.main_grad, weight.grad_added_to_main_grad = torch.ones(16, 32), False
    out = grouped_product(x, sizes, weights)
    slope = torch.randn_like(out)
    out.backward(slope)
    parts = zip(x.detach().split(sizes), slope.split(sizes), out.split(sizes), x.grad.split(sizes), weights)
    for rows, slopes, products, gradient, weight in parts:
        assert torch.allclose(products.float(), rows.float() @ weight.detach().float().T, atol=0.05, rtol=0.01)
        assert torch.allclose(gradient.float(), slopes.float() @ weight.detach().float(), atol=0.05, rtol=0.01)
        assert torch.allclose(weight.main_grad, 1 + slopes.float().T @ rows.float(), atol=0.1, rtol=0.01)
        assert weight.grad is None and weight.grad_added_to_main_grad


def test_only_what_a_gpu_has_in_bfloat16_is_grouped():
    weights = [torch.ones(16, 32, dtype=torch.bfloat16)]
    assert not usable(torch.ones(4, 32, dtype=torch.bfloat16), weights)
