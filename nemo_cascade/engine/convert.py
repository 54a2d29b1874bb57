"""Hugging Face folders to megatron-core checkpoints and back, a tensor at a time: the model is never whole in memory.

What a checkpoint has to hold is asked of megatron-core itself: the model is built on the meta device, in a world of one, and its
sharded state dict tells keys and shapes. No layout is chosen here, because a distributed checkpoint opens at any.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: E402
from rich.progress import Progress, track  # noqa: E402
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties  # noqa: E402
from torch.distributed.checkpoint.planner import (  # noqa: E402
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list  # noqa: E402

from nemo_cascade.data.files import new_folder  # noqa: E402
from nemo_cascade.engine.gather import sharded_state_dict, stored_parts, whole_shapes  # noqa: E402
from nemo_cascade.models.config import ModelConfig  # noqa: E402
from nemo_cascade.models.hf import from_hf, hf_names, hf_tensors  # noqa: E402
from nemo_cascade.models.hf_folder import SHARD_BYTES, HFReader, refuse_unless_equal, write_hf  # noqa: E402
from nemo_cascade.models.presets import get_preset  # noqa: E402
from nemo_cascade.models.specs import build_model, transformer_config  # noqa: E402

# At once in memory when a checkpoint is written, and the number of its files.
WRITERS = 4
# What a training checkpoint of Megatron-LM holds beside the weights.
NOT_WEIGHTS = ("optimizer.", "rng_state", "rerun_state_machine_state")


class Stored(NamedTuple):
    """One tensor of a checkpoint: rows start .. start + shape[0] of the whole tensor `name` (all, but where mcore keeps pieces)."""

    name: str
    start: int
    shape: tuple[int, ...]
    experts: bool


def hf_to_megatron(source: Path, target: Path, *, show: bool = False) -> None:
    """Writes the weights of a Hugging Face folder as a megatron-core distributed checkpoint; every bit and type stays.

    show: a bar of the tensors written. Raises ValueError naming every tensor that is missing, extra or of another shape.
    """
    preset = get_preset(str(source))
    model = whole_model(preset)
    reader = open_hf(source, model, preset)
    stored, objects = checkpoint_layout(model)

    bar = Progress(disable=not show)
    task = bar.add_task("tensors", total=sum(part.shape[0] if part.experts else 1 for part in stored.values()))

    def read(key: str, expert: int) -> torch.Tensor:
        bar.advance(task)
        name, start, shape, experts = stored[key]
        names = hf_names(name, preset)
        if experts:
            return reader[names[expert]][None]
        return from_hf(name, [reader[part] for part in names], preset)[start : start + shape[0]]

    dtypes = {key: reader[hf_names(part.name, preset)[0]].dtype for key, part in stored.items()}
    with new_folder(Path(target)) as folder, bar:
        writer = dcp.FileSystemWriter(folder, thread_count=WRITERS)
        dcp.save({}, storage_writer=writer, planner=LazyPlanner(stored, objects, dtypes, read), no_dist=True)
        torch.save({}, folder / "common.pt")
        save_config(CheckpointingConfig("torch_dist"), str(folder))


@torch.no_grad()
def read_hf(model, source: Path, preset: ModelConfig) -> None:
    """Reads a Hugging Face folder into a model at any layout: of each tensor, the part that this rank holds.

    Raises ValueError naming every tensor that is missing, extra or of another shape.
    """
    reader = open_hf(source, model, preset)
    for name, row, part in stored_parts(model):
        names, offset = hf_names(name, preset), list(part.global_offset)
        if part.prepend_axis_num:
            # Of the experts, only this rank's are read.
            whole, offset[0] = from_hf(name, [reader[names[offset[0]]]], preset), 0
        else:
            whole = from_hf(name, [reader[other] for other in names], preset)[row:]
        block = [1] * part.prepend_axis_num + list(part.data.shape)
        part.data.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offset, block))].view(part.data.shape))


def megatron_to_hf(
    source: Path,
    target: Path,
    preset: ModelConfig,
    *,
    shard_bytes: int = SHARD_BYTES,
    show: bool = False,
) -> None:
    """Writes the weights of a megatron-core distributed checkpoint, saved at any layout, as a Hugging Face folder.

    Raises ValueError naming every tensor that is missing, extra or of another shape.
    """
    stored, _ = checkpoint_layout(whole_model(preset))
    reader = CheckpointReader(source)
    expected = {key: part.shape for key, part in stored.items()}
    refuse_unless_equal(Path(source), expected, reader.shapes())
    pieces: dict[str, list[str]] = {}
    for key, part in stored.items():
        pieces.setdefault(part.name, []).append(key)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, keys in track(pieces.items(), "tensors", total=len(pieces), disable=not show):
            if stored[keys[0]].experts:
                # One by one: all experts of a layer are more than everything else in it.
                yield from ((hf_name, reader.row(keys[0], row)) for row, hf_name in enumerate(hf_names(name, preset)))
            else:
                parts = [reader.whole(key) for key in keys]
                yield from hf_tensors([(name, torch.cat(parts) if len(parts) > 1 else parts[0])], preset)

    write_hf(tensors(), preset, target, shard_bytes=shard_bytes)


def refuse_unless_fitting(source: Path, model) -> None:
    """Raises ValueError naming the tensors by which a distributed checkpoint differs from a model at any layout."""
    expected: dict[str, tuple[int, ...]] = {}
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, {part.key: tuple(part.global_shape) for _, _, part in stored_parts(model)})
    for shapes in everyone:
        expected |= shapes
    refuse_unless_equal(Path(source), expected, CheckpointReader(source).shapes())


class CheckpointReader(dcp.DefaultLoadPlanner):
    """Tensors of a distributed checkpoint, whole or a row of them, each read when it is asked for."""

    def __init__(self, folder: Path):
        super().__init__()
        self.reader = dcp.FileSystemReader(folder)
        self.metadata = self.reader.read_metadata()
        self.reader.set_up_storage_reader(self.metadata, is_coordinator=True)
        entries = self.metadata.state_dict_metadata.items()
        self.entries = {k: entry for k, entry in entries if hasattr(entry, "size") and not k.startswith(NOT_WEIGHTS)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by key."""
        return {key: tuple(entry.size) for key, entry in self.entries.items()}

    def whole(self, key: str) -> torch.Tensor:
        """The tensor of a key."""
        return self._block(key, [0] * len(self.entries[key].size), self.entries[key].size)

    def row(self, key: str, row: int) -> torch.Tensor:
        """tensor[row] of a key."""
        shape = self.entries[key].size
        return self._block(key, [row, *[0] * (len(shape) - 1)], [1, *shape[1:]])[0]

    def _block(self, key: str, offsets, sizes) -> torch.Tensor:
        block = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        self.block = torch.empty(sizes, dtype=self.entries[key].properties.dtype)
        items = create_read_items_for_chunk_list(key, self.entries[key], [block])
        self.reader.read_data(LoadPlan(items), self).wait()
        return self.block

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        """Called by torch's reader: where to put what it has read."""
        return self.block


def open_hf(source: Path, model, preset: ModelConfig) -> HFReader:
    """The tensors of a Hugging Face folder, of which all the model's are there and no others."""
    reader = HFReader(source)
    whole = ((name, torch.empty(shape, device="meta")) for name, shape in whole_shapes(model).items())
    expected = {name: tuple(tensor.shape) for name, tensor in hf_tensors(whole, preset)}
    refuse_unless_equal(Path(source), expected, reader.shapes())
    return reader


def whole_model(preset: ModelConfig):
    """The model without memory, in a world of one process."""
    with torch.device("meta"):
        return build_model(preset, transformer_config(preset, perform_initialization=False))


def checkpoint_layout(model) -> tuple[dict[str, Stored], list[str]]:
    """Every tensor of a checkpoint of this model by key, and the keys of what it has beside tensors (layers' extra states)."""
    stored = {
        part.key: Stored(name, row, tuple(part.global_shape), part.prepend_axis_num > 0)
        for name, row, part in stored_parts(model)
    }
    objects = [entry.unique_key for entry in sharded_state_dict(model).values() if isinstance(entry, ShardedObject)]
    return stored, objects


class LazyPlanner(dcp.DefaultSavePlanner):
    """Plans a checkpoint from shapes, and reads a tensor when it is its turn to be written; experts one by one."""

    def __init__(self, stored: dict[str, Stored], objects: list[str], dtypes: dict[str, torch.dtype], read: Callable):
        super().__init__()
        self.stored, self.objects, self.dtypes, self.read = stored, objects, dtypes, read

    def create_local_plan(self) -> SavePlan:
        """A plan of everything; experts, which a checkpoint has as one tensor, in parts of one expert each."""
        items = [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in self.objects]
        for key, part in self.stored.items():
            for expert in range(part.shape[0]) if part.experts else [0]:
                offsets = torch.Size([expert, *[0] * (len(part.shape) - 1)])
                sizes = torch.Size([1, *part.shape[1:]] if part.experts else part.shape)
                chunk = ChunkStorageMetadata(offsets, sizes)
                data = TensorWriteData(chunk, TensorProperties(dtype=self.dtypes[key]), torch.Size(part.shape))
                items.append(WriteItem(MetadataIndex(key, offsets), WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items, planner_data={})
        return self.plan

    def resolve_data(self, write_item: WriteItem):
        """The tensor, or the bytes, of one part of the plan."""
        if write_item.type == WriteItemType.BYTE_IO:
            # mcore keeps a list of the values under one key, and an empty extra state as None.
            return self.transform_object(write_item, [None])
        return self.read(write_item.index.fqn, write_item.index.offset[0])
