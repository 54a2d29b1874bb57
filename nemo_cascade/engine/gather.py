"""Full tensors from shards: every parameter of the model under any tensor / expert / pipeline parallel layout, one at a time.

megatron-core's own sharded state dict tells where each local shard lies in the whole (the same description its checkpoints are
written from), so nothing here knows about layers. A parameter that mcore stores in pieces (Mamba's in_proj: z, x, B, C, dt)
comes out as one tensor, the pieces concatenated in mcore's order. Streams: one tensor is whole at a time.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica


def sharded_state_dict(model) -> dict:
    """mcore's sharded state dict of an unwrapped model, without the non-tensor extras."""
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "distrib_optim_sharding_type": "fully_reshardable",
    }
    return model.sharded_state_dict(metadata=metadata)


def shards_of(state: dict) -> dict:
    """The tensors of a sharded state dict, without gradients.

    Layers' extra states are left out: those that torch's layers leave in a checkpoint are not those that Transformer
    Engine's would ask for, and none is a weight.
    """
    return {
        name: dataclasses.replace(entry, data=entry.data.detach())
        for name, entry in state.items()
        if isinstance(entry, (ShardedTensor, ShardedTensorFactory))
    }


def empty_like(state: dict) -> dict:
    """`shards_of` over fresh memory, so that a checkpoint can be read without touching the model."""
    return {name: dataclasses.replace(shard, data=torch.empty_like(shard.data)) for name, shard in shards_of(state).items()}


def stored_parts(model) -> Iterator[tuple[str, int, ShardedTensor]]:
    """This rank's shards with the whole tensor each belongs to: (its name, its row at which the shard's key begins, shard).

    What mcore keeps in pieces has a key for each of them; whatever else, one key of the tensor's own name, which begins at row 0.
    The shards' data are the model's own memory.
    """
    for entry in sharded_state_dict(model).values():
        row = 0
        for part in leaves(entry.build()) if isinstance(entry, ShardedTensorFactory) else [entry]:
            if isinstance(part, ShardedTensor):
                yield entry.key, row, part
                row += part.global_shape[0]


def whole_shapes(model) -> dict[str, tuple[int, ...]]:
    """The shape of every whole tensor by name, those of other pipeline stages too."""
    mine: dict[str, tuple[int, ...]] = {}
    for name, row, part in stored_parts(model):
        rows, *rest = part.global_shape
        mine[name] = (max(row + rows, mine.get(name, (0,))[0]), *rest)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return {name: shape for shapes in everyone for name, shape in shapes.items()}


def full_tensors(model) -> Iterator[tuple[str, torch.Tensor]]:
    """(layout-independent name, full tensor) of every parameter and persistent buffer, on every rank, sorted by name.

    Experts carry their global number: `....experts.linear_fc1.weight` has a leading axis [num_experts].
    """
    device = next(model.parameters()).device
    shards: dict[str, list[ShardedTensor]] = {}
    pieces: dict[str, list[str]] = {}
    for name, _, part in stored_parts(model):
        shards.setdefault(part.key, []).append(part)
        if part.key != name:
            pieces.setdefault(name, []).append(part.key)
    sent = {key: [part for part in parts if is_main_replica(part.replica_id)] for key, parts in shards.items()}
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, ({key: [_place(part) for part in parts] for key, parts in sent.items()}, pieces))
    # A pipeline stage knows its own layers only.
    pieces = {name: parts for _, known in everyone for name, parts in known.items()}
    whole_name = {piece: name for name, parts in pieces.items() for piece in parts}
    held: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted({key for places, _ in everyone for key in places}):
        tensor = _assemble(sent.get(key, []), [places.get(key, []) for places, _ in everyone], device)
        if key not in whole_name:
            yield key, tensor
            continue
        name = whole_name[key]
        parts = held.setdefault(name, {})
        parts[key] = tensor
        if len(parts) == len(pieces[name]):
            yield name, torch.cat([parts[piece] for piece in pieces[name]])
            del held[name]


def weights_hash(model) -> str:
    """sha256 over all full tensors (names, dtypes, bytes): equal exactly when the weights are bit-identical, at any layout."""
    digest = hashlib.sha256()
    for name, tensor in full_tensors(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Place(NamedTuple):
    """Where a shard lies in the whole."""

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    block: tuple[int, ...]  # the shard's shape, with as many axes as the whole has
    dtype: torch.dtype


def _place(shard: ShardedTensor) -> _Place:
    block = (1,) * shard.prepend_axis_num + tuple(shard.data.shape)
    return _Place(tuple(shard.global_shape), tuple(shard.global_offset), block, shard.data.dtype)


def _assemble(mine: list[ShardedTensor], places: list[list[_Place]], device: torch.device) -> torch.Tensor:
    """The whole of one key from the shards of all ranks, each sent by its rank; places: of every rank's shards."""
    first = next(place for of_rank in places for place in of_rank)
    whole = torch.empty(first.whole, dtype=first.dtype, device=device)
    for rank, of_rank in enumerate(places):
        for number, place in enumerate(of_rank):
            if rank == dist.get_rank():
                block = mine[number].data.detach().to(device).reshape(place.block).contiguous()
            else:
                block = torch.empty(place.block, dtype=place.dtype, device=device)
            dist.broadcast(block, rank)
            whole[tuple(slice(o, o + n) for o, n in zip(place.offset, place.block))] = block
    return whole


def leaves(tree) -> list:
    """What lies in nested dictionaries, lists and tuples, in order."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]
