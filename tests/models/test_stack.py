"""Recomputing activations changes how much memory they take and nothing else; Mamba decodes in fp32 also when the weights are not."""

import pytest
import torch

from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from tests.engine.cases import full_gradients, random_samples
from tests.helpers import run_distributed

KEPT = {
    "every layer": dict(activation_checkpointing=True),
    "chunks of four layers": dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=4),
    "the first two layers": dict(recompute_granularity="full", recompute_method="block", recompute_num_layers=2),
    "experts": dict(recompute_granularity="selective", recompute_modules=["moe"]),
    "attention and shared experts": dict(recompute_granularity="selective", recompute_modules=["core_attn", "shared_experts"]),
}


def build(distributed_optimizer=False, precision="float32", **megatron_cfg):
    """A policy of fixed weights whose router is balanced in both ways, so that counting a token twice would show."""
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    config = PolicyConfig(
        model_name="micro",
        precision=precision,
        sequence_packing=SequencePackingConfig(train_mb_tokens=64),
        megatron_cfg=MegatronConfig(
            moe_router_load_balancing_type="seq_aux_loss",
            moe_aux_loss_coeff=1e-2,
            moe_router_bias_update_rate=1e-2,
            optimizer=OptimizerConfig(lr=1e-2, use_distributed_optimizer=distributed_optimizer),
            **megatron_cfg,
        ),
    )
    if not dist.is_initialized():
        parallel.init(config.megatron_cfg)
    return Policy(config, seed=0, max_num_steps=4)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Bytes of memory that autograd holds for the backward pass, parameters not among them; a storage counts once."""

    def __init__(self, model):
        self.parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.held: dict[int, torch.UntypedStorage] = {}
        super().__init__(self.note, lambda tensor: tensor)

    def note(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            # Kept, so that no later tensor takes the place of one that was freed.
            self.held[storage.data_ptr()] = storage
        return tensor

    def total(self) -> int:
        return sum(storage.nbytes() for storage in self.held.values())


def held_by_one_forward(policy) -> int:
    """Bytes saved by the layers for one pack."""
    pack = policy._packs(random_samples(policy.preset.vocab_size, count=4))[0]
    policy.model.train()
    saved = SavedBytes(policy.model)
    with saved:
        hidden = policy.model.embedding(pack.tokens, pack.position_ids)
        policy.model.decoder(hidden, None, packed_seq_params=pack.params)
    return saved.total()


def with_and_without(settings, layout, measure):
    """[loss, gradients, experts' biases and hash after three steps, bytes saved] without recomputing, then with."""
    from nemo_cascade.stages.sft import sft_loss

    results = []
    for chosen in ({}, settings):
        policy = build(**chosen, **layout)
        loss, gradients = full_gradients(policy, random_samples(policy.preset.vocab_size), sft_loss)
        trained = build(distributed_optimizer=True, **chosen, **layout)
        # An odd number: an untrained router's loads turn with its bias, and two updates can cancel.
        for seed in range(3):
            trained.train_step(random_samples(trained.preset.vocab_size, seed=seed), sft_loss)
        biases = [t.clone() for name, t in trained._tensors().items() if name.endswith("expert_bias")]
        size = held_by_one_forward(trained) if measure else 0
        results.append((loss, gradients, biases, trained.weights_hash(), size))
    return results


@pytest.mark.parametrize("kept", KEPT)
def test_gradients_steps_and_biases_are_the_same_to_the_bit_and_less_is_kept(kept):
    plain, recomputed = run_distributed(with_and_without, 1, KEPT[kept], {}, True)[0]
    assert recomputed[0] == plain[0]
    assert all(torch.equal(recomputed[1][name], gradient) for name, gradient in plain[1].items())
    assert all(torch.equal(a, b) for a, b in zip(recomputed[2], plain[2], strict=True)) and plain[2][0].abs().max() > 0
    assert recomputed[3] == plain[3]
    assert recomputed[4] < plain[4] / (10 if kept == "every layer" else 1)
    print(f"\n{kept}: of the {plain[4]} bytes that six layers keep for one pack {recomputed[4]} are left")


@pytest.mark.parametrize("kept", ["every layer", "attention and shared experts"])
def test_under_tensor_and_pipeline_parallel_the_same(kept):
    layout = dict(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True)
    for plain, recomputed in run_distributed(with_and_without, 4, KEPT[kept], layout, False):
        assert recomputed[0] == plain[0] and recomputed[3] == plain[3]
        assert all(torch.equal(recomputed[1][name], gradient) for name, gradient in plain[1].items())


def norms_without_te():
    with pytest.raises(RuntimeError, match="recompute_modules: layernorm can be recomputed with Transformer Engine's layers only"):
        build(recompute_granularity="selective", recompute_modules=["layernorm"])


def test_what_only_transformer_engine_recomputes_is_refused_without_it():
    run_distributed(norms_without_te, 1)
