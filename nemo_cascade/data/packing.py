"""Packing: whole documents into few packs, longest first or in the order they come; or evenly into a number of packs."""

import bisect
import heapq


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
    # (room left, pack), ascending, so that the fullest pack with enough room is found by bisection.
    rooms: list[tuple[int, int]] = []
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)) if decreasing else range(len(lengths))
    for index in order:
        place = bisect.bisect_left(rooms, (lengths[index], -1))
        if place < len(rooms):
            room, chosen = rooms.pop(place)
        else:
            room, chosen = capacity, len(packs)
            packs.append([])
        packs[chosen].append(index)
        bisect.insort(rooms, (room - lengths[index], chosen))
    return packs


def spread(lengths: list[int], count: int, capacity: int) -> list[list[int]] | None:
    """Indices of the documents in each of `count` packs of about equal length; None where one would not fit. Deterministic.

    Longest first, each into the emptiest pack (Graham 1969), so that long documents are dealt round too: their attention
    costs more than their tokens say.
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
