"""kv_write, kv_copy, attention_fwd and attention_bwd: values, blocks, and where bits come from."""

from __future__ import annotations

import numpy as np
import pytest

import reference_ops as ref
from autodiff import Tensor, gradients
from op_testing import (assert_same_bits, check, check_threads, group_seqs, ints, nan, normal,
                        pack_starts, seen, whole_seqs)
from r1grpo import _core

LENGTHS = (0, 1, 3, 31, 33, 64, 0, 65, 129)
WINDOWS = (2, 5, 64, 100)  # with 1 the gradient of q and k is 0, up to rounding
SHAPES = [(1, 1, 4, 4), (4, 4, 48, 32), (6, 2, 31, 33), (4, 1, 256, 256), (2, 2, 192, 128),
          (2, 1, 24, 200)]  # H, Hkv, D, Dv


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


def kind_on(device, dtype, kind):
    """On a GPU a bf16 cache meets probabilities of 17 bits: attention_mma.cuh."""
    return "split" if dtype == "bfloat16" and device.name.startswith("cuda") else kind


def draw(rng, lengths, H, Hkv, D, Dv):
    N = sum(lengths)
    return normal(rng, N, H * D), normal(rng, N, Hkv * D), normal(rng, N, Hkv * Dv)


def tables(rng, lengths, spare=3):
    """A block table of shuffled blocks with more columns than needed, the unused ones invalid."""
    counts = [-(-n // 64) for n in lengths]
    order = rng.permutation(sum(counts) + spare).astype(np.int32)
    table = np.full((len(lengths), max(counts, default=0) + 1), -1, np.int32)
    at = 0
    for b, n in enumerate(counts):
        table[b, :n] = order[at:at + n]
        at += n
    return table, len(order)


def forward(device, q, k, v, lengths, H, Hkv, D, Dv, scale, table, blocks, window=0,
            dtype="float32"):
    """All positions at once, as training does."""
    N = sum(lengths)
    kv = _core.Kv(device, max(blocks, 1), Hkv, D, Dv, dtype)
    seqs = pack_starts(lengths), np.zeros(len(lengths), np.int32), table
    o, lse = nan(N, H * Dv), nan(N, H)
    _core.kv_write(device, kv, k, v, seqs)
    _core.attention_fwd(device, o, lse, q, kv, seqs, H, window, scale)
    return o, lse


def oracle(q, k, v, lengths, H, Hkv, D, Dv, scale, window=0):
    N = len(q)
    inputs = [Tensor(a.reshape(N, heads, -1)) for a, heads in ((q, H), (k, Hkv), (v, Hkv))]
    return inputs, ref.attention(*inputs, ref.pack_spans(lengths), scale, window)


def oracle_lse(q, k, lengths, H, Hkv, D, scale, window=0):
    out, starts = np.zeros((len(q), H)), pack_starts(lengths)
    for b in range(len(lengths)):
        rows = slice(starts[b], starts[b + 1])
        for h in range(H):
            g = h // (H // Hkv)
            s = scale * (q[rows, h * D:(h + 1) * D].astype(np.float64)
                         @ k[rows, g * D:(g + 1) * D].T)
            s[np.triu_indices(len(s), 1)] = -np.inf
            if window:
                s[np.tril_indices(len(s), -window)] = -np.inf
            out[rows, h] = np.logaddexp.reduce(s, axis=1) if len(s) else 0.0
    return out


@pytest.mark.parametrize(("H", "Hkv", "D", "Dv", "window"), [
    *((*shape, 0) for shape in SHAPES), *((2, 1, 20, 33, window) for window in WINDOWS)])
def test_values_and_gradients(device, rng, dtype, H, Hkv, D, Dv, window):
    lengths = (3, 65) if max(D, Dv) > 100 else (1, 200, 31) if window else LENGTHS
    N, scale = sum(lengths), D ** -0.5
    q, k, v = (seen(a, dtype) for a in draw(rng, lengths, H, Hkv, D, Dv))
    table, blocks = tables(rng, lengths)
    o, lse = forward(device, q, k, v, lengths, H, Hkv, D, Dv, scale, table, blocks, window, dtype)
    inputs, want = oracle(q, k, v, lengths, H, Hkv, D, Dv, scale, window)
    check(o, want.data.reshape(N, H * Dv), kind_on(device, dtype, "row"))
    check(lse, oracle_lse(q, k, lengths, H, Hkv, D, scale, window), "row")

    dout = normal(rng, N, H * Dv)
    grads = gradients((want * dout.reshape(N, H, Dv)).sum(), inputs)
    dq, dk, dv = nan(*q.shape), nan(*k.shape), nan(*v.shape)
    _core.attention_bwd(device, dq, dk, dv, dout, o, lse, q, k, v, whole_seqs(lengths), H, Hkv,
                        window, scale, dtype)
    for got, expected in zip((dq, dk, dv), grads):
        check(got.reshape(expected.shape), expected, kind_on(device, dtype, "soft"))


@pytest.mark.parametrize("window", [0, 70, 512, 700])
def test_long_sequences_cross_chunks(device, rng, window):
    H, Hkv, D, Dv, lengths = 2, 1, 8, 12, (1100, 513)
    q, k, v = draw(rng, lengths, H, Hkv, D, Dv)
    q *= 4  # sharp softmax: chunk maxima differ
    table, blocks = tables(rng, lengths)
    o, lse = forward(device, q, k, v, lengths, H, Hkv, D, Dv, 1.0, table, blocks, window)
    _, want = oracle(q, k, v, lengths, H, Hkv, D, Dv, 1.0, window)
    check(o, want.data.reshape(o.shape), "soft")
    check(lse, oracle_lse(q, k, lengths, H, Hkv, D, 1.0, window), "row")


def test_a_window_of_the_whole_sequence_is_none(device, rng):
    H, Hkv, D, lengths = 2, 1, 8, (140, 31)
    q, k, v = draw(rng, lengths, H, Hkv, D, D)
    dout = normal(rng, *q.shape)
    table, blocks = tables(rng, lengths)

    def run(window):
        o, lse = forward(device, q, k, v, lengths, H, Hkv, D, D, 0.3, table, blocks, window)
        grads = nan(*q.shape), nan(*k.shape), nan(*v.shape)
        _core.attention_bwd(device, *grads, dout, o, lse, q, k, v, whole_seqs(lengths), H, Hkv,
                            window, 0.3)
        return o, lse, *grads
    assert_same_bits(run(140), run(0))
    assert_same_bits(run(2**40), run(0))
    assert (run(139)[0] != run(0)[0]).any()


@pytest.mark.parametrize("window", [1, 9, 64, 500])
def test_keys_before_the_window_are_never_read(device, rng, dtype, window):
    """A cache in which nobody wrote them: its memory is NaN."""
    T, D = 700, 8
    q, k, v = draw(rng, (T,), 2, 1, D, D)
    table, blocks = tables(rng, (T,))
    o, lse = forward(device, q, k, v, (T,), 2, 1, D, D, 1.0, table, blocks, window, dtype)
    for rows in (slice(T - 1, T), slice(T - 11, T)):  # one query; a group of them
        kv = _core.Kv(device, blocks, 1, D, D, dtype)
        first = rows.start - window + 1
        _core.kv_write(device, kv, k[first:], v[first:], (ints(0, T - first), ints(first), table))
        n = T - rows.start
        part = nan(n, 2 * D), nan(n, 2)
        _core.attention_fwd(device, *part, q[rows], kv, (ints(0, n), ints(rows.start), table), 2,
                            window, 1.0)
        assert_same_bits(part, (o[rows], lse[rows]))


@pytest.mark.parametrize("window", [0, 1, 5, 30, 64, 100])
@pytest.mark.parametrize("steps", [[1] * 140, [70, 1, 1, 68], [64, 64, 12]])
def test_prefill_and_decode_give_the_bits_of_training(device, rng, dtype, steps, window):
    H, Hkv, D, Dv = 4, 2, 23, 17
    T = 140
    lengths = (T, T)
    q, k, v = draw(rng, lengths, H, Hkv, D, Dv)
    table, blocks = tables(rng, lengths)
    whole = forward(device, q, k, v, lengths, H, Hkv, D, Dv, 0.2, table, blocks, window, dtype)
    kv = _core.Kv(device, blocks, Hkv, D, Dv, dtype)  # its memory starts as NaN
    o, lse = nan(2 * T, H * Dv), nan(2 * T, H)
    at = 0
    for n in steps:
        rows = np.r_[T + at:T + at + n, at:at + n]  # the sequences in the other order
        seqs = ints(0, n, 2 * n), ints(at, at), table[::-1].copy()
        part = nan(2 * n, H * Dv), nan(2 * n, H)
        _core.kv_write(device, kv, k[rows], v[rows], seqs)
        _core.attention_fwd(device, *part, q[rows], kv, seqs, H, window, 0.2)
        o[rows], lse[rows] = part
        at += n
    assert_same_bits((o, lse), whole)


@pytest.mark.parametrize("window", [0, 3, 130, 515])
def test_long_decode_gives_the_bits_of_training(device, rng, dtype, window):
    T, D = 1100, 8
    q, k, v = draw(rng, (T,), 2, 1, D, D)
    table, blocks = tables(rng, (T,))
    o, lse = forward(device, q, k, v, (T,), 2, 1, D, D, 1.0, table, blocks, window, dtype)
    kv = _core.Kv(device, blocks, 1, D, D, dtype)
    _core.kv_write(device, kv, k, v, (ints(0, T), ints(0), table))
    for t in (0, 1, 130, 511, 512, 513, 517, 640, 1023, 1024, 1026, 1099):
        one = nan(1, 2 * D), nan(1, 2)
        _core.attention_fwd(device, *one, q[t:t + 1], kv, (ints(0, 1), ints(t), table), 2,
                            window, 1.0)
        assert_same_bits(one, (o[t:t + 1], lse[t:t + 1]))


def test_a_shared_block_and_its_copy(device, rng, dtype):
    """Two sequences share a prompt of 70: its full block is shared, its partial one copied."""
    H, D = 2, 16
    q, k, v = draw(rng, (70,), H, H, D, D)
    kv = _core.Kv(device, 4, H, D, D, dtype)
    _core.kv_write(device, kv, k, v, (ints(0, 70), ints(0), ints(2, 0)[None]))
    _core.kv_copy(device, kv, ints(0, 3)[None])
    tq, tk, tv = draw(rng, (1, 1), H, H, D, D)
    seqs = ints(0, 1, 2), ints(70, 70), np.array([[2, 0], [2, 3]], np.int32)
    o, lse = nan(2, H * D), nan(2, H)
    _core.kv_write(device, kv, tk, tv, seqs)
    _core.attention_fwd(device, o, lse, tq, kv, seqs, H, 0, 0.25)
    for b in range(2):
        alone = [np.concatenate([x, y[b:b + 1]]) for x, y in ((q, tq), (k, tk), (v, tv))]
        o1, lse1 = forward(device, *alone, (71,), H, H, D, D, 0.25, ints(0, 1)[None], 2, 0,
                           dtype)
        assert_same_bits((o[b], lse[b]), (o1[70], lse1[70]))


@pytest.mark.parametrize("window", [0, 9, 70])
@pytest.mark.parametrize("shared, own", [(1, (1, 2, 3)), (5, (64, 0, 1, 70)), (64, (0, 1, 65)),
                                         (70, (3, 130, 9)), (129, (2, 0, 64))])
def test_a_group_has_one_copy_of_its_prefix(device, rng, dtype, shared, own, window):
    """Forward and dq to the bits of sequences that have their own; dk and dv sum over the group."""
    H, Hkv, D, Dv, scale = 4, 2, 9, 7, 0.3
    starts, rows = group_seqs(shared, own)
    lengths = tuple(shared + n for n in own)
    q, k, v = (seen(a, dtype) for a in draw(rng, (shared + sum(own),), H, Hkv, D, Dv))
    dout = normal(rng, len(q), H * Dv)
    table, blocks = tables(rng, lengths)
    o1, lse1 = forward(device, q[rows], k[rows], v[rows], lengths, H, Hkv, D, Dv, scale, table,
                       blocks, window, dtype)
    kv = _core.Kv(device, blocks, Hkv, D, Dv, dtype)
    theirs = table.copy()
    theirs[:, :shared // 64] = table[0, :shared // 64]  # whole blocks are the first sequence's
    o, lse = nan(len(q), H * Dv), nan(len(q), H)
    _core.kv_write(device, kv, k, v, (*starts, theirs), True)
    _core.attention_fwd(device, o, lse, q, kv, (*starts, theirs), H, window, scale)
    assert_same_bits((o[rows], lse[rows]), (o1, lse1))

    dq, dk, dv = nan(*q.shape), nan(*k.shape), nan(*v.shape)
    _core.attention_bwd(device, dq, dk, dv, dout, o, lse, q, k, v, (*starts, None), H, Hkv, window,
                        scale, dtype)
    copies = [nan(len(rows), a.shape[1]) for a in (q, k, v)]
    once = np.zeros_like(dout[rows])  # the prefix's own queries are there once
    unseen = np.concatenate([np.arange(n) < shared * (b > 0) for b, n in enumerate(lengths)])
    once[~unseen] = dout[rows][~unseen]
    _core.attention_bwd(device, *copies, once, o1, lse1, q[rows], k[rows], v[rows],
                        whole_seqs(lengths), H, Hkv, window, scale, dtype)
    assert_same_bits([dq[rows][~unseen]], [copies[0][~unseen]])
    for got, each in ((dk, copies[1]), (dv, copies[2])):
        want = np.zeros(got.shape)
        np.add.at(want, rows, each.astype(np.float64))
        check(got, want, kind_on(device, dtype, "soft"))

    inputs = [Tensor(a.reshape(len(q), heads, -1)) for a, heads in ((q, H), (k, Hkv), (v, Hkv))]
    out = ref.attention(*(x[rows] for x in inputs), ref.pack_spans(lengths), scale, window)
    for got, want in zip((dq, dk, dv),
                         gradients((out * once.reshape(len(rows), H, Dv)).sum(), inputs)):
        check(got.reshape(want.shape), want, kind_on(device, dtype, "soft"))


def test_a_groups_bits_do_not_depend_on_threads_or_company(devices, rng, dtype):
    H, Hkv, D, starts = 4, 2, 20, ints(0, 100, 130, 137, 200, 230)
    pos0, N = ints(0, 70, 70, 0, 63), 230
    q, k, v = draw(rng, (N,), H, Hkv, D, D)
    o, dout, lse = normal(rng, *q.shape), normal(rng, *q.shape), normal(rng, N, H) + 9

    def run(device, rows=slice(0, N), seqs=(starts, pos0, None)):
        grads = [nan(*a[rows].shape) for a in (q, k, v)]
        _core.attention_bwd(device, *grads, dout[rows], o[rows], lse[rows], q[rows], k[rows], v[rows],
                            seqs, H, Hkv, 0, 0.3, dtype)
        return grads
    check_threads(devices, run)
    for first, last in ((0, 3), (3, 5)):
        rows = slice(starts[first], starts[last])
        alone = run(devices[0], rows, (starts[first:last + 1] - starts[first], pos0[first:last], None))
        assert_same_bits(alone, [a[rows] for a in run(devices[1])])


@pytest.mark.skipif("avx512" not in _core.tiers(), reason="this machine has no AVX-512")
@pytest.mark.parametrize("devices", ["emulated-cuda"], indirect=True)
@pytest.mark.parametrize("window", [0, 70])
def test_gpus_add_as_avx512_does(device, rng, window):
    """float32: the order of sums is one, so the bits are."""
    H, Hkv, D, Dv, lengths, cpu = 6, 2, 21, 33, (3, 65, 530), _core.Device(threads=2, tier="avx512")
    q, k, v = draw(rng, lengths, H, Hkv, D, Dv)
    table, blocks = tables(rng, lengths)
    dout, outs = normal(rng, len(q), H * Dv), []
    for on in (device, cpu):
        o, lse = forward(on, q, k, v, lengths, H, Hkv, D, Dv, 0.2, table, blocks, window)
        grads = nan(*q.shape), nan(*k.shape), nan(*v.shape)
        _core.attention_bwd(on, *grads, dout, o, lse, q, k, v, whole_seqs(lengths), H, Hkv, window, 0.2)
        outs.append((o, lse, *grads))
    assert_same_bits(*outs)


def test_cache_layout(device, rng):
    Hkv, D, Dv, blocks = 2, 3, 5, 3
    _, k, v = draw(rng, (66,), 1, Hkv, D, Dv)
    kv = _core.Kv(device, blocks, Hkv, D, Dv)
    _core.kv_write(device, kv, k, v, (ints(0, 66), ints(0), ints(2, 0)[None]))
    got_k = np.zeros((blocks * Hkv * D, 64), np.float32)
    got_v = np.zeros((blocks * Hkv * 64, Dv), np.float32)
    _core.kv_read(device, got_k, got_v, kv)
    want_k, want_v = nan(blocks, Hkv, D, 64), nan(blocks, Hkv, 64, Dv)
    want_k[2] = k[:64].reshape(64, Hkv, D).transpose(1, 2, 0)
    want_v[2] = v[:64].reshape(64, Hkv, Dv).transpose(1, 0, 2)
    want_k[0, :, :, :2] = k[64:].reshape(2, Hkv, D).transpose(1, 2, 0)
    want_v[0, :, :2] = v[64:].reshape(2, Hkv, Dv).transpose(1, 0, 2)
    np.testing.assert_array_equal(got_k.reshape(want_k.shape), want_k)
    np.testing.assert_array_equal(got_v.reshape(want_v.shape), want_v)


@pytest.mark.parametrize("window", [0, 21])
def test_bits_do_not_depend_on_threads_or_packing(devices, rng, window):
    H, Hkv, D, Dv, lengths = 4, 2, 20, 12, (90, 0, 40, 7)
    q, k, v = draw(rng, lengths, H, Hkv, D, Dv)
    dout = normal(rng, sum(lengths), H * Dv)
    table, blocks = tables(rng, lengths)

    def backward(device, rows, lens, o, lse):
        grads = [nan(*a[rows].shape) for a in (q, k, v)]
        _core.attention_bwd(device, *grads, dout[rows], o, lse, q[rows], k[rows], v[rows],
                            whole_seqs(lens), H, Hkv, window, 0.3)
        return grads

    def run(device):
        o, lse = forward(device, q, k, v, lengths, H, Hkv, D, Dv, 0.3, table, blocks, window)
        return o, lse, *backward(device, slice(None), lengths, o, lse)
    check_threads(devices, run)

    together, starts = run(devices[1]), pack_starts(lengths)
    for b in (0, 2, 3):
        rows = slice(starts[b], starts[b + 1])
        o, lse = forward(devices[0], q[rows], k[rows], v[rows], lengths[b:b + 1], H, Hkv, D, Dv,
                         0.3, ints(1, 0)[None], 2, window)
        alone = o, lse, *backward(devices[0], rows, lengths[b:b + 1], o, lse)
        assert_same_bits(alone, [a[rows] for a in together])


def test_slices_of_columns(device, rng):
    """MLA's v and an o that is part of a wider matrix."""
    H, D, lengths = 2, 8, (40,)
    wide = normal(rng, 40, 100)
    q, k, v, dout = (wide[:, i * 20:i * 20 + 16] for i in range(4))
    table = ints(0)[None]
    o, lse = forward(device, *(a.copy() for a in (q, k, v)), lengths, H, H, D, D, 0.3, table, 1)
    want = [nan(40, 16) for _ in range(3)]
    _core.attention_bwd(device, *want, dout.copy(), o, lse, q.copy(), k.copy(), v.copy(),
                        whole_seqs(lengths), H, H, 0, 0.3)
    out = nan(40, 100)
    o2, dq, dk, dv = (out[:, i * 20:i * 20 + 16] for i in range(4))
    lse2 = nan(40, H)
    kv, seqs = _core.Kv(device, 1, H, D, D), (ints(0, 40), ints(0), table)
    _core.kv_write(device, kv, k, v, seqs)
    _core.attention_fwd(device, o2, lse2, q, kv, seqs, H, 0, 0.3)
    _core.attention_bwd(device, dq, dk, dv, dout, o2, lse2, q, k, v, whole_seqs(lengths), H, H, 0,
                        0.3)
    assert_same_bits((o2, lse2, dq, dk, dv), (o, lse, *want))
    assert np.isnan(out[:, 16:20]).all() and np.isnan(out[:, 76:]).all()


def test_bad_arguments(device, rng):
    q, k, v = draw(rng, (65,), 2, 2, 8, 8)
    kv = _core.Kv(device, 3, 2, 8, 8)
    o, lse = nan(65, 16), nan(65, 2)

    def fails(match, seqs, H=2, error=ValueError):
        with pytest.raises(error, match=match):
            _core.attention_fwd(device, o, lse, q, kv, seqs, H, 0, 1.0)
    fails("'blocks': 3 at index 1 is outside", (ints(0, 65), ints(0), ints(0, 3)[None]))
    fails("needs 2 blocks, its table has 1", (ints(0, 65), ints(0), ints(0)[None]))
    fails("'seqs.q_start': ends at 64", (ints(0, 64), ints(0), ints(0, 1)[None]))
    fails("'seqs.q_start': descends", (ints(0, 66, 65), ints(0, 0), ints(0, 1, 0, 1).reshape(2, 2)))
    fails("'seqs.pos0': -1", (ints(0, 65), ints(-1), ints(0, 1)[None]))
    fails("'seqs.blocks': must be", (ints(0, 65), ints(0), None), error=TypeError)
    fails("'seqs': must be a tuple of 3", (ints(0, 65), ints(0)), error=TypeError)
    fails("dimension H is 2, expected 3", (ints(0, 65), ints(0), ints(0, 1)[None]), H=3)
    with pytest.raises(ValueError, match="D is 257"):
        _core.Kv(device, 1, 1, 257, 8)
    with pytest.raises(ValueError, match="'pairs': 3 at index 1"):
        _core.kv_copy(device, kv, ints(0, 3)[None])
    with pytest.raises(ValueError, match="1 at index 0 is no prefix"):
        _core.attention_bwd(device, q.copy(), k.copy(), v.copy(), o, o, lse, q, k, v,
                            (ints(0, 65), ints(1), None), 2, 2, 0, 1.0)
    for starts, pos0 in ((ints(0, 9, 65), ints(0, 10)), (ints(0, 9, 20, 65), ints(0, 9, 8))):
        with pytest.raises(ValueError, match="is no prefix that its group shares"):
            _core.attention_bwd(device, q.copy(), k.copy(), v.copy(), o, o, lse, q, k, v,
                                (starts, pos0, None), 2, 2, 0, 1.0)
