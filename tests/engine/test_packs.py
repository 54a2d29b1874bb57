"""A document in a pack is a document alone on every pipeline stage, and where context ranks hold a part each."""

import random

import pytest

from nemo_cascade.data.sample import Sample
from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, SequencePackingConfig
from nemo_cascade.models.mamba import CHUNK
from tests.helpers import run_distributed

# One prediction, exactly a chunk, one more, across several chunks; under context parallel these end at and beside the
# borders of its pieces, too.
LENGTHS = [1, CHUNK, CHUNK + 1, 3, 2 * CHUNK + 7, 1, 200, CHUNK - 1]
LAYOUTS = {
    "one": dict(world=1),
    "PP2": dict(world=2, pipeline_model_parallel_size=2),
    "CP2": dict(world=2, context_parallel_size=2),
    "TP2": dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True),
}


def both_ways(layout):
    """Largest differences of hidden states that leave this stage, and of log-probs, between packed and alone."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.models.context_parallel import gather_pack

    megatron = MegatronConfig(**layout)
    parallel.init(megatron)
    packing = SequencePackingConfig(train_mb_tokens=1024)
    policy = Policy(PolicyConfig(model_name="micro", sequence_packing=packing, megatron_cfg=megatron), seed=0)
    rng = random.Random(1)
    documents = [
        Sample([rng.randrange(policy.preset.vocab_size) for _ in range(n + 1)], [0] + [1] * n) for n in LENGTHS
    ]
    packs, left = [], []

    def keep(module, arguments, hidden):
        if megatron.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden)
        if megatron.context_parallel_size > 1:
            group = parallel_state.get_context_parallel_group()
            hidden = gather_pack(hidden, packs[len(left)].params.cu_seqlens_q, group)
        left.append(hidden[:, 0])

    policy.model.decoder.register_forward_hook(keep)
    packs += policy._packs(documents)
    together = policy.logprobs(documents)
    assert len(packs) == len(left) == 1
    alone = []
    for document in documents:
        packs += policy._packs([document])
        alone += policy.logprobs([document])
    # Packs put their longest sample first, so a document is found by its number.
    differences = [
        float((left[0][packs[0].segments == number] - hidden[: len(document.tokens) - 1]).abs().max())
        for number, (document, hidden) in enumerate(zip(documents, left[1:], strict=True))
    ]
    logprobs = [abs(a - b) for one, other in zip(together, alone) for a, b in zip(one, other)]
    return max(differences), max(logprobs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_packed_equals_alone(name):
    layout = dict(LAYOUTS[name])
    for hidden, logprobs in run_distributed(both_ways, layout.pop("world"), layout):
        assert hidden < 1e-5 and logprobs < 1e-5
