"""A fixed small batch of random tokens, and what a policy's weights say about it: by this the network in memory knows itself
again after it was written, read, converted or given to another engine.

`checkpoint.save` keeps it beside the weights, as `probe.json`. Log-probs are those of the plain softmax, whatever a stage samples
with, because they are to speak of weights alone. Left out: texts, whose log-probs are so near 0 after training that they hide much.
"""

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_cascade.data.sample import Sample
from nemo_cascade.engine import parallel

if TYPE_CHECKING:
    from nemo_cascade.engine.policy import Policy

FILE = "probe.json"
SEQUENCES, LENGTH = 4, 48
SEED = 20_260_320


@dataclass
class Probe:
    """tokens and logprobs: a list a sequence, entry t of the latter that of token t (entry 0 is 0). where: what decides how
    numbers are rounded on the way, the device and the layout."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    where: dict


def take(policy: "Policy", tokens: list[list[int]] | None = None) -> Probe:
    """What the policy's weights say, on every rank, which all call this; without tokens about those of SEED."""
    tokens = tokens or fixed_tokens(policy)
    logprobs = policy.logprobs([Sample(list(row), [1] * len(row)) for row in tokens], as_sampled=False)
    layout = policy.config.megatron_cfg
    sizes = {
        key: getattr(layout, key)
        for key in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "context_parallel_size",
            "expert_model_parallel_size",
            "expert_tensor_parallel",
        )
    }
    where = {"device": policy.device.type, "precision": policy.config.precision, "world": parallel.world_size(), **sizes}
    return Probe(tokens, logprobs, where)


def fixed_tokens(policy: "Policy") -> list[list[int]]:
    """SEQUENCES rows of random ids of the policy's tokenizer, all different enough that every expert is likely to be asked."""
    draw = random.Random(SEED)
    length = max(2, min(LENGTH, policy.config.sequence_packing.train_mb_tokens))
    return [[draw.randrange(len(policy.tokenizer)) for _ in range(length)] for _ in range(SEQUENCES)]


def write(probe: Probe, checkpoint: Path) -> None:
    """Into the folder of a checkpoint; for rank 0."""
    (Path(checkpoint) / FILE).write_text(json.dumps(dataclasses.asdict(probe)))


def read(checkpoint: Path) -> Probe | None:
    """What was kept beside a checkpoint, the same on every rank, which all call this; None beside one that has none."""
    path = Path(checkpoint) / FILE
    text = parallel.broadcast(path.read_text() if parallel.rank() == 0 and path.exists() else None)
    return Probe(**json.loads(text)) if text is not None else None
