"""Logits and every gradient equal transformers' `NemotronHForCausalLM`, over networks of many shapes, from weights that
it drew."""

import pytest
import torch

from tests.helpers import run_distributed

BASE = dict(
    vocab_size=96,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    mamba_num_heads=8,
    mamba_head_dim=8,
    n_groups=2,
    ssm_state_size=16,
    conv_kernel=4,
    chunk_size=16,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    moe_shared_expert_intermediate_size=48,
    routed_scaling_factor=2.5,
    layer_norm_epsilon=1e-5,
    initializer_range=0.1,
    max_position_embeddings=512,
    # megatron-core does not clamp dt, and transformers clamps it here, whatever time_step_limit says.
    time_step_min=1e-30,
)
SHAPES = {
    "one group": dict(hybrid_override_pattern="M*E", n_groups=1),
    "two groups": dict(hybrid_override_pattern="MEM*E"),
    "eight groups": dict(hybrid_override_pattern="ME*M", n_groups=8),
    "sixteen experts": dict(hybrid_override_pattern="EMEM*E", n_routed_experts=16, num_experts_per_tok=6),
    "one key-value head": dict(hybrid_override_pattern="**ME", num_key_value_heads=1),
    "as many key-value heads as heads": dict(hybrid_override_pattern="M*ME", num_key_value_heads=4, head_dim=12),
    "experts first, attention last": dict(hybrid_override_pattern="EEMM*", ssm_state_size=8, conv_kernel=3),
    # What a CPU's kernels take: heads and states of whole registers.
    "sides that divide by sixteen": dict(
        hybrid_override_pattern="MEM*EM*", hidden_size=64, head_dim=16, mamba_head_dim=16, ssm_state_size=32, moe_intermediate_size=32
    ),
    "sixteen, four groups": dict(
        hybrid_override_pattern="M*MEM", hidden_size=64, head_dim=32, mamba_num_heads=8, mamba_head_dim=32, n_groups=4
    ),
    "the real pattern": dict(
        hybrid_override_pattern="MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", initializer_range=0.05
    ),
}
ROWS, LENGTH = 2, 37


def drawn(folder, shape):
    """transformers' model with weights of its own, saved to `folder`, and its answers: logits [rows, length, vocab],
    gradients."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    torch.manual_seed(0)
    oracle = NemotronHForCausalLM(NemotronHConfig(**{**BASE, **shape})).float()
    with torch.no_grad():
        for name, tensor in [*oracle.named_parameters(), *oracle.named_buffers()]:
            if tensor.is_floating_point() and ("norm" in name or name.endswith(("bias", "D"))):
                tensor.add_(0.2 * torch.randn_like(tensor))
    oracle.save_pretrained(folder)
    tokens = torch.randint(0, BASE["vocab_size"], (ROWS, LENGTH + 1))
    logits = oracle(tokens[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.copy_(parameter.grad)
    oracle.save_pretrained(folder / "gradients")
    return tokens, logits.detach()


def ours(folder, tokens, precision="float32"):
    """Our model's weights, logits and gradients from the same folder, under Hugging Face's names, on the CPU."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.engine.convert import read_hf
    from nemo_cascade.engine.gather import full_tensors
    from nemo_cascade.models.hf import hf_tensors
    from nemo_cascade.models.presets import get_preset
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    preset = get_preset(str(folder))
    settings = dict(params_dtype=getattr(torch, precision), bf16=precision == "bfloat16")
    model = build_model(preset, transformer_config(preset, **settings)).cuda()
    read_hf(model, folder, preset)
    weights = {name: tensor.cpu().clone() for name, tensor in hf_tensors(full_tensors(model), preset)}
    tokens, positions = tokens.cuda(), torch.arange(LENGTH).expand(ROWS, LENGTH).cuda()
    logits = model(tokens[:, :-1], positions, None)
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    gradients = {name: tensor.cpu().clone() for name, tensor in hf_tensors(full_tensors(model), preset)}
    return weights, logits.detach().float().cpu(), {name: g for name, g in gradients.items() if "e_score" not in name}


def apart(mine: torch.Tensor, other: torch.Tensor) -> float:
    return float((mine - other).norm() / other.norm().clamp(min=1e-12))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_every_gradient_equal_transformers(tmp_path, shape):
    from nemo_cascade.models.hf_folder import HFReader

    tokens, expected = drawn(tmp_path, SHAPES[shape])
    weights, logits, gradients = run_distributed(ours, 1, tmp_path, tokens)[0]
    written, slopes = HFReader(tmp_path), HFReader(tmp_path / "gradients")
    assert weights.keys() == written.shapes().keys()
    assert all(torch.equal(weights[name], written[name]) for name in weights), "the weights came in changed"
    assert expected.std() > 0.05, "a flat model would hide errors"
    assert apart(logits, expected) < 2e-5 and (logits - expected).abs().max() / expected.abs().max() < 2e-5
    assert all(slopes[name].norm() > 0 for name in gradients if "experts." not in name), "no gradient hides errors"
    assert max(apart(gradients[name], slopes[name]) for name in gradients if slopes[name].norm() > 0) < 1e-4
    assert all(gradients[name].norm() == 0 for name in gradients if slopes[name].norm() == 0)
