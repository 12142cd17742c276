"""Best-fit decreasing: every sample once, no bin too full, never far from the fewest bins."""

from __future__ import annotations

import numpy as np
import pytest

from r1grpo.packing import best_fit_decreasing


def plain(lengths, capacity):
    """The definition: each sample, longest first, into the fullest bin it fits, newest on a tie."""
    bins, order = [], sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rooms, ages = [], []
    for age, i in enumerate(order):
        fits = [b for b in range(len(bins)) if rooms[b] >= lengths[i]]
        if not fits:
            bins.append([])
            rooms.append(capacity)
            ages.append(age)
            fits = [len(bins) - 1]
        best = min(fits, key=lambda b: (rooms[b], -ages[b]))
        bins[best].append(i)
        rooms[best] -= lengths[i]
        ages[best] = age
    return sorted(sorted(one) for one in bins)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_best_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 60))
    lengths = rng.integers(1, capacity + 1, rng.integers(0, 150)).tolist()
    bins = best_fit_decreasing(lengths, capacity)
    assert bins == plain(lengths, capacity)
    assert sorted(i for one in bins for i in one) == list(range(len(lengths)))
    fill = [sum(lengths[i] for i in one) for one in bins]
    assert all(0 < n <= capacity for n in fill)
    assert all(a + b > capacity for k, a in enumerate(fill) for b in fill[:k])


def test_it_is_as_good_as_proven():
    """Bins of three pieces that fill them exactly: the fewest bins are known."""
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.integers(1, 1000, (300, 2)), axis=1)
    pieces = np.diff(cuts, prepend=0, append=1000, axis=1).ravel()
    pieces = rng.permutation(pieces[pieces > 0]).tolist()
    assert len(best_fit_decreasing(pieces, 1000)) <= 11 / 9 * 300 + 4


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="sample 1 has 9 tokens, a bin takes 1 to 8"):
        best_fit_decreasing([3, 9], 8)
    with pytest.raises(ValueError, match="sample 0 has 0 tokens"):
        best_fit_decreasing([0], 8)
    assert best_fit_decreasing([], 8) == [] and best_fit_decreasing([8, 8], 8) == [[0], [1]]
