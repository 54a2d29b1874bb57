"""transformers' own Nemotron-H, opened on the exported weights, is the oracle of the model."""

import json
import random

import pytest
import torch

from nemo_cascade.data.sample import Sample
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, SequencePackingConfig
from tests.engine.cases import EVERY_LAYOUT, layout
from tests.helpers import run_distributed

SHAPES = [(1, 1), (2, 33), (3, 200)]


def build(model, tokens=256, **megatron):
    """A policy that only answers, in a world of its layout."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    packing = SequencePackingConfig(train_mb_tokens=tokens)
    config = PolicyConfig(model_name=model, sequence_packing=packing, megatron_cfg=MegatronConfig(**megatron))
    parallel.init(config.megatron_cfg)
    return Policy(config, seed=0)


def stirred(policy):
    """The policy with every tensor mattering: norms, decays, biases, expert biases off their initial values."""
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
        generator = torch.Generator().manual_seed(length)
        tokens = torch.randint(0, policy.preset.vocab_size, (rows, length), generator=generator)
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


def written(directory):
    """Weights written, their export, and log-probs."""
    policy = stirred(build("micro"))
    policy.save(directory, optimizer=False)
    return export_and_logprobs(policy)


def read(directory, settings):
    """The same of the weights written, at another layout."""
    policy = build("micro", **settings)
    policy.load(directory, optimizer=False)
    return export_and_logprobs(policy)


def export_and_logprobs(policy):
    rng = random.Random(0)
    samples = [Sample([rng.randrange(600) for _ in range(n)], [1] * n, {}) for n in (2, 40, 71, 200)]
    return {name: tensor.clone() for name, tensor in policy.hf_weights()}, policy.logprobs(samples)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    directory = tmp_path_factory.mktemp("single")
    return directory, *run_distributed(written, 1, directory)[0]


@pytest.mark.parametrize("name", EVERY_LAYOUT)
def test_the_export_is_the_same_bits_at_every_layout(name, single):
    directory, export, logprobs = single
    world, settings = layout(name)
    assert all(tensor.startswith(("backbone.", "lm_head.")) for tensor in export)
    for other, others in run_distributed(read, world, directory, settings):
        assert other.keys() == export.keys()
        assert all(torch.equal(other[tensor], export[tensor]) for tensor in export)
        for mine, theirs in zip(logprobs, others, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)


def test_the_generation_config_stops_at_both_ends(tmp_path):
    run_distributed(exported, 1, tmp_path, "micro")
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 11]
