"""Batches and probes shared by the engine's tests."""

import random

import torch

from nemo_cascade.data.sample import Sample


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


def full_gradients(policy, samples, loss) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and every parameter's gradient gathered over all ranks (needs use_distributed_optimizer=False)."""
    from nemo_cascade.engine.gather import full_tensors

    policy.model.train()
    policy.wrapped.zero_grad_buffer()

    def as_pairs(logprobs, pack):
        total, count, _ = loss(logprobs, pack)
        return total, count.int(), {"loss": torch.stack([total.detach().double(), count.double()])}

    results = policy._run(policy._packs(samples), as_pairs, forward_only=False)
    value = policy._reduce(results)["loss"]
    for parameter in policy.model.parameters():
        # A frozen one keeps its weights here.
        parameter.data = parameter.main_grad if parameter.requires_grad else parameter.data
    # By the end of its name: a pipeline stage counts its layers from 0, the full tensors have their place in the model.
    full = full_tensors(policy.model)
    return value, {name: t.detach().clone() for name, t in full if not name.endswith("expert_bias")}
