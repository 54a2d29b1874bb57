"""A document in a pack is a document alone: logits and gradients, at lengths around every border."""

import pytest
import torch

from nemo_cascade.models.scan import CHUNK
from tests.helpers import run_distributed

# One token, exactly a chunk, one more, across several chunks, and short ones between them.
LENGTHS = [1, CHUNK, CHUNK + 1, 3, 2 * CHUNK + 7, 1, 200, CHUNK - 1]


def logits_and_gradients(model_name):
    """(packed, alone): logits of each document and the gradient of one sum over all of them."""
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.megatron import packed_params
    from nemo_cascade.models.presets import get_preset
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    preset = get_preset(model_name)
    torch.manual_seed(0)
    model = build_model(preset, transformer_config(preset)).train()
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, preset.vocab_size, (n,), generator=generator) for n in LENGTHS]
    targets = [torch.randn(n, preset.vocab_size, generator=generator) for n in LENGTHS]

    def packed():
        borders = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        params = packed_params(borders, max(LENGTHS))
        positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
        return model(torch.cat(documents)[None], positions, None, packed_seq_params=params)[0].split(LENGTHS)

    def alone():
        return [model(d[None], torch.arange(len(d))[None], None)[0] for d in documents]

    results = []
    for forward in (packed, alone):
        model.zero_grad()
        logits = forward()
        sum((row * target).sum() for row, target in zip(logits, targets)).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        results.append(([row.detach() for row in logits], gradients))
    return results


@pytest.mark.parametrize("model", ["micro", "tiny"])
def test_packed_equals_unpacked(model):
    (packed, packed_gradients), (alone, gradients) = run_distributed(logits_and_gradients, 1, model)[0]
    for length, a, b in zip(LENGTHS, packed, alone):
        assert (a - b).abs().max() < 1e-5, f"document of {length} tokens"
    for name, gradient in gradients.items():
        error = (packed_gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert error < 1e-5, name


def test_the_neighbour_would_be_seen_without_borders():
    """The check above can fail: the same tokens as one document give other logits."""
    assert run_distributed(leaking_difference, 1)[0] > 1e-3


def leaking_difference():
    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.presets import get_preset
    from nemo_cascade.models.specs import build_model, transformer_config

    parallel.init(MegatronConfig())
    preset = get_preset("micro")
    model = build_model(preset, transformer_config(preset)).eval()
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        whole = model(tokens, torch.arange(40)[None], None)[0, 20:]
        second = model(tokens[:, 20:], torch.arange(20)[None], None)[0]
    return (whole - second).abs().max().item()
