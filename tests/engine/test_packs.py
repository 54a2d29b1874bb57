"""A document in a pack is a document alone on every pipeline stage, and where ranks hold a part of each."""

import random

import pytest
import torch

from nemo_cascade.data.sample import Sample
from nemo_cascade.models.scan import CHUNK
from tests.engine.cases import layout
from tests.helpers import run_distributed
from tests.models.test_hf import build, stirred

# One prediction, exactly a chunk, one more, across several chunks; under context parallel these end at and beside the
# borders of its pieces, too.
LENGTHS = [1, CHUNK, CHUNK + 1, 3, 2 * CHUNK + 7, 1, 200, CHUNK - 1]
LAYOUTS = ["one", "PP2", "CP2", "TP2"]
MORE_LAYOUTS = ["CP2+PP2", "TP2+CP2", "TP2+PP2", "TP2+PP2+EP2"]


def documents(vocab_size):
    rng = random.Random(1)
    return [Sample([rng.randrange(vocab_size) for _ in range(n + 1)], [0] + [1] * n) for n in LENGTHS]


def policy_for(directory, settings):
    policy = build("micro", tokens=1024, **settings)
    policy.load(directory, optimizer=False)
    return policy


def alone(directory):
    """Of each document by itself in one process: hidden states after each layer, logits and log-probs."""
    policy = build("micro", tokens=1024)
    stirred(policy).save(directory, optimizer=False)
    answers = []
    for document in documents(policy.preset.vocab_size):
        left = {}
        hooks = [
            layer.register_forward_hook(lambda _, __, out, number=layer.layer_number: left.update({number: first(out)}))
            for layer in policy.model.decoder.layers
        ]
        inputs = torch.tensor([document.tokens[:-1]])
        with torch.no_grad():
            logits = policy.model(inputs, torch.arange(inputs.shape[1])[None], None)[0]
        for hook in hooks:
            hook.remove()
        chosen = logits.log_softmax(-1).gather(-1, torch.tensor(document.tokens[1:])[:, None])[:, 0]
        answers.append(({number: hidden[:, 0] for number, hidden in left.items()}, logits, chosen))
    return answers


def first(output):
    """A layer's hidden states, which it may give with something beside."""
    return output[0] if isinstance(output, tuple) else output


def packed(directory, settings):
    """Of this rank's pack of documents, by number: (layer whose hidden states leave this stage, or None for logits;
    what leaves it [tokens, width]; log-probs)."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import (
        gather_from_sequence_parallel_region,
        gather_from_tensor_model_parallel_region,
    )

    from nemo_cascade.models.context_parallel import gather_pack

    policy = policy_for(directory, settings)
    samples, left = documents(policy.preset.vocab_size), []
    policy.model.decoder.register_forward_hook(lambda _, __, hidden: left.append(hidden))
    (pack,) = policy._packs(samples)
    logprobs = policy.logprobs(samples)
    (leaving,) = left
    with torch.no_grad():
        if policy.transformer_config.sequence_parallel:
            leaving = gather_from_sequence_parallel_region(leaving)
        if policy.transformer_config.context_parallel_size > 1:
            group = parallel_state.get_context_parallel_group()
            leaving = gather_pack(leaving, pack.params.cu_seqlens_q, group)
        layer = policy.model.decoder.layers[-1].layer_number
        if parallel_state.is_pipeline_last_stage():
            layer = None
            leaving = gather_from_tensor_model_parallel_region(leaving @ policy.model.output_layer.weight.T)
    # Packs put their longest sample first, so a document is found by its number; data-parallel ranks have other packs.
    numbers = pack.segments[pack.segments >= 0].unique().tolist()
    return {n: (layer, leaving[pack.segments == n, 0], logprobs[n][1:]) for n in numbers}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    directory = tmp_path_factory.mktemp("single")
    return directory, run_distributed(alone, 1, directory)[0]


@pytest.mark.parametrize("name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_LAYOUTS)])
def test_packed_at_a_layout_equals_alone_in_one_process(name, single):
    directory, expected = single
    world, settings = layout(name)
    seen = set()
    for of_rank in run_distributed(packed, world, directory, settings):
        for number, (layer, leaving, logprobs) in of_rank.items():
            hidden, logits, chosen = expected[number]
            seen.add((number, layer))
            other = logits if layer is None else hidden[layer]
            error = float((leaving - other).abs().max() / other.abs().max())
            where = f"document of {len(other)} tokens, {'logits' if layer is None else f'layer {layer}'}"
            print(f"{name}: {error:.1e} {where}")
            assert leaving.shape == other.shape and error < 1e-5, where
            assert torch.tensor(logprobs).sub(chosen).abs().max() < 1e-5, where
    stages = {layer for _, layer in seen}
    assert len(stages) == settings.get("pipeline_model_parallel_size", 1) and None in stages
    assert len(seen) == len(stages) * len(LENGTHS), "every document on every stage"
    assert expected[0][1].std() > 0.05, "a flat model would hide errors"
