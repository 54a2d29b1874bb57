"""Best-fit-decreasing packing: whole documents into as few packs as a greedy rule finds."""

import bisect


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of the documents in each pack, at most `capacity` tokens a pack; deterministic.

    Each document, longest first, goes into the fullest pack it still fits (Johnson 1974). Raises ValueError naming the first
    document that is longer than a pack.
    """
    for index, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"document {index} has {length} tokens, more than the {capacity} of a pack")
    packs: list[list[int]] = []
    # (room left, pack), ascending, so that the fullest pack with enough room is found by bisection.
    rooms: list[tuple[int, int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(rooms, (lengths[index], -1))
        if place < len(rooms):
            room, chosen = rooms.pop(place)
        else:
            room, chosen = capacity, len(packs)
            packs.append([])
        packs[chosen].append(index)
        bisect.insort(rooms, (room - lengths[index], chosen))
    return packs
