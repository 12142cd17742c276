"""The network's ops as float64 equations, differentiable through autodiff.

    embedding  rmsnorm  linear  swiglu  rope  mla_expand  attention (GQA, shared prefixes)
    router  dispatch / combine  balance loss  bias update  truncation  log-prob and entropy

Every function is the equation of its source, written for reading: whole arrays, no blocks.
Imports nothing of the package, so a mistake there cannot hide here.  Knows nothing about tensor
names, layers or text.

N packed tokens, C width, H heads, J key heads, D head width, E experts, K experts a token,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autodiff import Tensor, concat, exp, logsumexp, scatter_add, sigmoid, softmax, where


# ---- packed sequences

@dataclass(frozen=True)
class Span:
    """One sequence of a packed batch: its own rows, and the rows of a prefix that it shares.

    Its tokens are rows [start, start + length); before them it sees rows [prefix_start,
    prefix_start + prefix_length), all of which precede every own token.
    """

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0

    @property
    def rows(self) -> np.ndarray:
        return np.arange(self.start, self.start + self.length)

    @property
    def keys(self) -> np.ndarray:
        prefix = np.arange(self.prefix_start, self.prefix_start + self.prefix_length)
        return np.concatenate([prefix, self.rows])

    @property
    def positions(self) -> np.ndarray:
        return self.prefix_length + np.arange(self.length)


def pack_spans(lengths: Sequence[int]) -> list[Span]:
    """Sequences one after the other, nothing shared."""
    starts = np.cumsum([0, *lengths])
    return [Span(int(start), int(length)) for start, length in zip(starts, lengths)]


# ---- embedding, norms, linear maps

def embedding(table: Tensor, ids: np.ndarray) -> Tensor:
    """table (V, C), ids (N) -> (N, C); the id -1 gives a zero row and no gradient."""
    ids = np.asarray(ids, dtype=np.int64)
    return table[np.maximum(ids, 0)] * (ids >= 0)[:, None]


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean_c x^2 + eps) * w  over the last axis.  Zhang & Sennrich 2019, eq. 4."""
    return x * ((x * x).mean(axis=-1, keepdims=True) + eps) ** -0.5 * weight


def rmsnorm_residual(x: Tensor, residual: Tensor, weight: Tensor, eps: float
                     ) -> tuple[Tensor, Tensor]:
    """s = x + residual (the new residual stream), y = rmsnorm(s).  Returns (y, s)."""
    total = x + residual
    return rmsnorm(total, weight, eps), total


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, in), weight (out, in), bias (out) -> (N, out)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def bf16(x: np.ndarray) -> np.ndarray:
    """The nearest number of 8 significant bits, ties to even (finite, nothing tiny)."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 256.0), exponent - 8)


def rounded(x: Tensor) -> Tensor:
    """x in bf16; the gradient passes the rounding by."""
    return Tensor(bf16(x.data), [(x, lambda g: g)])


def linear_bf16(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Both operands of the product in bf16, forward and (with dy) backward; sums are exact."""
    y = linear(rounded(x), rounded(weight))
    y = Tensor(y.data, [(y, bf16)])
    return y if bias is None else y + bias


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up.  Shazeer 2020, eq. 6."""
    return gate * sigmoid(gate) * up


# ---- rotary positions

def rope(x: Tensor, positions: np.ndarray, inv_freq: np.ndarray, interleaved: bool,
         factor: float = 1.0) -> Tensor:
    """Rotate pair i of x (N, H, D) by the angle position * inv_freq[i], and multiply by factor.
    Su et al. 2021, eq. 34; the frequencies (D/2) and the factor: reference_rope.py.

    Pairs are (i, i + D/2), half-split, as Llama and Qwen have them, or (2i, 2i + 1), interleaved,
    as DeepSeek-V3 has them.  Every element keeps its place.
    """
    width = x.shape[-1]
    half = width // 2
    angles = np.asarray(positions)[:, None] * inv_freq
    cos, sin = factor * np.cos(angles)[:, None, :], factor * np.sin(angles)[:, None, :]  # (N, 1, D/2)
    columns = np.arange(width)
    order = columns.reshape(half, 2).T if interleaved else columns.reshape(2, half)
    a, b = x[:, :, order[0]], x[:, :, order[1]]
    rotated = concat([a * cos - b * sin, b * cos + a * sin], axis=2)
    return rotated[:, :, np.argsort(order.ravel())]


# ---- attention

def mla_expand(kv: Tensor, k_rot: Tensor, nope: int) -> tuple[Tensor, Tensor]:
    """Keys and values of MLA.  DeepSeek-V3, eq. 1-5.  kv (N, H, nope + Dv), k_rot (N, 1, Dr).

    Returns k (N, H, nope + Dr), every head with the same rotary part, and v (N, H, Dv).
    """
    shared = k_rot[:, np.zeros(kv.shape[1], dtype=np.int64)]
    return concat([kv[:, :, :nope], shared], axis=2), kv[:, :, nope:]


def attention(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float,
              window: int = 0) -> Tensor:
    """Causal softmax attention.  Vaswani et al. 2017, eq. 1; grouped heads: Ainslie et al. 2023;
    sliding window: Beltagy et al. 2020, 3.1.

    q (N, H, D), k (N, J, D), v (N, J, Dv) -> (N, H, Dv); query head h reads key head h // (H/J).
    With a window a query sees itself and the window - 1 positions before it, else all of them.
    Spans come in row order and together cover every row once.
    """
    head_of = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
    outputs = []
    for span in spans:
        if span.length == 0:
            continue
        keys = k[span.keys][:, head_of].transpose(1, 2, 0)  # (H, D, P+T)
        values = v[span.keys][:, head_of].transpose(1, 0, 2)  # (H, P+T, Dv)
        scores = q[span.rows].transpose(1, 0, 2) @ keys * scale  # (H, T, P+T)
        back = span.positions[:, None] - np.arange(len(span.keys))[None, :]
        seen = (back >= 0) & (back < (window or np.inf))
        outputs.append((softmax(where(seen, scores, -np.inf)) @ values).transpose(1, 0, 2))
    return concat(outputs)


# ---- mixture of experts

@dataclass(frozen=True)
class Routing:
    """What the router decided for N tokens."""

    experts: np.ndarray  # (N, K) chosen experts, best choice first
    gates: Tensor  # (N, K) their weights
    scores: Tensor  # (N, E) affinities, without the selection bias
    margin: float  # smallest gap by which any choice was made; near 0, rounding may flip it


def top_indices(values: np.ndarray, count: int) -> np.ndarray:
    """The count largest of the last axis, largest first, ties to the lowest index."""
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]


def top_margin(values: np.ndarray, count: int) -> float:
    """Smallest gap between the last value taken and the first one left."""
    if count >= values.shape[-1]:
        return np.inf
    ordered = -np.sort(-values, axis=-1)
    return float((ordered[..., count - 1] - ordered[..., count]).min(initial=np.inf))


def router(logits: Tensor, top_k: int, *, bias: np.ndarray | None = None, n_group: int = 1,
           topk_group: int = 1, scoring: str = "sigmoid", normalize: bool = True,
           scaling: float = 1.0) -> Routing:
    """DeepSeek-V3, eq. 13-16, with the group limit of its inference code.  logits (N, E).

    s = sigmoid(logits) or softmax(logits); choice = s + bias.  A group scores the sum of its two
    best choices (its best one where there is no bias); experts outside the best topk_group groups
    are excluded; the top_k best choices of the rest are taken.  gate = s_i [/ sum of the chosen
    s] * scaling: the bias steers the choice and nothing else.  Ties go to the lowest index (our
    choice; the paper has no rule).
    """
    n, experts = logits.shape
    scores = sigmoid(logits) if scoring == "sigmoid" else softmax(logits)
    choice = scores.data + (0.0 if bias is None else np.asarray(bias, dtype=np.float64))
    margin = np.inf
    if n_group > 1:
        grouped = choice.reshape(n, n_group, experts // n_group)
        counted = 1 if bias is None else 2
        group_score = -np.sort(-grouped, axis=-1)[..., :counted].sum(axis=-1)  # (N, n_group)
        kept = np.zeros((n, n_group), dtype=bool)
        np.put_along_axis(kept, top_indices(group_score, topk_group), True, axis=1)
        margin = top_margin(group_score, topk_group)
        choice = np.where(kept[:, :, None], grouped, -np.inf).reshape(n, experts)
    chosen = top_indices(choice, top_k)
    gates = scores[np.arange(n)[:, None], chosen]
    if normalize:
        gates = gates / (gates.sum(axis=1, keepdims=True) + 1e-20)
    return Routing(chosen, gates * scaling, scores, min(margin, top_margin(choice, top_k)))


@dataclass(frozen=True)
class Dispatch:
    """The N*K (token, slot) pairs sorted by expert, then by token."""

    rows: np.ndarray  # (N*K) token of each pair
    slots: np.ndarray  # (N*K) which of that token's K choices
    offsets: np.ndarray  # (E+1) expert e has the pairs [offsets[e], offsets[e+1])


def dispatch(experts: np.ndarray, n_experts: int) -> Dispatch:
    flat = experts.ravel()
    order = np.argsort(flat, kind="stable")  # flat order is (token, slot)
    counts = np.bincount(flat, minlength=n_experts)
    return Dispatch(order // experts.shape[1], order % experts.shape[1],
                    np.concatenate([[0], np.cumsum(counts)]))


def combine(outputs: Tensor, gates: Tensor, plan: Dispatch) -> Tensor:
    """out[n] = sum over slots of gate[n, slot] * output of that pair.  outputs (N*K, C)."""
    weights = gates[plan.rows, plan.slots].reshape(-1, 1)
    return scatter_add(outputs * weights, plan.rows, gates.shape[0])


def experts_ffn(x: Tensor, routing: Routing, ffns: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    """sum_i g_i FFN_i(x) over the routed experts.  DeepSeek-V3, eq. 12.  x (N, C) -> (N, C)."""
    plan = dispatch(routing.experts, len(ffns))
    pieces = [ffn(x[plan.rows[a:b]])
              for ffn, a, b in zip(ffns, plan.offsets[:-1], plan.offsets[1:])]
    return combine(concat(pieces), routing.gates, plan)


def balance_loss(routing: Routing, spans: Sequence[Span], total_tokens: float) -> Tensor:
    """Sequence-wise balance loss without its coefficient.  DeepSeek-V3, eq. 17-20.

    Of a sequence of T tokens: sum_i f_i P_i, f_i = E/(K T) * tokens that chose i (a constant),
    P_i = mean_t s_ti / sum_j s_tj.  Sequences are weighted T / total_tokens (our choice), T being
    all their tokens, those of a shared prefix included.
    """
    n_experts, top_k = routing.scores.shape[1], routing.experts.shape[1]
    share = routing.scores / routing.scores.sum(axis=1, keepdims=True)
    loss = Tensor(0.0)
    for span in spans:
        tokens = len(span.keys)
        if tokens == 0:
            continue
        counts = np.bincount(routing.experts[span.keys].ravel(), minlength=n_experts)
        load = n_experts / (top_k * tokens) * counts
        loss = loss + (share[span.keys].mean(axis=0) * load).sum() * (tokens / total_tokens)
    return loss


def bias_update(bias: np.ndarray, load: np.ndarray, speed: float) -> np.ndarray:
    """b_i + speed * sign(mean load - load_i).  DeepSeek-V3, section 2.1.2; no gradient."""
    return bias + speed * np.sign(load.mean() - load)


# ---- from logits to log-probabilities

def truncation(logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0,
               min_p: float = 0.0) -> np.ndarray:
    """The tokens that may be drawn, as a mask (V), from one row of raw logits (V).

    Temperature, then three filters on the tokens sorted by (logit descending, id ascending):
    the first top_k; of those, renormalised, every token before which less than top_p has
    accumulated; of those, every token with at least min_p times the best one's probability.
    0, 1.0 and 0.0 switch a filter off.  Temperature 0 (greedy) filters nothing: its log-prob is
    that of the plain softmax.
    """
    keep = np.ones(len(logits), dtype=bool)
    if temperature == 0.0:
        return keep
    order = np.argsort(-logits, kind="stable")
    z = logits[order] / temperature
    mass = np.exp(z - z[0])  # probability relative to the best token's
    kept = np.ones(len(z), dtype=bool)
    if top_k > 0:
        kept &= np.arange(len(z)) < top_k
    if top_p < 1.0:
        p = np.where(kept, mass, 0.0) / mass[kept].sum()
        kept &= np.cumsum(p) - p < top_p
    if min_p > 0.0:
        kept &= mass >= min_p
    keep[order] = kept
    return keep


def token_logprobs(logits: Tensor, targets: np.ndarray, temperature: float = 1.0, top_k: int = 0,
                   top_p: float = 1.0, min_p: float = 0.0) -> tuple[Tensor, Tensor]:
    """(log-prob of the target (N), entropy (N)) of the distribution one draws from.  logits (N, V).

    Both are of the tempered softmax over the support: the tokens of `truncation` united with the
    target, and constant under differentiation.
    """
    targets = np.asarray(targets, dtype=np.int64)
    rows = np.arange(len(targets))
    support = np.array([truncation(row, temperature, top_k, top_p, min_p)
                        for row in logits.data], dtype=bool).reshape(logits.shape)
    support[rows, targets] = True
    z = logits * (1.0 if temperature == 0.0 else 1.0 / temperature)
    logp = z - logsumexp(where(support, z, -np.inf))
    p = where(support, exp(where(support, logp, 0.0)), 0.0)
    return logp[rows, targets], -(p * logp).sum(axis=1)
