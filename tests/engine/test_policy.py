"""The policy's contract: rotation leaves no trace, checkpoints are exact, a student that is its own teacher learns nothing."""

import json

import pytest
import torch

from nemo_cascade.engine.config import MegatronConfig, OptimizerConfig, PolicyConfig, SequencePackingConfig
from nemo_cascade.rollout.config import GenerationConfig
from nemo_cascade.stages.config import LossConfig
from tests.engine import cases
from tests.engine.cases import full_gradients, random_samples
from tests.helpers import run_distributed

LAYOUTS = [cases.LAYOUTS[name] for name in ("one", "DP2", "TP2", "EP2", "PP2", "CP2")]


def build(max_num_steps=4, seed=0, distributed_optimizer=True, top_p=1.0, **layout):
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.policy import Policy

    config = PolicyConfig(
        model_name="micro",
        sequence_packing=SequencePackingConfig(train_mb_tokens=64),
        generation=GenerationConfig(top_p=top_p),
        megatron_cfg=MegatronConfig(
            moe_router_bias_update_rate=1e-2,
            optimizer=OptimizerConfig(lr=1e-2, use_distributed_optimizer=distributed_optimizer),
            **layout,
        ),
    )
    if not dist.is_initialized():
        parallel.init(config.megatron_cfg)
    return Policy(config, seed=seed, max_num_steps=max_num_steps)


def train(policy, steps):
    from nemo_cascade.stages.sft import sft_loss

    return [policy.train_step(random_samples(policy.preset.vocab_size, seed=i), sft_loss)["loss"] for i in range(steps)]


def rotation(directory, layout):
    policy = build(**layout)
    samples = random_samples(policy.preset.vocab_size)
    teacher, teacher_hash = policy.logprobs(samples), policy.weights_hash()
    policy.save(directory, optimizer=False)
    train(policy, 3)
    student, student_hash = policy.logprobs(samples), policy.weights_hash()
    with policy.weights_of(directory):
        inside, inside_hash = policy.logprobs(samples), policy.weights_hash()
    assert (inside, inside_hash) == (teacher, teacher_hash)
    assert (policy.logprobs(samples), policy.weights_hash()) == (student, student_hash)
    assert student_hash != teacher_hash and student != teacher
    return True


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_teacher_rotates_in_exactly_and_the_student_comes_back_bit_equal(layout, tmp_path):
    layout = dict(layout)
    assert all(run_distributed(rotation, layout.pop("world"), tmp_path / "teacher", layout))


def two_ways(_, layout):
    policy = build(**layout)
    samples = random_samples(policy.preset.vocab_size)
    samples[3].loss_mask = [0] * len(samples[3].tokens)
    pairs = zip(samples, policy.logprobs(samples), policy.logprobs(samples, trained_only=True))
    trained = [(a, b) for sample, *both in pairs for m, a, b in zip(sample.loss_mask, *both) if m]
    return len(trained), max(abs(a - b) for a, b in trained)


@pytest.mark.parametrize("layout", [*LAYOUTS, dict(world=1, top_p=0.95)], ids=str)
def test_the_log_probs_of_trained_tokens_do_not_depend_on_the_others(layout):
    layout = dict(layout)
    for count, difference in run_distributed(two_ways, layout.pop("world"), None, layout):
        assert count > 50 and difference < 1e-5


def partly_silent(directory, layout):
    """Packs of one sample each, of which one has no token to train on."""
    from nemo_cascade.stages.sft import sft_loss

    policy = build(**layout)
    if directory.exists():
        policy.load(directory, optimizer=False)
    else:
        policy.save(directory, optimizer=False)
    samples = [sample for sample in random_samples(policy.preset.vocab_size, count=60) if len(sample.tokens) > 33][:4]
    samples[1].loss_mask = [0] * len(samples[1].tokens)
    metrics = policy.train_step(samples, sft_loss)
    return len(samples), metrics["loss"], metrics["grad_norm"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_pack_without_a_trained_token_is_the_same_at_every_layout(layout, tmp_path):
    layout = dict(layout)
    ((count, loss, norm),) = run_distributed(partly_silent, 1, tmp_path / "weights", {})
    for of_rank in run_distributed(partly_silent, layout.pop("world"), tmp_path / "weights", layout):
        assert of_rank == (count, pytest.approx(loss, rel=1e-5), pytest.approx(norm, rel=1e-4)) and count == 4


def interrupted_rotation(directory, _):
    policy = build()
    policy.save(directory, optimizer=False)
    train(policy, 1)
    before = policy.weights_hash()
    with pytest.raises(KeyboardInterrupt):
        with policy.weights_of(directory):
            raise KeyboardInterrupt
    return policy.weights_hash() == before


def test_the_student_comes_back_when_the_block_raises(tmp_path):
    assert all(run_distributed(interrupted_rotation, 1, tmp_path / "teacher", None))


def fresh_hashes(_):
    import torch

    first = build(seed=1).weights_hash()
    torch.rand(7)
    return first, build(seed=1).weights_hash(), build(seed=2).weights_hash()


def test_fresh_weights_depend_on_the_seed_alone():
    ((first, again, other),) = run_distributed(fresh_hashes, 1, None)
    assert first == again != other


def resumed(directory, layout):
    from nemo_cascade.engine import checkpoint

    whole = build(**layout)
    train(whole, 2)
    path = checkpoint.save(whole, directory, {"note": 7})
    losses = train(whole, 2)
    again = build(seed=1, **layout)
    info = checkpoint.load(again, path)
    assert info["note"] == 7 and again.step == 2
    assert train(again, 2) == losses
    return again.weights_hash() == whole.weights_hash()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_training_goes_on_bit_identically_from_a_checkpoint(layout, tmp_path):
    layout = dict(layout)
    assert all(run_distributed(resumed, layout.pop("world"), tmp_path, layout))


def weights_and_hash(directory, layout, save):
    policy = build(max_num_steps=0, **layout)
    if save:
        policy.save(directory, optimizer=False)
    else:
        policy.load(directory, optimizer=False)
    return policy.weights_hash()


def test_a_checkpoint_opens_at_another_layout_with_the_same_hash(tmp_path):
    hashes = set(run_distributed(weights_and_hash, 1, tmp_path, {}, True))
    for layout in LAYOUTS[1:]:
        layout = dict(layout)
        hashes |= set(run_distributed(weights_and_hash, layout.pop("world"), tmp_path, layout, False))
    assert len(hashes) == 1


def damaged_write(directory, _):
    from nemo_cascade.engine import checkpoint
    from nemo_cascade.engine.writes import Writes

    policy = build()
    train(policy, 1)
    honest = policy.save

    def lying_disk(path, **options):
        honest(path, **options)
        train(policy, 1)

    policy.save = lying_disk
    with pytest.raises(RuntimeError, match="differ from those in memory"):
        checkpoint.save(policy, directory, {})
    with pytest.raises(RuntimeError, match="differ from those in memory"):
        checkpoint.begin(policy, directory, {}, writes=Writes()).end()
    return checkpoint.latest(directory)


def test_a_checkpoint_that_cannot_be_read_back_is_never_renamed(tmp_path):
    assert run_distributed(damaged_write, 1, tmp_path, None) == [None]


def own_teacher(directory, layout):
    from nemo_cascade.stages.loss import make_loss
    from nemo_cascade.stages.rl import add_teacher_logprobs

    policy = build(distributed_optimizer=False, **layout)
    policy.save(directory / "policy", optimizer=False)
    samples = random_samples(policy.preset.vocab_size, sampling_logprobs=0.0)
    add_teacher_logprobs(policy, samples, ["math"] * len(samples), {"math": directory})
    for sample, logprobs in zip(samples, policy.logprobs(samples)):
        sample.fields["sampling_logprobs"] = logprobs
    settings = LossConfig(
        token_level_loss=False,
        use_importance_sampling_correction=True,
        truncated_importance_sampling_type="icepop",
        truncated_importance_sampling_ratio_min=0.5,
        truncated_importance_sampling_ratio=2.0,
    )
    seen = []

    def watched(logprobs, pack):
        seen.append(((pack.fields["teacher_logprobs"] - logprobs.detach()) * pack.mask).abs().max().item())
        return make_loss(settings, distil=True)(logprobs, pack)

    loss, gradients = full_gradients(policy, samples, watched)
    # Only the last pipeline stage sees a loss.
    return max(seen, default=0.0), loss, max(gradient.abs().max().item() for gradient in gradients.values())


@pytest.mark.parametrize("layout", [*LAYOUTS, dict(world=2, pipeline_model_parallel_size=2, top_p=0.95)], ids=str)
def test_a_student_that_is_its_own_teacher_has_advantage_loss_and_gradient_exactly_zero(layout, tmp_path):
    layout = dict(layout)
    for advantage, loss, gradient in run_distributed(own_teacher, layout.pop("world"), tmp_path, layout):
        assert (advantage, loss, gradient) == (0.0, 0.0, 0.0)


def held_at_its_start(directory, layout):
    from nemo_cascade.stages.loss import make_loss
    from nemo_cascade.stages.rl import Question, ask

    policy = build(distributed_optimizer=False, **layout)
    policy.save(directory / "policy", optimizer=False)
    samples = random_samples(policy.preset.vocab_size, sampling_logprobs=0.0, advantages=0.0)
    ask(policy, [Question(directory, "reference_logprobs", samples)])
    loss = make_loss(LossConfig(reference_policy_kl_penalty=0.03), distil=False)
    value, gradients = full_gradients(policy, samples, loss)
    return value, max(gradient.abs().max().item() for gradient in gradients.values())


@pytest.mark.parametrize("layout", [*LAYOUTS, dict(world=1, top_p=0.95)], ids=str)
def test_where_a_stage_begins_its_kl_term_and_gradient_are_exactly_zero(layout, tmp_path):
    layout = dict(layout)
    for result in run_distributed(held_at_its_start, layout.pop("world"), tmp_path, layout):
        assert result == (0.0, 0.0)


def first_layers(_):
    policy = build(pipeline_model_parallel_size=2)
    return {name: t.detach().clone() for name, t in policy.model.decoder.layers[0].named_parameters() if t.dim() > 1}


def test_fresh_pipeline_stages_are_drawn_apart():
    first, second = run_distributed(first_layers, 2, None)
    assert first and first.keys() == second.keys()
    for name, weight in first.items():
        assert not torch.equal(weight, second[name]), name


def not_finite(_):
    policy = build()
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]

    def explode(logprobs, pack):
        return logprobs.sum() * float("inf"), pack.mask.sum(), {}

    with pytest.raises(FloatingPointError, match="optimizer step 1"):
        policy.train_step(random_samples(policy.preset.vocab_size), explode)
    return all(bool((now == then).all()) for now, then in zip(policy.model.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched():
    assert run_distributed(not_finite, 1, None) == [True]


def test_training_info_names_the_step_and_the_hash(tmp_path):
    assert all(run_distributed(resumed, 1, tmp_path, {}))
    info = json.loads((tmp_path / "step_2" / "training_info.json").read_text())
    assert info["step"] == 2 and len(info["weights_hash"]) == 64
