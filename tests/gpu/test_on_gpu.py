"""What only a GPU can show: the network on CUDA over NCCL, Transformer Engine's layers, FP8 that learns, its speed.

Needs one, with a CUDA build of torch; where a test needs Transformer Engine as well it says so. With
`pytest -s tests/gpu` each test prints what it measured; `docs/log.md` has what that was.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers import run_distributed
from tests.models.test_parity import SHAPES, apart, drawn, ours
from tests.models.test_te import in_process

# transformers takes mamba-ssm's and causal-conv1d's kernels when it is imported and finds them; here it is the oracle, in
# torch and on the CPU. What tests run in other processes does not see this.
sys.modules.update(dict.fromkeys(("mamba_ssm", "causal_conv1d")))
# Triton's products of float32 would be TF32's, with three digits.
os.environ["TRITON_F32_DEFAULT"] = "ieee"

ROOT = Path(__file__).parents[2]
HAVE_TE = importlib.util.find_spec("transformer_engine") is not None

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none here")
needs_te = pytest.mark.skipif(not HAVE_TE, reason="needs Transformer Engine, which is not installed")

# -------------------------------------------------------------------------------- transformers' model


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_transformers_in_fp32(tmp_path, shape):
    from nemo_cascade.models.hf_folder import HFReader

    tokens, expected = drawn(tmp_path, SHAPES[shape])
    _, logits, gradients = run_distributed(ours, 1, tmp_path, tokens)[0]
    slopes = HFReader(tmp_path / "gradients")
    worst = max(apart(gradients[name], slopes[name]) for name in gradients if slopes[name].norm() > 0)
    print(f"{shape}: logits {apart(logits, expected):.1e}, worst gradient {worst:.1e} apart")
    assert apart(logits, expected) < 1e-4 and worst < 1e-3


def theirs_in_bfloat16(folder, tokens):
    """transformers' logits from the same folder, in bfloat16 on the GPU."""
    from transformers import NemotronHForCausalLM

    model = NemotronHForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda()
    with torch.no_grad():
        return model(tokens[:, :-1].cuda(), use_cache=False).logits.float().cpu()


@pytest.mark.parametrize("shape", ["two groups", "eight groups", "experts first, attention last"])
def test_bfloat16_is_as_close_to_fp32_as_transformers_bfloat16(tmp_path, shape):
    """By the median token: here and there one near a tie goes to other experts, on either side."""
    tokens, exact = drawn(tmp_path, SHAPES[shape])
    _, logits, _ = run_distributed(ours, 1, tmp_path, tokens, "bfloat16")[0]
    errors = [float((x - exact).norm(dim=-1).median()) for x in (logits, theirs_in_bfloat16(tmp_path, tokens))]
    print(f"{shape}: median distance to fp32 {errors[0]:.2e}, transformers' {errors[1]:.2e}")
    assert errors[0] < 1.5 * errors[1] and errors[1] > 0


# -------------------------------------------------------------------------------- Transformer Engine


@needs_te
def test_transformer_engines_layers_answer_as_torchs_from_one_checkpoint(tmp_path):
    without = "sys.modules['transformer_engine'] = None"
    keys, written, logprobs = in_process(without, "write_torch", str(tmp_path), "bfloat16")
    kinds, te_keys, (_, inside, after), te_logprobs = in_process("pass", "read_te", str(tmp_path), "bfloat16")
    assert {"TEGroupedMLP", "TERowParallelLinear"} <= set(kinds)
    assert te_keys == keys and inside == after == written
    rows = zip(logprobs, te_logprobs, strict=True)
    differences = sorted(abs(a - b) for row, te_row in rows for a, b in zip(row, te_row, strict=True))
    middle = differences[len(differences) // 2]
    print(f"log-probs differ by {middle:.1e} in the median, by {differences[-1]:.1e} at most")
    assert middle < 0.02


@needs_te
@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise", "mxfp8"])
def test_fp8_learns_a_batch(recipe):
    told = in_process("pass", "learning", dict(enabled=True, fp8_recipe=recipe, unaligned_in_bf16=recipe != "delayed"))
    if isinstance(told, str):
        pytest.skip(told)
    print(f"{recipe}: loss {told[0]:.3f} to {told[-1]:.3f} in {len(told)} steps")
    assert told[-1] < 0.9 * told[0]


def test_grouped_products_are_those_of_each_expert():
    """On random sizes, two experts without tokens; the kernel that adds gradients is in it."""
    from nemo_cascade.models.grouped import GROUPED_MM, grouped_product

    if GROUPED_MM is None:
        pytest.skip("this torch has no grouped_mm")
    sizes = torch.multinomial(torch.rand(14), 6_000, True).bincount(minlength=16).tolist()
    x = torch.randn(sum(sizes), 256, device="cuda").bfloat16().requires_grad_()
    weights = [torch.randn(192, 256, device="cuda").bfloat16().requires_grad_() for _ in sizes]
    for weight in weights:
        weight.main_grad = torch.ones(192, 256, device="cuda")
    out = grouped_product(x, sizes, weights)
    slope = torch.randn_like(out)
    out.backward(slope)
    worst = 0.0
    for rows, slopes, products, gradient, weight in zip(
        x.detach().float().split(sizes), slope.float().split(sizes), out.split(sizes), x.grad.split(sizes), weights
    ):
        added, weight = weight.main_grad - 1, weight.detach().float()
        if len(rows):
            pairs = (products, rows @ weight.T), (gradient, slopes @ weight), (added, slopes.T @ rows)
            worst = max(worst, *(apart(a.detach().float(), b) for a, b in pairs))
        else:
            assert not added.any()
    print(f"worst product {worst:.1e} apart from float32")
    assert worst < 5e-3


# -------------------------------------------------------------------------------- speed


def test_mfu_of_nanos_layers(tmp_path):
    """It measures; a number is no reason to fail, but one that cannot be is."""
    out = tmp_path / "mfu.json"
    command = [sys.executable, "benchmarks/mfu.py", "--steps", "3", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    result = json.loads(out.read_text())
    assert 0 < result["mfu"] < 1 and result["losses"][-1] < result["losses"][0]
