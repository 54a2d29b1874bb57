"""transformers' own Nemotron-H, opened on the exported weights, is the oracle of the model."""

import json
import random

import pytest
import torch

from nemo_cascade.data.sample import Sample
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, SequencePackingConfig
from tests.helpers import run_distributed

SHAPES = [(1, 1), (2, 33), (3, 200)]
LAYOUTS = [
    dict(world=1),
    dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True),
    dict(world=2, expert_model_parallel_size=2),
    dict(world=2, context_parallel_size=2),
]


def build(model, **layout):
    """A policy whose every tensor matters: norms, decays, biases and the router's expert bias away from their initial values."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    megatron = MegatronConfig(**layout)
    parallel.init(megatron)
    config = PolicyConfig(model_name=model, sequence_packing=SequencePackingConfig(train_mb_tokens=256), megatron_cfg=megatron)
    return Policy(config, seed=0)


def stirred(policy):
    with torch.no_grad():
        for name, tensor in policy.model.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
                tensor.add_((0.3 if tensor.dim() == 1 else 0.03) * noise.to(tensor.dtype))
    return policy


def exported(directory, model):
    """Writes the export and the logits of every shape."""
    from nemo_cascade.models.hf_folder import write_hf

    policy = stirred(build(model))
    write_hf(policy.hf_weights(), policy.preset, directory)
    policy.model.eval()
    answers = []
    for rows, length in SHAPES:
        tokens = torch.randint(0, policy.preset.vocab_size, (rows, length), generator=torch.Generator().manual_seed(length))
        positions = torch.arange(length).expand_as(tokens)
        with torch.no_grad():
            answers.append((tokens, policy.model(tokens, positions, None)))
    return answers


@pytest.mark.parametrize("model", ["micro", "tiny"])
def test_logits_equal_transformers_on_the_exported_weights(model, tmp_path):
    from transformers import AutoModelForCausalLM

    answers = run_distributed(exported, 1, tmp_path, model)[0]
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(oracle).__name__ == "NemotronHForCausalLM"
    for tokens, logits in answers:
        with torch.no_grad():
            expected = oracle(tokens, use_cache=False).logits
        assert ((logits - expected).norm() / expected.norm()) < 2e-5
        assert ((logits - expected).abs().max() / expected.abs().max()) < 2e-5
        assert expected.std() > 0.05, "a flat model would hide errors"


def test_transformers_takes_every_tensor_and_misses_none(tmp_path):
    from transformers import AutoModelForCausalLM

    run_distributed(exported, 1, tmp_path, "micro")
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


def names_and_logprobs(directory, layout):
    """Exported tensors of the same checkpoint at another layout, and the log-probs there."""
    policy = build("micro", **layout)
    if layout:
        policy.load(directory, optimizer=False)
    else:
        stirred(policy).save(directory, optimizer=False)
    rng = random.Random(0)
    samples = [Sample([rng.randrange(600) for _ in range(n)], [1] * n, {}) for n in (2, 40, 71, 200)]
    return {name: tensor.clone() for name, tensor in policy.hf_weights()}, policy.logprobs(samples)


def test_the_export_is_the_same_bits_at_every_layout(tmp_path):
    (first, logprobs), *_ = run_distributed(names_and_logprobs, 1, tmp_path, {})
    assert all(name.startswith(("backbone.", "lm_head.")) for name in first)
    for layout in LAYOUTS[1:]:
        layout = dict(layout)
        for other, others in run_distributed(names_and_logprobs, layout.pop("world"), tmp_path, layout):
            assert other.keys() == first.keys()
            assert all(torch.equal(other[name], first[name]) for name in first)
            for mine, theirs in zip(logprobs, others):
                assert mine == pytest.approx(theirs, abs=1e-5)


def test_the_generation_config_stops_at_both_ends(tmp_path):
    run_distributed(exported, 1, tmp_path, "micro")
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 11]
