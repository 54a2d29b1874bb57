"""A Hugging Face folder of safetensors: read a tensor at a time, written a shard at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nemo_cascade.data.files import write_atomically
from nemo_cascade.models.config import ModelConfig
from nemo_cascade.models.hf_config import hf_config

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What Hugging Face's own writer takes by default, and the released model has.
SHARD_BYTES = 5 * 10**9
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 11], "pad_token_id": 0}


class HFReader:
    """The tensors of a folder by name; files are mapped, so that only what is asked for is read."""

    def __init__(self, folder: Path):
        """Raises FileNotFoundError naming the folder or the shard that is not there."""
        self.folder = Path(folder)
        index = self.folder / INDEX
        if index.is_file():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        elif (self.folder / SINGLE).is_file():
            files = [SINGLE]
        else:
            raise FileNotFoundError(f"{self.folder}: neither {INDEX} nor {SINGLE} is there")
        absent = [name for name in files if not (self.folder / name).is_file()]
        if absent:
            raise FileNotFoundError(f"{index}: names {', '.join(absent)}, which the folder lacks; download it again")
        self._shards = [safe_open(self.folder / name, framework="pt") for name in files]
        self._shard_of = {key: shard for shard in self._shards for key in shard.keys()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor; nothing but the files' headers is read."""
        return {name: tuple(shard.get_slice(name).get_shape()) for name, shard in self._shard_of.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._shard_of[name].get_tensor(name)


def refuse_unless_equal(
    place: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], shown: int = 8
) -> None:
    """Raises ValueError naming the tensors that a folder lacks, has beside the model's or has in another shape.

    Of each kind, `shown` are named and the others counted.
    """
    missing = [f"{name} is missing" for name in expected if name not in found]
    extra = [f"{name} is no tensor of the model" for name in found if name not in expected]
    shapes = [
        f"{name} is {list(found[name])}, the model's {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    lines = []
    for kind in (missing, extra, shapes):
        lines += kind[:shown] + ([f"... and {len(kind) - shown} more"] if len(kind) > shown else [])
    if lines:
        raise ValueError("\n  ".join([f"{place} does not hold this model:", *lines]))


def write_hf(
    weights: Iterable[tuple[str, torch.Tensor]],
    preset: ModelConfig,
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    write: bool = True,
) -> None:
    """Writes the shards, their index, config.json and generation_config.json, which transformers and vLLM open.

    weights: (`backbone.*` name, tensor) as `hf_tensors` or `Policy.hf_weights` gives them; never more than a shard of them is in
    memory. Gathering takes all ranks, so each calls this, and all but one with write=False. A kill leaves no folder that opens.
    """
    if not write:
        for _ in weights:
            pass
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / INDEX, *folder.glob("model*.safetensors"), *folder.glob("tmp_*.safetensors")):
        stale.unlink(missing_ok=True)
    shards, dtype = [], None
    for shard in in_shards(weights, shard_bytes):
        save_file(shard, folder / f"tmp_{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in shard.items()})
        dtype = str(shard["lm_head.weight"].dtype).removeprefix("torch.") if "lm_head.weight" in shard else dtype
        # Or it would be there while the next is filled.
        del shard
    # time_step_limit ends in infinity, which JSON knows only in Python's spelling; transformers writes and reads it so.
    write_atomically(folder / "config.json", json.dumps(hf_config(preset, dtype), indent=2))
    write_atomically(folder / "generation_config.json", json.dumps(GENERATION, indent=2))
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    names = [SINGLE] if len(shards) == 1 else names
    for number, name in enumerate(names):
        (folder / f"tmp_{number}.safetensors").rename(folder / name)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sum(shard.values()) for shard in shards)},
            "weight_map": {key: name for name, shard in zip(names, shards) for key in shard},
        }
        write_atomically(folder / INDEX, json.dumps(index, indent=2))


def in_shards(weights: Iterable[tuple[str, torch.Tensor]], limit: int) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors in groups of at most `limit` bytes (or of one that is larger), in memory of their own."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in weights:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        tensor = tensor.detach().cpu().contiguous()
        # Parts of one tensor share its memory, which safetensors refuses.
        shard[name] = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        size += tensor.nbytes
    if shard:
        yield shard
