"""Layouts, batches and probes shared by the tests."""

import contextlib
import random
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from nemo_cascade.data.sample import Sample

_TP2 = dict(tensor_model_parallel_size=2, sequence_parallel=True)
_PP2, _CP2 = dict(pipeline_model_parallel_size=2), dict(context_parallel_size=2)
_EP2 = dict(expert_model_parallel_size=2)
# By name: how many processes, and what `policy.megatron_cfg` says. TP2 is TP2 with sequence parallel, as without it
# megatron-core trains no mixture of experts and a config is refused.
LAYOUTS = {
    "one": dict(world=1),
    "DP2": dict(world=2),
    "TP2": dict(world=2, **_TP2),
    "EP2": dict(world=2, **_EP2),
    "TP2+EP2": dict(world=2, **_TP2, **_EP2),
    "PP2": dict(world=2, **_PP2),
    "CP2": dict(world=2, **_CP2),
    "CP2+EP2": dict(world=2, **_CP2, **_EP2),
    "TP2+PP2": dict(world=4, **_TP2, **_PP2),
    "PP2+EP2": dict(world=4, **_PP2, **_EP2),
    "CP2+PP2": dict(world=4, **_CP2, **_PP2),
    "TP2+CP2": dict(world=4, **_TP2, **_CP2),
    # conf/full.yaml's TP2, CP4, EP8 in small: experts over tensor and context ranks.
    "TP2+CP2+EP4": dict(world=4, **_TP2, **_CP2, expert_model_parallel_size=4),
    "TP2+PP2+EP2": dict(world=8, **_TP2, **_PP2, **_EP2),
}
# For parametrize: all but one process alone; those that no quick run needs are slow.
_QUICK = ("DP2", "TP2", "EP2", "TP2+EP2", "PP2", "CP2", "TP2+PP2")
EVERY_LAYOUT = [
    name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS if name != "one"
]


def layout(name: str) -> tuple[int, dict]:
    """(processes, settings of `policy.megatron_cfg`) of a layout."""
    settings = dict(LAYOUTS[name])
    return settings.pop("world"), settings


def random_samples(vocab_size: int, count: int = 12, seed: int = 0, **fields: float) -> list[Sample]:
    """Documents of 2 to 40 random tokens, about two thirds of which are trained on."""
    rng = random.Random(seed)
    samples = []
    for _ in range(count):
        n = rng.randint(2, 40)
        samples.append(
            Sample(
                tokens=[rng.randrange(vocab_size) for _ in range(n)],
                loss_mask=[0] + [int(rng.random() < 0.67) for _ in range(n - 1)],
                fields={name: [scale * rng.gauss(0, 1) for _ in range(n)] for name, scale in fields.items()},
            )
        )
    return samples


def full_gradients(policy, samples, loss, plan=None, replay=False, **how) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and every parameter's gradient gathered over all ranks (needs use_distributed_optimizer=False); plan and how as of
    `Policy.train_step`, with replay through the samples' experts."""
    from nemo_cascade.engine.gather import full_tensors

    policy.model.train()
    policy.wrapped.zero_grad_buffer()

    def as_pairs(logprobs, pack):
        total, count, _ = loss(logprobs, pack)
        return total, count.int(), {"loss": torch.stack([total.detach().double(), count.double()])}

    results = policy._run(policy._packs(samples, plan, replay), as_pairs, forward_only=False, **how)
    value = policy._reduce(results)["loss"]
    # Those that are trained show their gradients for a moment, so that these are gathered as weights are.
    weights = [(p, p.data) for p in policy.model.parameters() if p.requires_grad]
    for parameter, _ in weights:
        parameter.data = parameter.main_grad
    # By the end of its name: a pipeline stage counts its layers from 0, the full tensors have their place in the model.
    full = {name: t.detach().clone() for name, t in full_tensors(policy.model) if not name.endswith("expert_bias")}
    for parameter, data in weights:
        parameter.data = data
    return value, full


def largest_error(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Largest norm of a difference relative to `other`'s norm, and its tensor; each expert is a tensor of its own."""
    assert mine.keys() == other.keys()
    pairs = [
        (float((a - b).norm() / b.norm().clamp(min=1e-12)), part)
        for name in mine
        for (part, a), (_, b) in zip(_by_expert(name, mine[name]), _by_expert(name, other[name]), strict=True)
    ]
    return max(pairs)


def _by_expert(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Of experts each matrix, where checkpoints have them as one [experts, ...]: one norm would hide a small one."""
    if ".experts.experts." not in name:
        yield name, tensor
        return
    yield from ((f"{name}[{number}]", matrix) for number, matrix in enumerate(tensor))


@contextlib.contextmanager
def float64_policies() -> Iterator[None]:
    """Policies made and run inside have weights of float64 and compute in nothing less, whatever their config says.

    Where float32 would leave a small error within what rounding explains, this does not. The router's own type is
    `policy.megatron_cfg.moe_router_dtype`'s, "fp64".
    """
    from nemo_cascade.engine import policy

    build, narrow = policy.build_model, torch.Tensor.float
    with (
        patch.dict(policy.DTYPES, float32=torch.float64),
        # Mamba's decay rates are float32 in every model.
        patch.object(policy, "build_model", lambda *arguments: build(*arguments).double()),
        # With it megatron-core makes wider what is narrower than float32.
        patch.object(torch.Tensor, "float", lambda t, *a, **k: t if t.dtype == torch.float64 else narrow(t, *a, **k)),
    ):
        yield
