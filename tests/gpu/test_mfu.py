"""The FLOPs that `benchmarks/mfu.py` divides by, against torch's own counter; these run on any machine."""

import importlib.util
from pathlib import Path

import pytest
import torch

from nemo_cascade.models.presets import get_preset
from tests.helpers import run_distributed

PATH = Path(__file__).parents[2] / "benchmarks" / "mfu.py"


@pytest.fixture(scope="module")
def mfu():
    spec = importlib.util.spec_from_file_location("mfu", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def counted(tokens):
    """FLOPs that torch counts in products of matrices, forward alone and with the backward pass; numbers of weights."""
    from torch.utils.flop_counter import FlopCounterMode

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    preset = get_preset("micro")
    model = build_model(preset, transformer_config(preset)).cuda()
    ids = torch.randint(0, preset.vocab_size, (1, tokens)).cuda()
    flops = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            logits = model(ids, torch.arange(tokens)[None].cuda(), None)
            if backward:
                logits.float().logsumexp(-1).sum().backward()
        # bmm: scan and attention, whose count depends on how they are computed.
        counts = counter.get_flop_counts()["Global"]
        flops.append(sum(counts.get(operation, 0) for operation in (torch.ops.aten.mm, torch.ops.aten.addmm)))
    return flops, sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)


def test_products_are_what_torch_counts(mfu):
    (forward, both), weights = run_distributed(counted, 1, 50)[0]
    preset = get_preset("micro")
    assert forward == mfu.product_flops(preset, 50)
    # Of an expert that no token was sent to there is no product to go back through; all others have two.
    assert both == 3 * forward
    assert mfu.parameters(preset) == weights


def test_mixing_is_the_pairs_of_a_causal_mask_and_the_recurrence(mfu):
    preset = get_preset("micro")
    one, two = mfu.mixing_flops(preset, [60]), mfu.mixing_flops(preset, [30, 30])
    heads = preset.num_attention_heads * preset.kv_channels * preset.pattern.count("*")
    seen = sum(1 for query in range(60) for key in range(60) if key <= query)
    apart = sum(1 for query in range(60) for key in range(60) if key <= query and key // 30 == query // 30)
    # q k^T and p v: one multiplication and addition each, a number of every head.
    assert one - two == 2 * 2 * heads * (seen - apart)
    without = mfu.mixing_flops(preset, [30]) - 2 * 2 * heads * (apart // 2)
    inner, groups = preset.mamba_num_heads * preset.mamba_head_dim, preset.mamba_num_groups
    state = inner * preset.mamba_state_dim
    convolved = preset.mamba_conv_kernel * (inner + 2 * groups * preset.mamba_state_dim)
    assert without == preset.pattern.count("M") * 30 * (6 * state + 2 * convolved)


def test_nano_does_six_flops_a_token_and_active_weight_and_what_mixes(mfu):
    """3.2e9 of its weights are active, the embedding not counted among them."""
    nano = get_preset("nano_30b_a3b")
    assert mfu.parameters(nano) == pytest.approx(31.578e9, rel=1e-3)
    a_token = mfu.train_flops(nano, 4 * [4_096]) / 16_384
    assert 6 * 3.1e9 < a_token < 6 * 3.5e9


@pytest.mark.parametrize("name, peak", [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12)])
def test_the_peak_is_the_gpus(name, peak, mfu):
    assert mfu.peak_flops(name) == peak


def test_a_gpu_without_a_known_peak_is_named(mfu):
    with pytest.raises(ValueError, match="no BF16 peak known for GeForce; add it to PEAKS"):
        mfu.peak_flops("GeForce")


def test_a_slice_is_as_large_as_a_gpu_holds(mfu):
    assert mfu.fitting(80 * 2**30) == (7, 64) and mfu.fitting(141 * 2**30) == (7, 128)
    with pytest.raises(ValueError, match="--layers and --experts"):
        mfu.fitting(16 * 2**30)
