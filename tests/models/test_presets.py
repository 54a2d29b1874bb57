"""Presets are the published networks: sizes, block kinds, parameter names."""

import collections
import re

import pytest
import torch

from nemo_cascade.models.presets import PRESETS, get_preset
from tests.helpers import run_distributed

# The names a Transformer Engine hybrid has in megatron-core's checkpoints, by kind of block.
EXPECTED = {
    "M": """mixer.in_proj.layer_norm_weight mixer.in_proj.weight mixer.conv1d.weight mixer.conv1d.bias mixer.A_log mixer.D
            mixer.dt_bias mixer.norm.weight mixer.out_proj.weight""",
    "*": "self_attention.linear_qkv.layer_norm_weight self_attention.linear_qkv.weight self_attention.linear_proj.weight",
    "E": """pre_mlp_layernorm.weight mlp.router.weight mlp.router.expert_bias mlp.experts.experts.linear_fc1.weight
            mlp.experts.experts.linear_fc2.weight mlp.shared_experts.linear_fc1.weight mlp.shared_experts.linear_fc2.weight""",
}


def on_meta(name):
    """(parameters, expert parameters, checkpoint key -> full shape) of a model that takes no memory."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    preset = get_preset(name)
    with torch.device("meta"):
        model = build_model(preset, transformer_config(preset, perform_initialization=False))
    counts = {key: parameter.numel() for key, parameter in model.named_parameters()}
    assert all(parameter.is_meta for parameter in model.parameters())
    names = [re.sub(r"experts\.local_experts\.\d+\.", "experts.experts.", key) for key in model.state_dict()]
    # megatron-core 0.19 has the convolution's weights in the mixer itself, under the old names in checkpoints.
    names = [name.replace("mixer.conv1d_", "mixer.conv1d.") for name in names]
    return sum(counts.values()), sum(n for key, n in counts.items() if ".local_experts." in key), names


def test_nano_has_the_published_number_of_parameters():
    total, experts, _ = run_distributed(on_meta, 1, "nano_30b_a3b")[0]
    assert round(total / 1e6) == 31_578
    preset = get_preset("nano_30b_a3b")
    assert experts == preset.pattern.count("E") * preset.num_moe_experts * 2 * preset.hidden_size * preset.moe_ffn_hidden_size
    assert collections.Counter(preset.pattern) == {"M": 23, "E": 23, "*": 6}


def test_tiny_has_every_kind_of_block_and_one_to_two_million_parameters():
    total, *_ = run_distributed(on_meta, 1, "tiny")[0]
    preset = get_preset("tiny")
    assert 1e6 <= total <= 2e6 and set(preset.pattern) == set("M*E") and preset.num_moe_experts >= 8


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_names_are_those_of_the_transformer_engine_spec(name):
    *_, names = run_distributed(on_meta, 1, name)[0]
    expected = {"embedding.word_embeddings.weight", "decoder.final_norm.weight", "output_layer.weight"}
    for number, kind in enumerate(get_preset(name).pattern):
        expected |= {f"decoder.layers.{number}.{part}" for part in EXPECTED[kind].split()}
    found = {key for key in names if not key.endswith("_extra_state")}
    assert found - {key for key in found if "local_tokens_per_expert" in key} == expected


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="nano_30b_a3b"):
        get_preset("nano")
