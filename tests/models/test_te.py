"""With Transformer Engine installed the same network is built from its layers, and FP8 is where the config says, no
more and no less.

Transformer Engine itself needs CUDA; here megatron-core's own code runs on a stand-in with its recorded signatures, in
a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import run_distributed

ROOT = Path(__file__).parents[2]
RECIPES = {
    "tensorwise": "Float8CurrentScaling",
    "delayed": "TEDelayedScaling",
    "mxfp8": "MXFP8BlockScaling",
    "blockwise": "Float8BlockScaling",
}
# What the rows of a product in FP8 must be a multiple of: said again here, the package's own table might be wrong.
BLOCK = {"tensorwise": 16, "delayed": 16, "mxfp8": 32, "blockwise": 128}


def with_te(function: str, *args) -> object:
    """What a function of this module returns in a process that can import Transformer Engine (JSON in and out)."""
    return in_process("from tests.models import te_standin; te_standin.install()", function, *args)


def in_process(first: str, function: str, *args) -> object:
    """The same in a process that begins with a statement of its own."""
    program = (
        f"import json, sys; {first}; import tests.models.test_te as cases;"
        "print('answer', json.dumps(getattr(cases, sys.argv[1])(*json.loads(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", program, function, json.dumps(args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("answer ", 1)[1])


def network() -> str:
    """The name of a network whose sides blocks of 16 divide, those of 32 and 128 all but Mamba's in_proj (592 rows)."""
    import dataclasses

    from nemo_cascade.models.presets import PRESETS

    sizes = dict(hidden_size=128, kv_channels=32, mamba_num_heads=16, moe_ffn_hidden_size=128)
    sizes["moe_shared_expert_intermediate_size"] = 128
    PRESETS["blocks"] = dataclasses.replace(PRESETS["micro"], name="blocks", **sizes)
    return "blocks"


def build(fp8=None, precision="float32", max_num_steps=0, **megatron_cfg):
    import torch.distributed as dist

    from nemo_cascade.engine import parallel
    from nemo_cascade.engine.config import MegatronConfig, PolicyConfig, SequencePackingConfig
    from nemo_cascade.engine.policy import Policy
    from nemo_cascade.models.fp8 import Fp8Config

    cfg = MegatronConfig(fp8_cfg=Fp8Config(**(fp8 or {})), **megatron_cfg)
    config = PolicyConfig(
        model_name=network(),
        precision=precision,
        sequence_packing=SequencePackingConfig(train_mb_tokens=64),
        megatron_cfg=cfg,
    )
    if not dist.is_initialized():
        parallel.init(cfg)
    return Policy(config, seed=0, max_num_steps=max_num_steps)


def samples(policy):
    from tests.engine.cases import random_samples

    return random_samples(policy.preset.vocab_size)


def checkpoint_keys(policy) -> list:
    """[name of the whole tensor, key in a checkpoint, whole shape, offset], sorted."""
    from nemo_cascade.engine.gather import stored_parts

    parts = stored_parts(policy.model)
    return sorted([name, part.key, list(part.global_shape), list(part.global_offset)] for name, _, part in parts)


# -------------------------------------------------------------------------------- the same network


def write_torch(directory, precision="float32"):
    """Checkpoint keys, hash and log-probs of a policy that is saved."""
    policy = build(precision=precision)
    policy.save(directory, optimizer=False)
    return checkpoint_keys(policy), policy.weights_hash(), policy.logprobs(samples(policy))


def read_te(directory, precision="float32"):
    """Layers' classes, checkpoint keys, hash, log-probs; then a teacher's rotation with its extra states."""
    policy = build(precision=precision, max_num_steps=2)
    before = policy.weights_hash()
    with policy.weights_of(Path(directory)):
        inside = policy.weights_hash()
    policy.load(Path(directory), optimizer=False)
    kinds = sorted({type(module).__name__ for layer in policy.model.decoder.layers for module in layer.modules()})
    kinds += [type(policy.model.decoder.final_norm).__name__]
    return kinds, checkpoint_keys(policy), [before, inside, policy.weights_hash()], policy.logprobs(samples(policy))


def test_a_checkpoint_of_torchs_layers_opens_in_transformer_engines_and_answers_the_same(tmp_path):
    keys, written, logprobs = run_distributed(write_torch, 1, tmp_path)[0]
    kinds, te_keys, (before, inside, after), te_logprobs = with_te("read_te", str(tmp_path))
    assert set(kinds) >= {
        "TELayerNormColumnParallelLinear",
        "TERowParallelLinear",
        "Attention",
        "TEGroupedMLP",
        "TEColumnParallelGroupedLinear",
        "RMSNorm",
    }
    assert not {"NormColumnParallelLinear", "RowParallelLinear", "PackedExperts", "Experts"} & set(kinds)
    assert te_keys == keys
    assert inside == after == written != before
    rows = zip(logprobs, te_logprobs, strict=True)
    apart = [abs(a - b) for row, te_row in rows for a, b in zip(row, te_row, strict=True)]
    assert max(apart) < 1e-5 and len(apart) > 100


def summed_gradients(way):
    """Whether layers were told to add to main_grad; the largest relative difference of a gradient from that of layers which leave
    their gradients to autograd, when they multiply in one of two ways."""
    from nemo_cascade.engine.config import OptimizerConfig
    from nemo_cascade.models import te
    from nemo_cascade.stages.sft import sft_loss
    from tests.engine.cases import full_gradients, largest_error

    policy = build(max_num_steps=2, optimizer=OptimizerConfig(use_distributed_optimizer=False))
    told = [module for module in policy.model.modules() if hasattr(module, "fuse_wgrad_accumulation")]
    before = [bool(module.fuse_wgrad_accumulation) for module in told]
    calls = []
    if way == "grouped":
        te.usable = lambda x, weights: calls.append(len(weights)) or True
    _, gradients = full_gradients(policy, samples(policy), sft_loss)
    te.usable = lambda x, weights: False
    for module in told:
        module.fuse_wgrad_accumulation = False
    _, expected = full_gradients(policy, samples(policy), sft_loss)
    return before, calls, largest_error(gradients, expected)


@pytest.mark.parametrize("way", ["fused", "grouped"])
def test_gradients_that_layers_add_themselves_are_those_of_autograd(way):
    told, calls, (error, name) = with_te("summed_gradients", way)
    assert len(told) > 5 and all(told) and bool(calls) == (way == "grouped")
    assert error < 1e-5, name


# -------------------------------------------------------------------------------- FP8


def in_fp8(cases):
    """`one_case` of each."""
    return [one_case(*case) for case in cases]


def one_case(settings, recompute):
    """[layer, name, recipe or None, rows beyond whole blocks] of every matrix in one training step and in log-probs."""
    from nemo_cascade.models import specs
    from nemo_cascade.stages.sft import sft_loss
    from tests.models import te_standin

    specs.require_fp8 = lambda recipe: None
    policy = build(settings, "bfloat16", max_num_steps=2, activation_checkpointing=recompute)
    where = {
        module: (layer.layer_number - 1, name)
        for layer in policy.model.decoder.layers
        for name, module in layer.named_modules()
    }
    steps, block = [], BLOCK[settings["fp8_recipe"]]
    for run in (lambda: policy.train_step(samples(policy), sft_loss), lambda: policy.logprobs(samples(policy))):
        te_standin.RAN.clear()
        run()
        ran = [(where[module], recipe, rows) for module, recipe, rows in te_standin.RAN if module in where]
        calls = {(*place, r and type(r).__name__, sum(n % block for n in rows)) for place, r, rows in ran}
        steps.append(sorted((c for c in calls if ".linear" in c[1] or "_proj" in c[1]), key=str))
    return steps


def expected(settings) -> set[tuple[int, str, bool]]:
    """(layer, name, whether it is in FP8), from the config alone."""
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.fp8 import Fp8Config, first_and_last_layers, matrices, matrices_in_bf16
    from nemo_cascade.models.presets import get_preset

    preset, cfg = get_preset(network()), MegatronConfig(fp8_cfg=Fp8Config(**settings))
    layers, kept = first_and_last_layers(cfg.fp8_cfg, preset.num_layers), matrices_in_bf16(preset, cfg)
    return {(m.layer, m.name, m.layer not in layers and (m.layer, m.name) not in kept) for m in matrices(preset, cfg)}


# Settings of fp8_cfg, and whether layers are recomputed.
CASES = [
    (dict(fp8_recipe="tensorwise"), False),
    (dict(fp8_recipe="delayed", fp8="hybrid"), True),
    (dict(fp8_recipe="tensorwise", attention_in_bf16=True), True),
    (dict(fp8_recipe="mxfp8", unaligned_in_bf16=True, first_last_layers_bf16=True, num_layers_at_end_in_bf16=2), True),
    (dict(fp8_recipe="blockwise", unaligned_in_bf16=True), False),
    (dict(fp8_recipe="blockwise", unaligned_in_bf16=True, moe_router_padding_for_quantization=False), False),
]


@pytest.fixture(scope="module")
def steps():
    return with_te("in_fp8", [(dict(settings, enabled=True), recompute) for settings, recompute in CASES])


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: str(CASES[case]))
def test_products_are_in_fp8_where_the_config_says_in_training_and_log_probs(case, steps):
    settings = dict(CASES[case][0], enabled=True)
    wanted = expected(settings)
    mixed = len(settings) > 2 and settings["fp8_recipe"] != "delayed"
    assert {fp8 for *_, fp8 in wanted} == ({True, False} if mixed else {True})
    for step in steps[case]:
        assert {(layer, name, recipe is not None) for layer, name, recipe, _ in step} == wanted
        assert {recipe for *_, recipe, _ in step} <= {RECIPES[settings["fp8_recipe"]], None}
        assert all(rest == 0 for _, _, recipe, rest in step if recipe), "tokens of a product are no whole blocks"


def learning(settings):
    """Losses of 20 steps on one batch, or why this machine cannot run them (`tests/gpu`)."""
    from nemo_cascade.engine.config import OptimizerConfig
    from nemo_cascade.stages.sft import sft_loss

    try:
        policy = build(settings, "bfloat16", max_num_steps=20, optimizer=OptimizerConfig(lr=1e-2))
    except RuntimeError as refusal:
        return str(refusal)
    batch = samples(policy)
    return [policy.train_step(batch, sft_loss, as_sampled=False)["loss"] for _ in range(20)]


def refusals():
    """The errors without a GPU, and with GPUs that have no MXFP8 or nothing."""
    import torch
    import transformer_engine.pytorch.fp8 as te_fp8

    from nemo_cascade.models.te import require_fp8

    def error(recipe):
        try:
            build(dict(enabled=True, fp8_recipe=recipe), "bfloat16")
        except RuntimeError as refusal:
            return str(refusal)

    told = [error("tensorwise")]
    torch.cuda.is_available, torch.cuda.get_device_name = lambda: True, lambda: "H100"
    te_fp8.check_mxfp8_support = lambda: (False, "Device compute capability 10.0 or higher required.")
    require_fp8("blockwise")
    told.append(error("mxfp8"))
    del te_fp8.check_fp8_block_scaling_support
    return [*told, error("blockwise")]


def test_a_machine_that_cannot_is_told_with_the_key_and_what_to_do():
    no_gpu, no_mxfp8, no_answer = with_te("refusals")
    assert "fp8_cfg.enabled=true needs a GPU" in no_gpu and "set it to false" in no_gpu
    assert "fp8_recipe=mxfp8" in no_mxfp8 and "H100" in no_mxfp8 and "10.0" in no_mxfp8
    assert "choose tensorwise or delayed or blockwise" in no_mxfp8
    assert "fp8_recipe=blockwise" in no_answer and "2.8.0 has no check_fp8_block_scaling_support" in no_answer
    assert "choose tensorwise or delayed, or set" in no_answer


def without_te():
    with pytest.raises(RuntimeError, match="policy.megatron_cfg.fp8_cfg.enabled=true needs Transformer Engine"):
        build(dict(enabled=True, fp8_recipe="tensorwise"), "bfloat16")


def test_without_transformer_engine_the_key_is_named():
    run_distributed(without_te, 1)


def replies(recipe):
    """Replies and log-probs of the embedded engine over FP8 layers; rows beyond whole blocks in each FP8 product of
    decoding; settings and forwards in the layers before, inside a step, after one that failed, and at the end."""
    from nemo_cascade.models import specs
    from nemo_cascade.rollout.engine import generate_global
    from nemo_cascade.rollout.types import Request, SamplingParams
    from nemo_cascade.stages.rl import rollout_sample
    from nemo_cascade.stages.rollouts import make_engine
    from tests.models import te_standin

    specs.require_fp8 = lambda recipe: None
    policy = build(dict(enabled=True, fp8_recipe=recipe, unaligned_in_bf16=recipe != "tensorwise"), "bfloat16")

    def state():
        replaced = sum("forward" in vars(module) for module in policy.model.modules())
        return replaced, policy.transformer_config.moe_router_padding_for_quantization

    states = [state()]
    # An earlier engine on the same layers, as another stage has made it, which fails while it decodes.
    engine = make_engine(policy)

    def fail(*_):
        states.append(state())
        raise ArithmeticError

    engine._forward = fail
    requests = [Request(f"{n:016x}", 0, tuple(range(20, 23 + 7 * n))) for n in range(3)]
    engine.add(requests, SamplingParams(max_new_tokens=6, seed=1))
    with pytest.raises(ArithmeticError):
        engine.step()
    states.append(state())
    te_standin.RAN.clear()
    rollouts = generate_global(make_engine(policy), requests, SamplingParams(max_new_tokens=6, seed=1))
    matrices = te_standin.Linear, te_standin.GroupedLinear
    products = [(module, r, rows) for module, r, rows in te_standin.RAN if r and isinstance(module, matrices)]
    rest = sum(n % BLOCK[recipe] for *_, rows in products for n in rows)
    few = max(max(rows) for module, _, rows in products if isinstance(module, te_standin.Linear))
    states.append(state())
    trained = policy.logprobs([rollout_sample(rollout, True) for rollout in rollouts])
    pairs = [[r.logprobs, row[len(r.prompt) :]] for r, row in zip(rollouts, trained)]
    return pairs, [len(products), rest, few], states


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
def test_decoding_fills_blocks_for_fp8_and_agrees_with_the_training_forward(recipe):
    pairs, (products, rest, few), (before, inside, failed, after) = with_te("replies", recipe)
    for sampled, trained in pairs:
        assert len(sampled) == len(trained) > 0
        assert max(abs(a - b) for a, b in zip(sampled, trained)) < 0.05
    assert products > 50 and rest == 0
    assert few <= 128, "three rows fill one block, not one each"
    # The layers' own forwards train: only decoding has others.
    assert before == failed == after == [0, True] and inside[0] > 5 and inside[1] is False
