"""What the router adds to the loss, and what it counts, against the formulas over whole packs in float64."""

import pytest
import torch

from tests.helpers import run_distributed

TOKENS, PADDING, COEFF = 24, 5, 0.3
LAYOUTS = {
    "one": {},
    "TP2": dict(tensor_model_parallel_size=2, sequence_parallel=True),
    "CP2": dict(context_parallel_size=2),
    "DP2": {},
}


def packs(count: int, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Router logits [packs, tokens, experts] and padding [packs, tokens]."""
    logits = 3 * torch.randn(count, TOKENS, experts, generator=torch.Generator().manual_seed(2))
    return logits, (torch.arange(TOKENS) >= TOKENS - PADDING).expand(count, -1)


def routed(layout: str, empty: bool, settings: dict) -> tuple:
    """(gradient by this rank's logits, tokens that it counted an expert, preset's topk) of one pass through a router."""
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.presets import get_preset
    from nemo_cascade.models.router import Router
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig(**LAYOUTS[layout]))
    parallel.set_seed(0)
    preset = get_preset("micro")
    config = transformer_config(preset, calculate_per_token_loss=True, **LAYOUTS[layout], **settings)
    router = next(module for module in build_model(preset, config).modules() if isinstance(module, Router))
    logits, padding = packs(2 if layout == "DP2" else 1, preset.num_moe_experts)
    if layout == "DP2":
        own = parallel_state.get_data_parallel_rank()
        logits, padding = logits[own], padding[own] | (empty and own == 1)
    else:
        group = parallel_state.get_tensor_and_context_parallel_group()
        logits, padding = (whole[0].chunk(group.size())[group.rank()] for whole in (logits, padding))
    logits = logits[:, None].clone().requires_grad_()
    probabilities, _ = router.routing(logits, padding[None])
    # As a schedule sets it before every backward pass.
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1))
    (probabilities.sum() * 0).backward()
    return logits.grad[:, 0], router.local_tokens_per_expert, preset.moe_router_topk


def balance(logits: torch.Tensor, real: torch.Tensor, topk: int) -> torch.Tensor:
    """Tokens times Switch's loss (Fedus et al. 2021, eq. 4 to 6) of the real ones of logits [tokens, experts]."""
    scores = logits[real].sigmoid()
    scores = scores / scores.sum(-1, keepdim=True)
    chosen = torch.zeros_like(scores).scatter(1, scores.topk(topk).indices, 1)
    experts = logits.shape[1]
    return COEFF * len(scores) * experts * ((chosen.mean(0) / topk) * scores.mean(0)).sum()


def gradient_of(loss, count: int, experts: int, empty: bool) -> torch.Tensor:
    """d loss(logits [tokens of all packs, experts], real) / d logits, in float64."""
    logits, padding = packs(count, experts)
    padding = torch.stack([row | (empty and number == 1) for number, row in enumerate(padding)])
    logits = logits.double().requires_grad_()
    return torch.autograd.grad(loss(logits, ~padding), logits)[0].flatten(0, 1)


@pytest.mark.parametrize("kind", ["aux_loss", "seq_aux_loss", "global_aux_loss"])
@pytest.mark.parametrize("layout, empty", [("one", False), ("TP2", False), ("CP2", False), ("DP2", False), ("DP2", True)])
def test_a_balancing_loss_is_that_of_the_whole_packs_real_tokens(kind, layout, empty):
    settings = dict(moe_router_load_balancing_type=kind, moe_aux_loss_coeff=COEFF)
    results = run_distributed(routed, 1 if layout == "one" else 2, layout, empty, settings)
    gradient, topk = torch.cat([result[0] for result in results]), results[0][2]

    def loss(logits, real):
        if kind == "global_aux_loss":
            return balance(logits.flatten(0, 1), real.flatten(), topk)
        return sum(balance(row, kept, topk) for row, kept in zip(logits, real) if kept.any())

    expected = gradient_of(loss, 2 if layout == "DP2" else 1, gradient.shape[1], empty)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", ["one", "TP2", "CP2", "DP2"])
def test_the_z_loss_is_a_sum_over_real_tokens(layout):
    results = run_distributed(routed, 1 if layout == "one" else 2, layout, False, dict(moe_z_loss_coeff=COEFF))
    gradient = torch.cat([result[0] for result in results])
    expected = gradient_of(
        lambda logits, real: COEFF * logits[real].logsumexp(-1).square().sum(),
        2 if layout == "DP2" else 1,
        gradient.shape[1],
        False,
    )
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("balanced", [False, True])
def test_padding_counts_nowhere_for_the_expert_bias(balanced):
    settings = dict(moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=COEFF) if balanced else {}
    (_, first, topk), (_, second, _) = run_distributed(routed, 2, "DP2", True, settings)
    assert first.sum() == (TOKENS - PADDING) * topk
    assert second.sum() == 0, "a pack of padding alone"
