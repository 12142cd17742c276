"""op_cases.py - one call of every op of the table, its work, and the sizes to measure it at.

    flop_cases, byte_cases    (name, size -> Case, (small, large)) for every op but the three matmuls
    Bench.matmul              those: kind, rows, O, I, dtype

A Case is (call, work, shape). Work is floating-point operations for products and attention, and bytes
for everything else: an op's inputs read once and its outputs written once. An op that computes an exp
per element stays below the memory's rate by nature. Knows nothing about clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from r1grpo import _core

Case = tuple[Callable[[], object], float, str]  # call, flops or bytes of it, shape


class Bench:
    """The cases; n is the size that grows: rows, or positions of each of four sequences."""

    def __init__(self, device: _core.Device) -> None:
        self.device = device
        self.rng = np.random.default_rng(0)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def op(self, name: str, *arguments: Any) -> Callable[[], object]:
        function, device = getattr(_core, name), self.device
        return lambda: function(device, *arguments)

    # ---- multiply-adds ----

    def matmul(self, kind: str, n: int, O: int, I: int,  # noqa: E741
               dtype: str = "float32") -> Case:
        x, dy, w = self.normal(n, I), self.normal(n, O), self.normal(O, I)
        weight = _core.Weight(self.device, w, 1, dtype)
        units = (np.arange(n, dtype=np.int32) // 32, None)
        arguments = {"nt": (dy, x, weight, None, None, False), "nn": (x, dy, weight, None, False),
                     "tn": (w, dy, x, 1, None, dtype, *units, True)}[kind]
        return self.op(f"matmul_{kind}", *arguments), 2.0 * n * O * I, f"N {n}, O {O}, I {I}"

    def experts(self, kind: str, n: int, O: int = 256, I: int = 256,  # noqa: E741
                dtype: str = "float32") -> Case:
        """n rows, shared out evenly over 16 experts."""
        E, x, dy = 16, self.normal(n, I), self.normal(n, O)
        offsets, w = np.linspace(0, n, E + 1).astype(np.int32), self.normal(E * O, I)
        weight = _core.Weight(self.device, w, E, dtype)
        units = (np.arange(n, dtype=np.int32) // 32, None)
        arguments = {"nt": (dy, x, weight, None, offsets, False),
                     "nn": (x, dy, weight, offsets, False),
                     "tn": (w, dy, x, E, offsets, dtype, *units, True)}[kind]
        return (self.op(f"matmul_{kind}", *arguments), 2.0 * n * O * I,
                f"N {n}, {E} experts, O {O}, I {I}")

    def attention(self, backward: bool, T: int, window: int = 0) -> Case:
        B, H, Hkv, D = 4, 8, 4, 64
        q, (k, v) = self.normal(B * T, H * D), self.normal(2, B * T, Hkv * D)
        o, lse = np.empty_like(q), np.empty((B * T, H), np.float32)
        start, pos0 = np.arange(B + 1, dtype=np.int32) * T, np.zeros(B, np.int32)
        per = -(-T // 64)
        seqs = start, pos0, np.arange(B * per, dtype=np.int32).reshape(B, per)
        kv = _core.Kv(self.device, B * per, Hkv, D, D)
        _core.kv_write(self.device, kv, k, v, seqs)
        forward = self.op("attention_fwd", o, lse, q, kv, seqs, H, window,
                          D ** -0.5)
        seen = T * (T + 1) / 2 if not window else sum(min(t + 1, window) for t in range(T))
        pairs, shape = B * H * seen, f"B {B}, T {T}, H {H}, Hkv {Hkv}, D {D}"
        if window:
            shape += f", window {window}"
        if not backward:
            return forward, 4.0 * D * pairs, shape
        forward()
        call = self.op("attention_bwd", np.empty_like(q), np.empty_like(k), np.empty_like(v),
                       self.normal(*q.shape), o, lse, q, k, v, (start, pos0, None), H, Hkv,
                       window, D ** -0.5)
        return call, 10.0 * D * pairs, shape

    def decode_attention(self, T: int) -> Case:
        B, H, Hkv, D = 64, 8, 4, 64
        per = -(-T // 64)
        seqs = (np.arange(B + 1, dtype=np.int32), np.full(B, T - 1, np.int32),
                np.arange(B * per, dtype=np.int32).reshape(B, per))
        kv = _core.Kv(self.device, B * per, Hkv, D, D)
        whole = np.arange(B + 1, dtype=np.int32) * T, np.zeros(B, np.int32), seqs[2]
        _core.kv_write(self.device, kv, self.normal(B * T, Hkv * D), self.normal(B * T, Hkv * D),
                       whole)
        call = self.op("attention_fwd", np.empty((B, H * D), np.float32),
                       np.empty((B, H), np.float32), self.normal(B, H * D), kv, seqs, H, 0,
                       D ** -0.5)
        return call, 8.0 * B * T * Hkv * D, f"B {B}, one query at T {T}, H {H}, D {D}"

    # ---- bytes: every case returns the arrays that the op touches ----

    def moved(self, name: str, *arguments: Any, shape: str = "") -> Case:
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        return (self.op(name, *arguments), float(sum(a.nbytes for a in arrays)),
                shape or "x".join(map(str, arrays[0].shape)))

    def rows(self, name: str, n: int) -> Case:
        C, V = 512, 8192
        (a, b, c), w = self.normal(3, n, C), self.normal(C)
        r, ids = np.ones(n, np.float32), self.rng.integers(0, V, n).astype(np.int32)
        order = self.rng.permutation(n).astype(np.int32)
        match name:
            case "add":
                return self.moved(name, a, b, c)
            case "scale":
                return self.moved(name, a, b, 0.5)
            case "bias_bwd":
                return self.moved(name, w, a, shape=f"{n}x{C}")
            case "fill_zero" | "round_bf16":
                return self.moved(name, a)
            case "gather_rows" | "scatter_rows":
                return self.moved(name, a, b, order)
            case "embed_fwd":
                call = self.op(name, a, _core.Weight(self.device, self.normal(V, C), 1), ids)
                return call, 2.0 * a.nbytes + ids.nbytes, f"{n}x{C}, V {V}"
            case "embed_bwd":
                call = self.op(name, np.zeros((V, C), np.float32), a, ids)
                return call, 3.0 * a.nbytes + ids.nbytes, f"{n}x{C}, V {V}"
            case "rmsnorm_fwd":
                return self.moved(name, a, b, r, c, self.normal(n, C), w, 1e-6)
            case "rmsnorm_bwd":
                return self.moved(name, a, w, b, self.normal(n, C), c, r, self.normal(C))
            case "rope":
                table, pos = self.normal(1024, 64), (np.arange(n) % 1024).astype(np.int32)
                call = self.op(name, a, table, pos, 8, 0, 64, False, False)
                return call, 2.0 * a.nbytes, f"{n}x{C}, H 8"
            case "swiglu_fwd":
                return self.moved(name, a, b, c)
            case "swiglu_bwd":
                return self.moved(name, a, b, c, self.normal(n, C), self.normal(n, C))
        raise ValueError(name)

    def cache(self, name: str, n: int) -> Case:
        Hkv, D, blocks = 8, 64, n // 64
        k, v = self.normal(2, n, Hkv * D)
        seqs = (np.array([0, n], np.int32), np.zeros(1, np.int32),
                np.arange(blocks, dtype=np.int32).reshape(1, -1))
        kv = _core.Kv(self.device, 2 * blocks, Hkv, D, D)
        _core.kv_write(self.device, kv, k, v, seqs)
        call = self.op(name, kv, k, v, seqs)
        if name == "kv_copy":
            old = np.arange(blocks, dtype=np.int32)
            call = self.op(name, kv, np.stack([old, old + blocks], axis=1))
        return call, 2.0 * (k.nbytes + v.nbytes), f"{n} positions, Hkv {Hkv}, D {D}"

    def mla(self, backward: bool, n: int) -> Case:
        H, Dn, Dr, Dv = 8, 48, 16, 64
        k, v = self.normal(n, H * (Dn + Dr)), self.normal(n, H * Dv)
        kvb, kr = self.normal(n, H * (Dn + Dv)), self.normal(n, Dr)
        arrays = (kvb, kr, k, v) if backward else (k, v, kvb, kr)
        return self.moved(f"mla_expand_{'bwd' if backward else 'fwd'}", *arrays, H, Dn, Dv,
                          shape=f"N {n}, H {H}, Dn {Dn}, Dr {Dr}, Dv {Dv}")

    def moe(self, name: str, n: int, E: int = 64, K: int = 6, C: int = 512,
            groups: tuple[int, int] = (8, 4)) -> Case:
        B = 4
        spec = (E, K, *groups, False, True, 1.0)
        idx, weight = np.empty((n, K), np.int32), np.empty((n, K), np.float32)
        logits, scores, bias = self.normal(n, E), np.empty((n, E), np.float32), self.normal(E)
        route = (idx, weight, scores, logits, bias)
        _core.router_fwd(self.device, *route, spec)
        offsets, source = np.empty(E + 1, np.int32), np.empty(n * K, np.int32)
        place, load = np.empty((n, K), np.int32), np.zeros(E, np.int64)
        _core.dispatch_plan(self.device, offsets, source, place, idx, spec)
        start = np.linspace(0, n, B + 1).astype(np.int32)
        seqs, shape = (start, np.zeros(B, np.int32), None), f"N {n}, E {E}, K {K}"
        wide = f"{shape}, C {C}"
        match name:
            case "router_fwd":
                return self.moved(name, *route, spec, shape=shape)
            case "router_bwd":
                return self.moved(name, self.normal(n, E), weight, None, idx, scores, spec,
                                  shape=shape)
            case "router_load":
                return self.moved(name, load, idx, seqs, spec, shape=shape)
            case "balance_loss":
                return self.moved(name, np.empty(B, np.float32), self.normal(n, E), scores, idx,
                                  seqs, spec, 1e-3, shape=shape)
            case "router_bias_update":
                return self.moved(name, bias, load, 1e-3, shape=f"E {E}")
            case "dispatch_plan":
                return self.moved(name, offsets, source, place, idx, spec, shape=shape)
            case "combine_fwd":
                return self.moved(name, self.normal(n, C), self.normal(n * K, C), weight, place,
                                  self.normal(n, C), shape=wide)
            case "combine_bwd":
                return self.moved(name, self.normal(n * K, C), self.normal(n, K),
                                  self.normal(n, C), self.normal(n * K, C), weight, place,
                                  shape=wide)
            case "dispatch_bwd":
                return self.moved(name, self.normal(n, C), self.normal(n * K, C), place,
                                  self.normal(n, C), shape=wide)
        raise ValueError(name)

    def head(self, name: str, how: tuple[float, int, float, float], n: int) -> Case:
        V, cut = 8192, " top-p" if how[2] < 1.0 else ""
        logits, ids = self.normal(n, V) * 2.0, self.rng.integers(0, V, n).astype(np.int32)
        logp, entropy, lse = (np.empty(n, np.float32) for _ in range(3))
        shape = f"{n}x{V}{cut}"
        if name == "sample":
            zero = np.arange(n, dtype=np.int32)
            return self.moved(name, ids, logits, 1, zero, zero, zero, how, shape=shape)
        forward = self.moved("logp_fwd", logp, entropy, lse, logits, ids, how, shape=shape)
        if name == "logp_fwd":
            return forward
        forward[0]()
        # in place: the logits change from call to call, the work does not
        call = self.op("logp_bwd", logits, np.ones(n, np.float32), None, None, lse, ids, how)
        return call, 2.0 * logits.nbytes, shape

    def vectors(self, name: str, n: int) -> Case:
        a, b, c, d, e, f, g = (self.normal(n) for _ in range(7))
        match name:
            case "token_loss":
                spec = ("clip", 1.0, 0.2, 0.28, float("inf"), "k3", False, 0.001, 0.0)
                return self.moved(name, a, b, None, c, d, e, None, np.ones(n, np.float32), f, e, g,
                                  spec, shape=f"{n}")
            case "score_loss":
                return self.moved(name, a, b, c, None, "pairwise", 1.0, shape=f"{n}")
            case "advantage":
                spec = (16, "group", 0, "dapo", 0, 0)
                return self.moved(name, a, b, self.rng.random(n), np.full(n, 100, np.int32),
                                  np.ones(n, np.float32), spec, shape=f"{n}")
        raise ValueError(name)

    def update(self, name: str, n: int) -> Case:
        g, *pmv = (np.abs(self.normal(n // 1024, 1024)) for _ in range(4))
        if name == "sum_squares":
            return self.moved(name, np.zeros(1), g, shape=f"{n}")
        call = self.op(name, *pmv, g, (1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0, 10))
        return call, 7.0 * g.nbytes, f"{n}"  # p, m and v are read and written, g is read

    # ---- all of them ----

    def flop_cases(self) -> Iterator[tuple[str, Callable[[int], Case], tuple[int, int]]]:
        for kind in ("nt", "nn", "tn"):
            yield f"matmul_{kind}, experts", lambda n, kind=kind: self.experts(kind, n), (256, 4096)
        yield "attention_fwd", lambda T: self.attention(False, T), (128, 1024)
        yield "attention_bwd", lambda T: self.attention(True, T), (128, 1024)
        yield "attention_fwd, window", lambda T: self.attention(False, T, 64), (128, 1024)
        yield "attention_bwd, window", lambda T: self.attention(True, T, 64), (128, 1024)

    def byte_cases(self) -> Iterator[tuple[str, Callable[[int], Case], tuple[int, int]]]:
        for name in ("fill_zero", "add", "scale", "bias_bwd", "gather_rows", "scatter_rows",
                     "round_bf16", "embed_fwd", "embed_bwd", "rmsnorm_fwd", "rmsnorm_bwd", "rope",
                     "swiglu_fwd", "swiglu_bwd"):
            yield name, lambda n, name=name: self.rows(name, n), (512, 4096)
        yield "mla_expand_fwd", lambda n: self.mla(False, n), (512, 4096)
        yield "mla_expand_bwd", lambda n: self.mla(True, n), (512, 4096)
        yield "attention_fwd, decode", self.decode_attention, (128, 1024)
        for name in ("kv_write", "kv_copy"):
            yield name, lambda n, name=name: self.cache(name, n), (512, 4096)
        for name in ("router_fwd", "router_bwd", "router_load", "router_bias_update",
                     "balance_loss", "dispatch_plan", "combine_fwd", "combine_bwd",
                     "dispatch_bwd"):
            yield name, lambda n, name=name: self.moe(name, n), (256, 2048)
        plain, cut = (1.0, 0, 1.0, 0.0), (1.0, 0, 0.9, 0.0)
        for name, how in (("logp_fwd", plain), ("logp_bwd", plain), ("sample", plain),
                          ("logp_fwd", cut), ("sample", cut)):
            yield name, lambda n, name=name, how=how: self.head(name, how, n), (32, 256)
        for name, sizes in (("token_loss", (1 << 14, 1 << 17)), ("score_loss", (1 << 8, 1 << 11)),
                            ("advantage", (1 << 9, 1 << 13))):
            yield name, lambda n, name=name: self.vectors(name, n), sizes
        for name in ("sum_squares", "adamw"):
            yield name, lambda n, name=name: self.update(name, n), (1 << 17, 1 << 20)
