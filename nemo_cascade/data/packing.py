"""Packing: whole documents into few packs, longest first or in the order they come; or evenly into a number of packs.

And what lengths a parallel layout needs. Only lengths are known here: `packed` writes packs of tokens, `engine.batch`
builds them.
"""

import bisect
import heapq
import math


def pack(lengths: list[int], capacity: int, *, decreasing: bool = True) -> list[list[int]]:
    """Indices of the documents in each pack, at most `capacity` tokens a pack; deterministic.

    Each document goes into the fullest pack it still fits (Johnson 1974), longest first, which wastes least. With
    decreasing=False they keep their order: where every pack is a sample of a shuffled mixture, sorting would gather
    documents of one length, and so of one domain, in one pack. Raises ValueError naming the first document that is
    longer than a pack.
    """
    for index, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"document {index} has {length} tokens, more than the {capacity} of a pack")
    packs: list[list[int]] = []
    # Room left -> heap of the packs that have it. `rooms`, ascending, for finding the smallest that is enough, has each
    # size once: then it cannot outgrow the capacity, however many packs there are.
    packs_with: dict[int, list[int]] = {}
    rooms: list[int] = []
    count = len(lengths)
    order = sorted(range(count), key=lengths.__getitem__, reverse=True) if decreasing else range(count)
    for index in order:
        place = bisect.bisect_left(rooms, lengths[index])
        if place < len(rooms):
            room = rooms[place]
            chosen = heapq.heappop(packs_with[room])
            if not packs_with[room]:
                del packs_with[room], rooms[place]
        else:
            room, chosen = capacity, len(packs)
            packs.append([])
        packs[chosen].append(index)
        left = room - lengths[index]
        if left not in packs_with:
            packs_with[left] = []
            bisect.insort(rooms, left)
        heapq.heappush(packs_with[left], chosen)
    return packs


def spread(lengths: list[int], count: int, capacity: int) -> list[list[int]] | None:
    """Indices of the documents in each of `count` packs of about equal length; None where one would not fit.

    Longest first, each into the emptiest pack (Graham 1969), so that long documents are dealt round too: their
    attention costs more than their tokens say. Deterministic.
    """
    packs: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, number) for number in range(count)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length, number = filled[0]
        if length + lengths[index] > capacity:
            return None
        packs[number].append(index)
        heapq.heapreplace(filled, (length + lengths[index], number))
    return packs


def document_multiple(context_parallel_size: int) -> int:
    """What the tokens of each document in a pack must be a multiple of: 2 * context parallel size, 1 without.

    Each document is cut into 2 * CP equal chunks; rank r has the r-th and the r-th from the end, because under a causal
    mask early chunks cost less than late ones and all ranks should do the same work (Transformer Engine's THD format).
    """
    return 2 * context_parallel_size if context_parallel_size > 1 else 1


def pack_multiple(tensor_model_parallel_size: int, context_parallel_size: int) -> int:
    """What the tokens of a whole pack must be a multiple of: lcm(document_multiple, CP * TP).

    A context rank has 1 / CP of a pack's tokens, and sequence parallel deals those evenly to TP ranks. lcm(2 * CP, TP)
    would not do: with CP 4 and TP 8 a pack of 8 tokens leaves a context rank 2, which 8 ranks cannot share.
    """
    return math.lcm(document_multiple(context_parallel_size), context_parallel_size * tensor_model_parallel_size)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `length`."""
    return -(-length // multiple) * multiple
