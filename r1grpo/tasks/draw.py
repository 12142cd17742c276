"""Draws that use `rng.random()` only, so that a seed means the same on every Python version.

Knows nothing about what is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def between(rng: random.Random, low: int, high: int) -> int:
    """An integer low..high, both included."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: random.Random, items: Sequence[Item]) -> Item:
    """One of the items, all alike likely."""
    return items[int(rng.random() * len(items))]


def pick_distinct(rng: random.Random, items: Sequence[Item], count: int) -> list[Item]:
    """`count` different items in the order drawn."""
    left = list(items)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def pick_index(rng: random.Random, weights: Sequence[float]) -> int:
    """An index, with probability proportional to its weight."""
    place = rng.random() * sum(weights)
    for i, weight in enumerate(weights):
        place -= weight
        if place < 0.0:
            return i
    return max(i for i, weight in enumerate(weights) if weight > 0.0)     # rounding only


def shuffled(rng: random.Random, items: Sequence[Item]) -> list[Item]:
    """All items in a random order."""
    order = sorted((rng.random(), i) for i in range(len(items)))
    return [items[i] for _, i in order]
