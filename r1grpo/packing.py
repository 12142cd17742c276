"""packing.py - which samples of different lengths share a bin of at most `capacity` tokens.

Best-fit decreasing: longest first, each into the fullest bin that still has room for it, else into
a new one; never more than 11/9 of the fewest bins + 4 (Johnson et al. 1974). Samples stay whole, so
nothing is cut and nothing crosses a border: in the engine each keeps its own positions and attention
whatever lies beside it (csrc/model/micro.c), and packing decides only which samples make an update.

A function of the lengths alone: ties go to the earlier sample and, among bins of equal room, to
the one that got there last. Knows nothing about tokens or training.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices into lengths, each in ascending order, ordered by their first index.

    >>> best_fit_decreasing([3, 6, 4, 2], capacity=8)
    [[0, 2], [1, 3]]
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room -> bins that have it
    rooms: list[int] = []  # the keys of by_room, ascending
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not 0 < lengths[i] <= capacity:
            raise ValueError(f"sample {i} has {lengths[i]} tokens, a bin takes 1 to {capacity}")
        at = bisect_left(rooms, lengths[i])
        if at == len(rooms):
            bins.append([])
            number, room = len(bins) - 1, capacity
        else:
            room = rooms[at]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        bins[number].append(i)
        room -= lengths[i]
        if room:
            if room not in by_room:
                insort(rooms, room)
            by_room.setdefault(room, []).append(number)
    return sorted(sorted(one) for one in bins)
