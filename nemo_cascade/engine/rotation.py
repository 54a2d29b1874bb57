"""Other checkpoints in a policy's own weights: the student is put aside once, they come in one after the other, the student comes back.

Each is read once and then waits in host memory, pinned where there is a GPU, so that it comes in at the speed of the bus, queued
before the work that needs it: nobody waits for a copy. The student waits where it is used, on the GPU. On a CPU its place is kept
from one rotation to the next, since fresh memory costs more than the copy into it; a GPU's is wanted by the training step.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

Tensors = dict[str, torch.Tensor]

# Bytes that are allocated together. A power of two, as torch rounds pinned memory up to the next one.
SLAB = 2**28
_ALIGNED = 64


class Rotation:
    """tensors: what has to change, by name, as references; read: fills them from a checkpoint or a Hugging Face folder."""

    def __init__(self, tensors: Callable[[], Tensors], read: Callable[[Path], None]):
        self._tensors, self._read = tensors, read
        self.waiting: dict[Path, Tensors] = {}
        self._place: Tensors | None = None
        self._inside = False

    @contextlib.contextmanager
    def student_aside(self) -> Iterator[Callable[[Path], None]]:
        """Gives what puts a checkpoint's weights in, any number one after the other; at the end the student is back, also when the
        block raises. Outside of what was put in, the block must not look at the weights; it must never change them.

        Raises RuntimeError where the student that came back has not the checksum of the one that left, or inside another rotation.
        """
        if self._inside:
            raise RuntimeError("a rotation inside another: the student is aside already")
        tensors, present = self._tensors(), None
        if self._place is None:
            self._place = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in tensors.items()}
        left = copy(tensors, self._place, summed=tensors)
        self._inside = True

        def turn_to(checkpoint: Path) -> None:
            nonlocal present
            if checkpoint != present:
                present = None
                self._bring(checkpoint, tensors)
                present = checkpoint

        try:
            yield turn_to
        finally:
            back = copy(self._place, tensors, summed=tensors)
            self._inside = False
            if any(tensor.is_cuda for tensor in self._place.values()):
                self._place = None
            if int(back) != int(left):
                raise RuntimeError(f"the student came back changed after {present}: its memory was written to meanwhile")

    def forget(self, checkpoint: Path) -> None:
        """Frees the host memory in which a checkpoint waits; it is read again if it is asked for again."""
        self.waiting.pop(checkpoint, None)

    def _bring(self, checkpoint: Path, tensors: Tensors) -> None:
        if checkpoint in self.waiting:
            copy(self.waiting[checkpoint], tensors)
        else:
            self._read(checkpoint)
            room = room_for(tensors)
            copy(tensors, room)
            self.waiting[checkpoint] = room


@torch.no_grad()
def copy(source: Tensors, target: Tensors, summed: Tensors | None = None) -> torch.Tensor | None:
    """By name. From and to pinned memory it is only queued, in the order of what a GPU does.

    summed, one of the two: gives the checksum of that, taken tensor by tensor, which on a CPU finds each in the cache.
    """
    sums = []
    for name, tensor in target.items():
        tensor.copy_(source[name], non_blocking=True)
        if summed is not None:
            sums.append(word_sum(summed[name]))
    return torch.stack(sums).sum() if summed is not None else None


def word_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of its 64-bit words, or of its bytes where these make no words, modulo 2^64: one changed bit always changes it."""
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.int64 if flat.nbytes % 8 == 0 else torch.uint8).sum(dtype=torch.int64)


def room_for(tensors: Tensors) -> Tensors:
    """Host memory for such tensors, in few pieces, pinned if they are on a GPU; what is in it is undefined."""
    room, pinned = {}, any(tensor.is_cuda for tensor in tensors.values())
    for slab in _slabs(tensors):
        memory = torch.empty(sum(_size(tensors[name]) for name in slab), dtype=torch.uint8, pin_memory=pinned)
        begin = 0
        for name in slab:
            tensor = tensors[name]
            room[name] = memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            begin += _size(tensor)
    return room


def _slabs(tensors: Tensors) -> list[list[str]]:
    """Names in order, as many together as SLAB holds; one that is larger is alone."""
    slabs, filled = [], SLAB
    for name, tensor in tensors.items():
        size = _size(tensor)
        if filled + size > SLAB:
            slabs.append([])
            filled = 0
        slabs[-1].append(name)
        filled += size
    return slabs


def _size(tensor: torch.Tensor) -> int:
    """Its bytes, up to where the next may begin."""
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED
