"""Megatron Bridge builds our network, saves it in a form that a run takes in, opens our export, and starts from a stage of ours; with the
real megatron-bridge (make test-doors).

Bridge cannot be imported without Transformer Engine, which needs CUDA: megatron-core and Bridge run on its stand-in, in one process.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from nemo_cascade.cascade.manifest import DONE, Manifest
from nemo_cascade.cascade.plan import RunRefused
from nemo_cascade.interop import bridge
from tests.cascade.test_halves import write_rows
from tests.helpers import run_distributed
from tests.interop.test_import_checkpoint import cascade_in, gone_on, imported

ROOT = Path(__file__).parents[2]
HERE = find_spec("megatron") is not None and find_spec("megatron.bridge") is not None
REASON = "megatron-bridge is not installed here; make test-doors has it in an environment of its own"
NEEDS_BRIDGE = pytest.mark.skipif(not HERE, reason=REASON)
OTHERWISE = {
    "policy.megatron_cfg.optimizer.lr": 0.002,
    "policy.megatron_cfg.scheduler.lr_warmup_iters": 2,
    "policy.sequence_packing.train_mb_tokens": 2048,
    "sft.max_num_steps": 5,
}


def in_bridge(function: str, folder: Path) -> dict:
    """What a function of this module returns in a process with Bridge (JSON)."""
    program = (
        "import json, sys; from tests.models import te_standin; te_standin.install();"
        "from nemo_cascade.engine import cpu; cpu.install(); import tests.interop.test_bridge as cases; from pathlib import Path;"
        "print('answer', json.dumps(getattr(cases, sys.argv[1])(Path(sys.argv[2]))))"
    )
    done = subprocess.run([sys.executable, "-c", program, function, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("answer ", 1)[1])


def largest(one: list, other: list) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def built_by(provider):
    """Bridge's own way from a provider to a model."""
    provider.finalize()
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False, mixed_precision_wrapper=None)
    return model


def everything(folder: Path) -> dict:
    """Our network built, saved, read and converted by Bridge: what each step has beside ours."""
    import itertools

    import torch
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import load_model_config, save_megatron_model
    from megatron.core.transformer.enums import AttnBackend

    from nemo_cascade.models.hf_folder import write_hf
    from tests.engine.cases import random_samples
    from tests.engine.test_convert import build, stirred

    policy = stirred(build("micro"))
    samples, ours = random_samples(policy.preset.vocab_size), policy.model
    expected = policy.logprobs(samples)
    write_hf(policy.hf_weights(), policy.preset, folder / "hf")
    plain = dict(params_dtype=torch.float32, bf16=False)

    theirs = built_by(bridge.provider("micro", seq_length=64, **plain))
    pairs = zip(*(itertools.chain(model.named_parameters(), model.named_buffers()) for model in (theirs, ours)), strict=True)
    same_names = True
    for (name, target), (other, source) in pairs:
        same_names &= name == other
        target.data.copy_(source.data)
    policy.model = theirs
    built = largest(policy.logprobs(samples), expected)
    save_megatron_model([theirs], folder / "bridge")

    read, _ = load_model_config(str(folder / "bridge" / "iter_0000000"))
    converting = AutoBridge.from_hf_pretrained(str(folder / "hf")).to_megatron_provider(load_weights=True)
    # What its own layers need of a GPU.
    settings = dict(**plain, pipeline_dtype=torch.float32, attention_backend=AttnBackend.auto, gradient_accumulation_fusion=False)
    for name, value in {**settings, "moe_permute_fusion": False, "mamba_stack_spec": bridge.stack_spec}.items():
        setattr(converting, name, value)
    policy.model = built_by(converting)
    converted = largest(policy.logprobs(samples), expected)
    policy.model = ours
    return {
        "same_names": same_names,
        "built": built,
        "converted": converted,
        "hash": policy.weights_hash(),
        "read": [read.hybrid_override_pattern, read.vocab_size, read.mamba_stack_spec is bridge.stack_spec, read.moe_router_score_function],
    }


def recipes(folder: Path) -> dict:
    config = bridge.recipe("sft", "smoke", [f"cascade.stages.sft.{key}={value}" for key, value in OTHERWISE.items()])
    full = bridge.recipe("sft", "full")
    config.dataset.dataset_root = str(folder)
    config.train.global_batch_size = 4
    config.validate()
    return {
        "smoke": [config.model.seq_length, config.optimizer.lr, config.train.train_iters, config.scheduler.lr_warmup_iters],
        "layout": [full.model.tensor_model_parallel_size, full.model.context_parallel_size, full.model.expert_model_parallel_size],
        "full": [full.model.sequence_parallel, full.model.num_layers, full.model.bf16, full.mixed_precision],
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(folder with hf and bridge, what Bridge made of them)."""
    folder = tmp_path_factory.mktemp("bridge")
    return folder, in_bridge("everything", folder)


@NEEDS_BRIDGE
def test_bridges_provider_builds_our_network(found):
    assert found[1]["same_names"] and found[1]["built"] == 0.0


@NEEDS_BRIDGE
def test_bridge_opens_our_hugging_face_folder(found):
    assert found[1]["converted"] < 1e-5


@NEEDS_BRIDGE
def test_what_bridge_says_of_a_checkpoint_names_our_stack(found):
    assert found[1]["read"] == ["ME*ME*", 832, True, "sigmoid"]


@NEEDS_BRIDGE
def test_bridges_checkpoint_becomes_a_stage_that_the_next_one_starts_from(found, tmp_path):
    write_rows(tmp_path, "aeiorstnlmpq")
    cascade = cascade_in(tmp_path)
    run_distributed(imported, 2, cascade, "sft", found[0] / "bridge")
    record = Manifest.load(tmp_path / "run").stages["sft"]
    assert (record.status, record.checkpoint_hash, record.imported["form"]) == (DONE, found[1]["hash"], "megatron")
    run_distributed(gone_on, 2, cascade)
    assert Manifest.load(tmp_path / "run").stages["if_rl"].status == DONE


@NEEDS_BRIDGE
def test_a_stage_of_sft_is_a_config_that_bridge_accepts(tmp_path):
    told = in_bridge("recipes", tmp_path)
    assert told["smoke"] == [2048, 0.002, 5, 2]
    assert told["layout"] == [2, 4, 8] and told["full"] == [True, 52, True, "bf16_mixed"]


def test_a_stage_of_rl_is_refused_with_those_that_do():
    with pytest.raises(RunRefused, match="if_rl is no SFT stage of smoke, and Megatron Bridge has no RL; choose among genrm, sft"):
        bridge.recipe("if_rl", "smoke")


def test_the_module_needs_no_bridge():
    code = "import sys; import nemo_cascade.interop.bridge; sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
