"""Weights pass between Hugging Face's form and megatron-core's without losing a bit, a tensor or a word on what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.cases import EVERY_LAYOUT, layout
from tests.helpers import run_distributed
from tests.models.test_hf import build, stirred

ROOT = Path(__file__).parents[2]


def write_folder(folder, shard_bytes, settings):
    """A policy's weights as a Hugging Face folder and as a checkpoint; returns their hash."""
    from nemo_cascade.models.hf_folder import write_hf

    policy = stirred(build("micro", **settings))
    first = torch.distributed.get_rank() == 0
    write_hf(policy.hf_weights(), policy.preset, folder / "hf", shard_bytes=shard_bytes, write=first)
    policy.save(folder / "policy", optimizer=False)
    return policy.weights_hash()


def hash_of(kind, folder, settings):
    """The hash of weights read by a policy at another layout, which held others before."""
    policy = build("micro", **settings)
    if kind == "hf":
        policy.load_hf(folder)
    else:
        policy.load(folder, optimizer=False)
    return policy.weights_hash()


def to_megatron(source, target):
    from nemo_cascade.engine import convert, parallel
    from nemo_cascade.engine.config import MegatronConfig

    parallel.init(MegatronConfig())
    convert.hf_to_megatron(source, target)


def to_hf(source, target, shard_bytes):
    from nemo_cascade.engine import convert, parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.presets import get_preset

    parallel.init(MegatronConfig())
    convert.megatron_to_hf(source, target, get_preset("micro"), shard_bytes=shard_bytes)


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """hf/ in several shards and policy/ of the same weights."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "hash").write_text(run_distributed(write_folder, 1, folder, 100_000, {})[0])
    assert len(list((folder / "hf").glob("*.safetensors"))) > 3
    return folder


@pytest.mark.parametrize("name", ["one", *EVERY_LAYOUT])
def test_a_hugging_face_folder_opens_at_every_layout(folder, name):
    world, settings = layout(name)
    hashes = run_distributed(hash_of, world, "hf", folder / "hf", settings)
    assert set(hashes) == {(folder / "hash").read_text()}


@pytest.mark.parametrize("name", ["one", "TP2+PP2", "TP2+EP2"])
def test_a_converted_checkpoint_opens_at_every_layout(folder, tmp_path, name):
    world, settings = layout(name)
    run_distributed(to_megatron, 1, folder / "hf", tmp_path / "weights")
    hashes = run_distributed(hash_of, world, "megatron", tmp_path, settings)
    assert set(hashes) == {(folder / "hash").read_text()}


def test_a_converted_checkpoint_has_the_keys_shapes_and_types_of_a_saved_one(folder, tmp_path):
    from torch.distributed.checkpoint import FileSystemReader

    run_distributed(to_megatron, 1, folder / "hf", tmp_path / "weights")

    def entries(weights):
        found = FileSystemReader(weights).read_metadata().state_dict_metadata.items()
        # What ranks have in common is in common.pt too, or alone, where megatron-core looks when it is not here.
        return {key: (type(e), getattr(e, "size", None)) for key, e in found if not key.startswith("common_state/")}

    saved, converted = entries(folder / "policy" / "weights"), entries(tmp_path / "weights")
    assert saved == converted
    assert {path.name for path in tmp_path.iterdir()} == {"weights"}


@pytest.mark.parametrize("name", ["one", "TP2+PP2", "EP2", pytest.param("TP2+PP2+EP2", marks=pytest.mark.slow)])
def test_a_checkpoint_of_any_layout_becomes_the_same_folder(tmp_path, name):
    world, settings = layout(name)
    run_distributed(write_folder, world, tmp_path, 10**9, settings)
    run_distributed(to_hf, 1, tmp_path / "policy" / "weights", tmp_path / "back", 150_000)
    there, back = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    assert there.keys() == back.keys() and all(torch.equal(there[name], back[name]) for name in there)
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == there.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in there.values())
    assert all(path.stat().st_size < 170_000 for path in (tmp_path / "back").glob("*.safetensors"))


def test_bits_and_types_survive_the_way_to_megatron_and_back(folder, tmp_path):
    """Also those that no float32 model would keep: bfloat16, and values without order such as nan."""
    source = tmp_path / "hf"
    source.mkdir()
    mixed = {name: tensor.bfloat16() if tensor.dim() > 1 else tensor for name, tensor in tensors(folder / "hf").items()}
    mixed["lm_head.weight"][3, 5] = torch.nan
    save_file(mixed, source / "model.safetensors")
    (source / "config.json").write_text((folder / "hf" / "config.json").read_text())
    run_distributed(to_megatron, 1, source, tmp_path / "weights")
    run_distributed(to_hf, 1, tmp_path / "weights", tmp_path / "back", 10**9)
    back = tensors(tmp_path / "back")
    assert {name: (t.dtype, t.shape) for name, t in mixed.items()} == {name: (t.dtype, t.shape) for name, t in back.items()}
    assert all(torch.equal(mixed[name].view(torch.uint8), back[name].view(torch.uint8)) for name in mixed)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"


DAMAGE = {
    "backbone.layers.0.mixer.A_log is missing": lambda t: t.pop("backbone.layers.0.mixer.A_log"),
    "backbone.layers.7.norm.weight is no tensor of the model": lambda t: t.update(
        {"backbone.layers.7.norm.weight": torch.ones(3)}
    ),
    "backbone.layers.1.mixer.experts.3.up_proj.weight is [32, 31], the model's [32, 32]": lambda t: t.update(
        {"backbone.layers.1.mixer.experts.3.up_proj.weight": torch.ones(32, 31)}
    ),
}


@pytest.mark.parametrize("told", DAMAGE)
def test_a_folder_that_is_not_the_model_is_refused_by_name(folder, tmp_path, told):
    damaged = tensors(folder / "hf")
    DAMAGE[told](damaged)
    save_file(damaged, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "hf" / "config.json").read_text())
    for step, arguments in ((to_megatron, (tmp_path, tmp_path / "out")), (hash_of, ("hf", tmp_path, {}))):
        with pytest.raises(AssertionError) as error:
            run_distributed(step, 1, *arguments)
        assert told in str(error.value) and str(tmp_path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused_by_name(folder, tmp_path):
    with pytest.raises(AssertionError, match=r"embedding.word_embeddings.weight is \[832, 32\], the model's \[832, 128\]"):
        run_distributed(to_hf_as_tiny, 1, folder / "policy" / "weights", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def to_hf_as_tiny(source, target):
    from nemo_cascade.engine import convert, parallel
    from nemo_cascade.engine.config import MegatronConfig
    from nemo_cascade.models.presets import get_preset

    parallel.init(MegatronConfig())
    convert.megatron_to_hf(source, target, get_preset("tiny"))


def test_a_shard_that_was_not_downloaded_is_named(folder, tmp_path):
    from nemo_cascade.models.hf_folder import HFReader

    for file in (folder / "hf").iterdir():
        if file.name != "model-00002-of-00005.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match="model-00002-of-00005.safetensors"):
        HFReader(tmp_path)


def test_the_command_converts_both_ways(folder, tmp_path):
    def convert(*arguments):
        command = [sys.executable, str(ROOT / "examples" / "convert.py"), *map(str, arguments)]
        # Wide, or a long path would break a message into lines.
        environment = os.environ | {"COLUMNS": "400", "TERMINAL_WIDTH": "400"}
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    there = convert("--from", "hf", "--to", "megatron", folder / "hf", tmp_path / "weights")
    assert there.returncode == 0, there.stderr
    back = convert("--from", "megatron", "--to", "hf", "--model", folder / "hf", tmp_path / "weights", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    first, second = tensors(folder / "hf"), tensors(tmp_path / "back")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    again = convert("--from", "hf", "--to", "megatron", folder / "hf", tmp_path / "weights")
    assert again.returncode == 2 and "is there already" in again.stderr
    nameless = convert("--from", "megatron", "--to", "hf", tmp_path / "weights", tmp_path / "third")
    assert nameless.returncode == 2 and "--model" in nameless.stderr
