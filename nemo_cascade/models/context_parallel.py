"""Context parallel for packed documents in torch: which tokens of a pack each rank holds, and how they come together.

As in Transformer Engine's THD form, every document is cut into 2 * cp chunks of one length, and rank r holds chunks r and
2 * cp - 1 - r of each: so causal attention costs all ranks the same. Lengths must divide by 2 * cp (`cu_seqlens` are those of
the padded documents).
"""

from nemo_cascade.engine import cpu

cpu.install()

import torch  # noqa: E402
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region  # noqa: E402


def partitioned_indices(cu_seqlens: torch.Tensor, total_tokens: int, size: int, rank: int) -> torch.Tensor:
    """Places in the pack of the tokens that a rank holds, in the order it holds them [total_tokens / size].

    Transformer Engine's `thd_get_partitioned_indices`. Raises ValueError for a document that 2 * size does not divide.
    """
    boundaries = cu_seqlens.tolist()
    if boundaries[-1] != total_tokens:
        raise ValueError(f"the documents end at {boundaries[-1]}, but the pack has {total_tokens} tokens")
    pieces = []
    for start, end in zip(boundaries, boundaries[1:]):
        chunk, rest = divmod(end - start, 2 * size)
        if rest:
            raise ValueError(f"a document of {end - start} tokens is not cut into 2 * {size} equal chunks; pad it to {2 * size}")
        for number in (rank, 2 * size - 1 - rank):
            pieces.append(torch.arange(start + number * chunk, start + (number + 1) * chunk, device=cu_seqlens.device))
    return torch.cat(pieces)


def held_indices(cu_seqlens: torch.Tensor, total_tokens: int, group) -> torch.Tensor:
    """`partitioned_indices` of this rank of a context-parallel group; one rank alone holds all, documents of any length."""
    if group.size() == 1:
        return torch.arange(total_tokens, device=cu_seqlens.device)
    return partitioned_indices(cu_seqlens, total_tokens, group.size(), group.rank())


def whole_order(cu_seqlens: torch.Tensor, total_tokens: int, size: int) -> torch.Tensor:
    """Where each token of the pack lies when what all ranks hold is laid end to end [total_tokens]."""
    held = torch.cat([partitioned_indices(cu_seqlens, total_tokens, size, rank) for rank in range(size)])
    return torch.empty_like(held).scatter_(0, held, torch.arange(total_tokens, device=held.device))


def gather_values(local: torch.Tensor, cu_seqlens: torch.Tensor, group) -> torch.Tensor:
    """A pack's values [tokens] from each rank's [tokens / cp], for a loss that every rank computes alike.

    Backwards a rank keeps the gradient of its own: they are the same everywhere, and a sum would count them cp times.
    """
    if group.size() == 1:
        return local
    everyone = gather_from_sequence_parallel_region(local, tensor_parallel_output_grad=False, group=group)
    return everyone[whole_order(cu_seqlens, len(everyone), group.size())]


def gather_pack(local: torch.Tensor, cu_seqlens: torch.Tensor, group) -> torch.Tensor:
    """A pack [tokens, ...] from what each rank holds of it [tokens / cp, ...]; backwards, the ranks' gradients are summed."""
    total = local.shape[0] * group.size()
    return gather_from_sequence_parallel_region(local, group=group)[whole_order(cu_seqlens, total, group.size())]
