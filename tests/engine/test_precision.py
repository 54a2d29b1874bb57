"""Under bfloat16, what must not be rounded is fp32 in the model, in checkpoints, exports, teachers and the decoding
engine; the router is frozen or balanced as two keys say."""

import pytest
import torch

from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from tests.engine.cases import random_samples
from tests.helpers import run_distributed


def build(precision="bfloat16", seed=0, model="micro", **megatron_cfg):
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    megatron_cfg.setdefault("optimizer", OptimizerConfig(lr=1e-2))
    config = PolicyConfig(
        model_name=model,
        precision=precision,
        sequence_packing=SequencePackingConfig(train_mb_tokens=256),
        megatron_cfg=MegatronConfig(**megatron_cfg),
    )
    if not dist.is_initialized():
        parallel.init(config.megatron_cfg)
    return Policy(config, seed=seed, max_num_steps=6)


def train(policy, seeds):
    from nemo_cascade.stages.sft import sft_loss

    vocab_size = policy.preset.vocab_size
    return [policy.train_step(random_samples(vocab_size, seed=seed), sft_loss)["loss"] for seed in seeds]


def biases(policy) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in policy._tensors().items() if name.endswith("router.expert_bias")}


# -------------------------------------------------------------------------------- fp32 under bfloat16


def expert_bias_everywhere(directory):
    """The expert bias at every place it passes through, as tensors, and hashes before and after a change of 2^-20."""
    import torch.distributed.checkpoint as dcp
    from safetensors import safe_open

    from nemo_cascade.models.hf_folder import write_hf

    policy = build()
    for number, buffer in enumerate(t for name, t in policy._tensors().items() if name.endswith("expert_bias")):
        # No bfloat16 has these bits.
        buffer.copy_(1 + torch.arange(8) * 2.0**-20 + number * 2.0**-10)
    set_to = list(biases(policy).values())
    policy.save(directory / "policy", optimizer=False)
    write_hf(policy.hf_weights(), policy.preset, directory / "hf")
    metadata = dcp.FileSystemReader(directory / "policy" / "weights").read_metadata().state_dict_metadata
    dtypes = {key: str(entry.properties.dtype) for key, entry in metadata.items() if hasattr(entry, "properties")}
    exported = []
    for file in sorted((directory / "hf").glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in sorted(tensors.keys()) if name.endswith("e_score_correction_bias")]
            exported += [tensors.get_tensor(name) for name in names]
    other = build(seed=1)
    before = other.weights_hash()
    with other.weights_of(directory / "policy"):
        as_teacher, hash_as_teacher = list(biases(other).values()), other.weights_hash()
    came_back = other.weights_hash() == before
    other.load_hf(directory / "hf")
    from_hf, hash_from_hf = list(biases(other).values()), other.weights_hash()
    other.load(directory / "policy", optimizer=False)
    train(other, [0])
    trained = [t.dtype for t in biases(other).values()]
    whole = policy.weights_hash()
    next(t for name, t in policy._tensors().items() if name.endswith("expert_bias"))[3] += 2.0**-20
    hashes = [whole, hash_as_teacher, hash_from_hf]
    return set_to, exported, as_teacher, from_hf, trained, dtypes, hashes, policy.weights_hash(), came_back


def test_the_expert_bias_is_never_rounded_to_bfloat16(tmp_path):
    set_to, exported, as_teacher, from_hf, trained, dtypes, hashes, changed, came_back = run_distributed(
        expert_bias_everywhere, 1, tmp_path, timeout=600
    )[0]
    assert len(set_to) == 2 and not any(torch.equal(t, t.bfloat16().float()) for t in set_to)
    for passed in (exported, as_teacher, from_hf):
        assert all(t.dtype == torch.float32 for t in passed)
        assert all(torch.equal(a, b) for a, b in zip(passed, set_to, strict=True))
    assert trained == [torch.float32] * 2 and came_back
    single = {name.rsplit(".", 1)[-1] for name, dtype in dtypes.items() if dtype == "torch.float32"}
    assert single == {"expert_bias", "A_log", "D"}
    assert set(hashes) == {hashes[0]} != {changed}


def resumed(directory, layout):
    """Whether two more steps from a checkpoint are those that followed it (types mixed inside the optimizer)."""
    whole = build(moe_router_bias_update_rate=1e-2, **layout)
    train(whole, range(2))
    whole.save(directory)
    losses = train(whole, range(2, 4))
    again = build(seed=1, moe_router_bias_update_rate=1e-2, **layout)
    again.load(directory)
    return train(again, range(2, 4)) == losses, again.weights_hash() == whole.weights_hash()


SPLIT = dict(world=2, tensor_model_parallel_size=2, sequence_parallel=True)


@pytest.mark.parametrize("layout", [dict(world=1), dict(world=2), SPLIT], ids=str)
def test_bfloat16_training_goes_on_bit_identically_from_a_checkpoint(layout, tmp_path):
    layout = dict(layout)
    assert set(run_distributed(resumed, layout.pop("world"), tmp_path, layout, timeout=600)) == {(True, True)}


def decoded():
    """(types of the states, median error of incremental log-probs against the training forward, count) in bfloat16.

    The median, because here and there a token near a tie chooses other experts: of one in a hundred the error is 0.5.
    """
    from nemo_cascade.rollout.engine import generate_global
    from nemo_cascade.rollout.types import Request, SamplingParams
    from nemo_cascade.stages.rl import rollout_sample
    from nemo_cascade.stages.rollouts import make_engine

    policy = build(model="tiny")
    engine, seen = make_engine(policy), set()
    forward = engine._forward

    def watched(tokens, position, context, visible=None):
        logits = forward(tokens, position, context, visible)
        states = (context.key_value_memory_dict[mixer.layer_number] for mixer in engine.mixers)
        seen.update((conv.dtype, ssm.dtype) for conv, ssm in states)
        return logits

    engine._forward = watched
    requests = [Request(f"{n:016x}", 0, tuple(range(20, 30 + n))) for n in range(8)]
    rollouts = generate_global(engine, requests, SamplingParams(max_new_tokens=100, seed=2))
    trained = policy.logprobs([rollout_sample(rollout, True) for rollout in rollouts])
    pairs = zip(rollouts, trained)
    errors = [abs(a - b) for r, row in pairs for a, b in zip(r.logprobs, row[len(r.prompt) :], strict=True)]
    return seen, sorted(errors)[len(errors) // 2], len(errors)


def test_mamba_decodes_with_fp32_states():
    """By their type; what that is worth shows where memories are long, in the next test."""
    seen, middle, count = run_distributed(decoded, 1, timeout=600)[0]
    assert seen == {(torch.bfloat16, torch.float32)}
    assert middle < 0.05 and count > 100


def long_memories():
    """Relative error of a mixer that decodes token by token, against its training forward: as it is, and with
    megatron-core's own states in bfloat16."""
    from unittest import mock

    from megatron.core.inference.contexts import StaticInferenceContext
    from megatron.core.ssm.mamba_mixer import MambaMixer

    policy = build()
    mixer = next(module for module in policy.model.modules() if isinstance(module, MambaMixer)).eval()
    with torch.no_grad():
        # exp(-0.01) a token, and nothing past the state.
        mixer.A_log.zero_()
        mixer.dt_bias.fill_(-4.6)
        mixer.D.zero_()
        length = 600
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(length, 1, policy.preset.hidden_size, generator=generator).bfloat16()
        expected = mixer(hidden)[0].double()

        def error():
            context, outputs = StaticInferenceContext(1, length), []
            for place in range(length):
                context.sequence_len_offset = context.seqlen_offset = place
                outputs.append(mixer(hidden[place : place + 1], inference_context=context)[0])
            return float((torch.cat(outputs).double() - expected).norm() / expected.norm())

        ours = error()
        with mock.patch.object(type(mixer), "_get_states_from_cache", MambaMixer._get_states_from_cache):
            return ours, error()


def test_decoding_remembers_long_as_training_does():
    ours, rounded = run_distributed(long_memories, 1, timeout=600)[0]
    print(f"relative error with fp32 states {ours:.2e}, with bfloat16 states {rounded:.2e}")
    assert ours < 0.01 and rounded > 3 * ours


def test_a_state_rounded_after_every_token_is_50_times_further_off():
    """Slowly decaying states, as Mamba's longest memories are, over 1,000 tokens against float64."""
    from nemo_cascade.models.mamba import selective_state_update

    generator = torch.Generator().manual_seed(0)
    heads, width, size, length = 4, 8, 16, 1000
    shapes = (heads, width), (1, size), (1, size)
    x, B, C = (torch.randn(length, 1, *shape, generator=generator).bfloat16() for shape in shapes)
    dt = torch.full((1, heads, width), 0.01).bfloat16()
    A, D = torch.full((heads, width, size), -1.0), torch.zeros(heads, width)

    def run(dtype):
        state = torch.zeros(1, heads, width, size, dtype=dtype)
        outputs = [selective_state_update(state, x[t], dt, A, B[t], C[t], D) for t in range(length)]
        return torch.cat(outputs).double()

    exact, single, rounded = run(torch.float64), run(torch.float32), run(torch.bfloat16)
    off, rounded_off = ((run - exact).norm() / exact.norm() for run in (single, rounded))
    assert off < 1e-3 and rounded_off > 50 * off


# -------------------------------------------------------------------------------- the router


def after_a_step(layout, frozen, rate):
    """[routers' weights, expert biases, other weights] unchanged after a step with decay, as sets of answers.

    One step only: after the next every expert that had too few tokens may have too many, and all biases be back at 0.
    """
    policy = build("float32", freeze_moe_router=frozen, moe_router_bias_update_rate=rate,
                   optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1), **layout)  # fmt: skip
    before = {name: tensor.detach().clone() for name, tensor in policy._tensors().items()}
    train(policy, range(1))
    same = {name: torch.equal(tensor, before[name]) for name, tensor in policy._tensors().items()}
    ends = ("router.weight", "router.expert_bias", "in_proj.weight")
    return [{value for name, value in same.items() if name.endswith(end)} for end in ends]


@pytest.mark.parametrize("layout", [dict(world=1), SPLIT], ids=str)
def test_freezing_the_router_and_freezing_its_bias_are_two_keys(layout):
    layout = dict(layout)
    world = layout.pop("world")
    for frozen, rate in ((True, 0.0), (True, 1e-2), (False, 0.0)):
        for weights, bias, other in run_distributed(after_a_step, world, layout, frozen, rate, timeout=600):
            assert (weights, bias, other) == ({frozen}, {rate == 0}, {False})
