"""flops.py - how many floating-point operations a pass of the model is, from its configuration.

    forward     2 x the multiply-adds of its matrices and of attention's two products
    gradient    3 x that: the gradient of a product is two products. 2 x where only adapters are
                trained: the matrices pass a gradient on and have none themselves

What the work needs, whatever is done for it: blocks that are computed once more in backward count
once, masked keys not at all, a prompt that is shared once. Left out are embeddings, norms, RoPE,
activations, softmax, adapters, the optimiser: a few percent in a model of any size. Per token and
layer, in multiply-adds (names of csrc/r1.h):

    attention   C H D + 2 C Hkv D + H D C                                      q; k, v; o
    MLA         C Rq + Rq H (Dn+Dr), or C H (Dn+Dr); C (R+Dr); R H (Dn+Dv); H Dv C
                                                                        q; latent; k, v; o
    FFN         3 C F;  mixture C E + 3 C Fe (K + shared)
    a (query, key) pair    H (D + Dv), where D is Dn + Dr in MLA

and C V for every row of the head. The MTP module is one more layer behind a C x 2C matrix, and the
head once more. Knows nothing about time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized

import numpy as np

from .model_config import ModelConfig

Spans = Iterable[tuple[int, int]]  # (first position, number of positions) of each sequence


def forward_flops(config: ModelConfig, spans: Spans, head_rows: int, mtp: bool = False) -> float:
    """Operations of a forward pass over some sequences. spans: the positions that are computed; keys
    and values before the first are there already. head_rows: positions whose next token is drawn or
    learned; mtp: the MTP module runs too."""
    first, count = np.array([*spans], np.int64).reshape(-1, 2).T
    tokens, C = int(count.sum()), config.hidden_size  # noqa: N806
    head = C * config.vocab_size * head_rows
    pairs = {window: _pairs(first, count, window)
             for window in {config.window(i) for i in range(config.num_hidden_layers)}}
    macs = head
    for i in range(config.num_hidden_layers):
        macs += tokens * (_attention(config) + _ffn(config, config.mixture(i)))
        macs += pairs[config.window(i)] * _pair(config)
    if mtp:
        macs += tokens * (2 * C * C + _attention(config) + _ffn(config, config.n_routed_experts > 0))
        macs += _pairs(first, count, 0) * _pair(config) + head
    return 2.0 * macs


def gradient_flops(config: ModelConfig, spans: Spans, head_rows: int, mtp: bool = False,
                   adapters_only: bool = False) -> float:
    """Operations of forward and backward together."""
    return (2.0 if adapters_only else 3.0) * forward_flops(config, spans, head_rows, mtp)


def whole_sequences(prompts: Sequence[Sized], completions: Sequence[Sized],
                    groups: Sequence[int] | None = None) -> tuple[list[tuple[int, int]], int]:
    """The spans and head rows of training on completions, one prompt each; neighbours of one group
    share theirs."""
    spans = []
    for i, (p, o) in enumerate(zip(prompts, completions, strict=True)):
        shared = len(p) if groups is not None and i and groups[i] == groups[i - 1] else 0
        spans.append((shared, len(p) - shared + len(o)))
    return spans, sum(map(len, completions))


def sampling_flops(config: ModelConfig, prompts: Sequence[int], completions: Sequence[int]) -> float:
    """Operations of sampling: every prompt once, every completion but its last token, which no one
    reads; completions of a prompt stand together. All are numbers of tokens."""
    group = len(completions) // max(len(prompts), 1)
    spans = [(0, length) for length in prompts]
    spans += [(prompts[i // group], max(length - 1, 0)) for i, length in enumerate(completions)]
    return forward_flops(config, spans, sum(completions))


def _attention(config: ModelConfig) -> int:
    """Multiply-adds of a token in the matrices of attention."""
    C, H = config.hidden_size, config.num_attention_heads  # noqa: N806
    if not config.kv_lora_rank:
        return 2 * C * config.head_dim * (H + config.num_key_value_heads)
    wide = H * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    query = config.q_lora_rank * (C + wide) if config.q_lora_rank else C * wide
    return (query + C * (config.kv_lora_rank + config.qk_rope_head_dim) + H * config.v_head_dim * C
            + config.kv_lora_rank * H * (config.qk_nope_head_dim + config.v_head_dim))


def _ffn(config: ModelConfig, mixture: bool) -> int:
    """Multiply-adds of a token in the matrices of an FFN."""
    C = config.hidden_size  # noqa: N806
    if not mixture:
        return 3 * C * config.intermediate_size
    experts = config.num_experts_per_tok + config.n_shared_experts
    return C * config.n_routed_experts + 3 * C * config.moe_intermediate_size * experts


def _pair(config: ModelConfig) -> int:
    """Multiply-adds of a query with a key and its value, all heads of a layer."""
    mla = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    return config.num_attention_heads * (mla if config.kv_lora_rank else 2 * config.head_dim)


def _pairs(first: np.ndarray, count: np.ndarray, window: int) -> int:
    """Pairs of a query and a key that it sees; window 0: all keys up to its own position."""
    def before(t: np.ndarray) -> np.ndarray:  # pairs of the queries 0 .. t - 1
        near = np.minimum(t, window) if window else t
        return near * (near + 1) // 2 + (t - near) * window
    return int((before(first + count) - before(first)).sum())
