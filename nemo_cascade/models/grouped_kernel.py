"""The kernel that adds the gradients of all experts where each is summed up: one launch, at the rate of the memory."""

import torch
import triton
import triton.language as tl

# Numbers of a gradient that one program adds.
BLOCK = 4096


def add(sums: list[torch.Tensor], gradients: torch.Tensor, ends: torch.Tensor) -> None:
    """`grouped.add_gradients` on a GPU: float32 sums, each in one piece."""
    places = torch.tensor([total.data_ptr() for total in sums], dtype=torch.int64)
    experts, size = len(gradients), gradients[0].numel()
    aligned = size % 16 == 0 and not (places % 16).any()
    places = places.to(gradients.device, non_blocking=True)
    _add[(-(-size // BLOCK), experts)](gradients, places, ends, size, bool(aligned), BLOCK, num_warps=8)


@triton.jit
def _add(gradients, places, ends, size, aligned: tl.constexpr, block: tl.constexpr):
    """One block of one expert's gradient, which is float32 where `places` says."""
    expert = tl.program_id(1).to(tl.int64)
    start = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    if tl.load(ends + expert) > start:
        total = tl.load(places + expert).to(tl.pointer_type(tl.float32))
        if aligned:
            total = tl.multiple_of(total, 16)
        at = tl.program_id(0) * block + tl.arange(0, block)
        there = at < size
        gradient = tl.load(gradients + expert * size + at, mask=there).to(tl.float32)
        tl.store(total + at, tl.load(total + at, mask=there) + gradient, mask=there)
