"""sample: which id is drawn is a function of (key, prompt, generation, position) and the row."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
import reference_rl as rl
from op_testing import assert_same_bits, check_threads, ints, normal
from r1grpo import _core

PLAIN = (1.0, 0, 1.0, 0.0)
KEY = 0x0123456789ABCDEF


def draw(device, logits, key=KEY, prompt=None, generation=None, position=None, how=PLAIN):
    M = len(logits)
    ids, count, zero = np.full(M, -7, np.int32), np.arange(M, dtype=np.int32), np.zeros(M, np.int32)
    _core.sample(device, ids, logits, key, count if prompt is None else prompt,
                 zero if generation is None else generation, zero if position is None else position,
                 how)
    return ids


def uniform(key, prompt, generation, position):
    """The number the draw uses: the top 24 bits of Philox's first word; the fourth counter word is
    R1_DRAW_TOKEN, 0."""
    counter = tuple(int(x) & 0xFFFFFFFF for x in (prompt, generation, position)) + (0,)
    return (rl.philox4x32_10(counter, (key & 0xFFFFFFFF, key >> 32))[0] >> 8) * 2.0 ** -24


@pytest.mark.parametrize("V", [1, 3, 33, 129, 1024, 1025, 3000])
@pytest.mark.parametrize("how", [PLAIN, (0.7, 0, 1.0, 0.0), (1.2, 20, 0.9, 0.02)])
def test_inverse_cdf_at_philox(device, rng, V, how):
    M = 65
    logits = 2 * normal(rng, M, V)
    prompt, generation, position = (rng.integers(0, 2 ** 31, M).astype(np.int32) for _ in range(3))
    ids = draw(device, logits, KEY, prompt, generation, position, how)
    near = 0
    for m in range(M):
        x = logits[m].astype(np.float64)
        keep = ref.truncation(x, *how)
        p = np.where(keep, np.exp((x - x.max()) / how[0]), 0.0)
        cdf = np.cumsum(p) / p.sum()
        u = uniform(KEY, prompt[m], generation[m], position[m])
        if np.abs(cdf - u).min() < 1e-5:  # float32 sums may fall on either side
            near += 1
        else:
            assert ids[m] == np.argmax(cdf > u)
    assert near <= M // 5


def test_temperature_zero_is_the_lowest_id_of_the_largest_logit(device, rng):
    logits = normal(rng, 3, 3000)
    logits[0, [7, 1500, 2999]] = 50
    logits[1, 2999] = 50
    logits[2] = -4
    assert draw(device, logits, how=(0.0, 0, 1.0, 0.0)).tolist() == [7, 2999, 0]
    assert draw(device, logits, how=(0.0, 2, 0.5, 0.5)).tolist() == [7, 2999, 0]


@pytest.mark.parametrize("how", [PLAIN, (0.5, 0, 1.0, 0.0), (1.0, 4, 1.0, 0.0), (1.0, 0, 0.7, 0.0),
                                 (1.0, 0, 1.0, 0.3)])
def test_frequencies(device, how):
    """Chi-square over 40,000 draws, 4,000 on the slow emulation; 30 is beyond the 99.98 % quantile at 7
    degrees of freedom."""
    n, row = 4_000 if "emulated" in repr(device) else 40_000, np.array([0.5, -1.0, 1.5, 0.0, 1.0, -3.0, 1.5, -0.5], np.float32)
    ids = draw(device, np.tile(row, (n, 1)), how=how)
    keep = ref.truncation(row.astype(np.float64), *how)
    p = np.where(keep, np.exp(row.astype(np.float64) / how[0]), 0.0)
    p /= p.sum()
    counts = np.bincount(ids, minlength=8)
    assert np.all(counts[~keep] == 0)
    expected = n * p[keep]
    assert np.sum((counts[keep] - expected) ** 2 / expected) < 30.0


def test_an_id_of_probability_zero_is_never_drawn(device):
    n = 5_000
    logits = np.full((n, 1030), -1e4, np.float32)
    logits[:, [3, 1026]] = 0.0  # one in each tile, zeros before, between and after
    assert set(draw(device, logits).tolist()) == {3, 1026}


def test_many_tiles(device):
    n, live = 40, np.array([3, 33_000, 39_999])  # more tiles than a warp has lanes
    logits = np.full((n, 40_000), -1e4, np.float32)
    logits[:, live] = 0.0
    want = [live[int(3 * uniform(KEY, m, 0, 0))] for m in range(n)]
    assert draw(device, logits).tolist() == want
    logits[:, live[:2]] = -1.0
    assert set(draw(device, logits, how=(0.0, 0, 1.0, 0.0)).tolist()) == {39_999}


ZERO, LAST = 15060569, 4217597  # prompts whose numbers under KEY are 0 and 1 - 2^-24


def test_the_ends_of_the_unit_interval(device, rng):
    """u = 0 draws the first id that can be drawn, u = 1 - 2^-24 the last: float32 sums that fall
    short of their total must not end on an id of probability zero."""
    assert uniform(KEY, ZERO, 0, 0) == 0.0 and uniform(KEY, LAST, 0, 0) == 1.0 - 2.0 ** -24
    logits = np.full((200, 1500), -1e4, np.float32)
    logits[:, 40:1100] = 0.1 * normal(rng, 200, 1060)
    for prompt, want in ((ZERO, {40}), (LAST, {1098, 1099})):
        drawn = draw(device, logits, prompt=np.full(200, prompt, np.int32))
        assert set(drawn.tolist()) <= want


def test_every_number_of_the_counter_and_the_key_matters(device):
    n = 200
    logits = np.zeros((n, 1000), np.float32)
    base, ones = draw(device, logits), np.ones(n, np.int32)
    assert len(set(base.tolist())) > 150
    for other in (draw(device, logits, KEY + 1), draw(device, logits, KEY + 2 ** 32),
                  draw(device, logits, generation=ones), draw(device, logits, position=ones),
                  draw(device, logits, prompt=np.arange(1, n + 1, dtype=np.int32)[::-1].copy())):
        assert np.mean(other == base) < 0.05
    assert draw(device, logits, 2 ** 64 - 1).shape == (n,)


@pytest.mark.parametrize("how", [PLAIN, (0.8, 50, 0.9, 0.01)])
def test_bits(devices, rng, how):
    logits, prompt = normal(rng, 90, 1500), rng.integers(0, 50, 90).astype(np.int32)
    check_threads(devices, lambda device: [draw(device, logits, prompt=prompt, how=how)])
    ids = draw(devices[3], logits, prompt=prompt, how=how)
    order = rng.permutation(90)
    shuffled = draw(devices[0], logits[order], prompt=prompt[order], how=how)
    assert_same_bits([shuffled], [ids[order]])
    assert draw(devices[0], logits[40:41], prompt=prompt[40:41], how=how)[0] == ids[40]


def test_bad_arguments(device):
    logits = np.zeros((1, 5), np.float32)
    with pytest.raises(ValueError, match=r"'key': must be an int in \[0, 2\*\*64\), not -1"):
        draw(device, logits, -1)
    with pytest.raises(ValueError, match="'key': must be an int"):
        draw(device, logits, 2 ** 64)
    with pytest.raises(ValueError, match="V is 0"):
        draw(device, np.zeros((1, 0), np.float32))
    with pytest.raises(ValueError, match="dimension M is 2, expected 1"):
        draw(device, logits, position=ints(0, 1))
