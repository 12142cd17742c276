"""The whole model in float64: log-probs, every loss, every gradient, from the equations alone.

`Reference(config, state)` takes a dict with Hugging Face field names and a dict of arrays with
Hugging Face tensor names, and builds what they describe:

    self_attn.kv_b_proj present  -> MLA (q_a_proj too: low-rank queries), else GQA (q/k norms where
                                    the tensors exist); biases of any projection likewise
    mlp.gate present             -> DeepSeekMoE (selection bias and shared experts likewise),
                                    else a dense SwiGLU
    lm_head absent               -> the head is the embedding
    layer num_hidden_layers      -> the MTP module, used when its coefficient is given

    x = Emb(t);  x += Attn(norm(x));  x += FFN(norm(x));  h = norm(x);  logits = h W_head

`bf16`: every product's operands are rounded, queries, keys and values too, and the embedding; the
router and the score head are not.

Everything is expanded and unblocked; speed is no aim.  Imports nothing of the package.  Knows
nothing about text, optimisers (see reference_rl.py) or sampling beyond a token's log-prob.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autodiff import Tensor, concat, gradients, stop_gradient
from reference_ops import (Routing, Span, attention, balance_loss, embedding, experts_ffn, linear,
                           linear_bf16, mla_expand, pack_spans, rmsnorm, rope, rounded, router, swiglu,
                           token_logprobs)
from reference_rl import (pairwise_loss, pointwise_loss, policy_loss, sequence_old_logp,
                          truncated_weights)
from reference_rope import deepseek_score_scale, frequencies

SELECTION_BIAS = "e_score_correction_bias"  # moved by a rule of its own, has no gradient


@dataclass(frozen=True)
class Result:
    """A loss and its gradient for every parameter (zeros where it does not reach)."""

    loss: float
    gradients: dict[str, np.ndarray]
    terms: dict[str, float]  # the summands: "main", and "mtp", "balance" where they take part


@dataclass(frozen=True)
class Batch:
    """B sequences (prompt + completion) packed into N tokens, and their M completion tokens."""

    tokens: np.ndarray  # (N)
    spans: list[Span]  # (B)
    targets: np.ndarray  # (M) packed index of each completion token, in order

    @property
    def positions(self) -> np.ndarray:
        return np.concatenate([span.positions for span in self.spans])


@dataclass(frozen=True)
class Trunk:
    """The main model's output and the routing of its MoE layers."""

    hidden: Tensor  # (N, C) after the final norm
    routings: list[Routing]


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Batch:
    """Completion i continues prompt i // (len(completions) / len(prompts))."""
    ratio, rest = divmod(len(completions), len(prompts))
    if rest:
        raise ValueError(f"{len(completions)} completions for {len(prompts)} prompts")
    pairs = [(list(prompts[i // ratio]), list(c)) for i, c in enumerate(completions)]
    spans = pack_spans([len(p) + len(c) for p, c in pairs])
    targets = [span.rows[len(p):] for span, (p, _) in zip(spans, pairs)]
    return Batch(np.array([t for p, c in pairs for t in p + c], dtype=np.int64), spans,
                 np.concatenate(targets))


class Reference:
    """`margin` is the smallest routing gap of the last forward: below float32 rounding, a float32
    engine may legitimately have chosen another expert."""

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, np.ndarray],
                 bf16: bool = False) -> None:
        self.config = dict(config)
        self.multiply = linear_bf16 if bf16 else linear
        self.seen = rounded if bf16 else lambda x: x
        self.live = config["vocab_size"]  # ids from here on are in no softmax
        self.params = {name: Tensor(array) for name, array in state.items()}
        self.margin = np.inf

    # ---- what a test asks for

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Raw logits (T, V) after each token of one sequence."""
        return self._head(self._trunk(pack([tokens], [[]])).hidden).data

    def mtp_logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Raw logits (T, V) of the MTP module: row i is about token i + 2."""
        batch = pack([tokens], [[]])
        hidden, _ = self._mtp(batch, self._trunk(batch).hidden, detach=False)
        return self._head(hidden).data

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int],
                 **sampling: Any) -> np.ndarray:
        """Log-prob of each completion token (T_c); sampling: temperature, top_k, top_p, min_p."""
        batch = pack([prompt], [completion])
        return self._logprobs(batch, self._trunk(batch), sampling)[0].data

    def loss_sft(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]],
                 weights: Sequence[Any] | None = None, total_tokens: float | None = None, *,
                 mtp_coef: float = 0.0, balance_coef: float = 0.0) -> Result:
        """sum of w * (-logp) / total, plus the MTP and balance terms.

        weights: per completion, one number a token (default 1); total: default the sum of w.
        """
        batch = pack(prompts, completions)
        trunk = self._trunk(batch)
        w, total = flat_weights(weights, completions, total_tokens)
        main = (self._logprobs(batch, trunk, {})[0] * -w).sum() * (1.0 / total)
        return self._result(main, batch, trunk, w, total, mtp_coef, False, balance_coef)

    def loss_policy(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *,
                    advantages: Sequence[float], old_logprobs: Sequence[Any],
                    weights: Sequence[Any] | None = None, total_tokens: float | None = None,
                    ref_logprobs: Sequence[Any] | None = None, epsilon: float = 0.2,
                    epsilon_high: float | None = None, delta: float = np.inf, beta: float = 0.0,
                    kl: str = "k3", kl_ratio: bool = False, form: str = "clip",
                    level: str = "token", entropy_coef: float = 0.0, mtp_coef: float = 0.0,
                    mtp_detach: bool = False, balance_coef: float = 0.0,
                    sampled_logprobs: Sequence[Any] | None = None, cap: float = 2.0,
                    **sampling: Any) -> Result:
        """sum of w * (policy loss + beta KL - entropy_coef entropy) / total.

        advantages (B), the other arrays per completion.  level "sequence": GSPO's ratio.
        sampled_logprobs: advantages are multiplied by the weights of truncated importance sampling.  mtp_detach: the MTP term sees the trunk
        as a constant, its gradient stops at the hidden state, the shared embedding and the shared
        head (our choice).
        """
        batch = pack(prompts, completions)
        trunk = self._trunk(batch)
        w, total = flat_weights(weights, completions, total_tokens)
        per_token = np.repeat(np.asarray(advantages, dtype=np.float64),
                              [len(completion) for completion in completions])
        logp, entropy = self._logprobs(batch, trunk, sampling)
        old = flatten(old_logprobs)
        if sampled_logprobs is not None:
            per_token = per_token * truncated_weights(old, flatten(sampled_logprobs), cap)
        if level == "sequence":
            ends = np.cumsum([len(completion) for completion in completions])[:-1]
            old = np.concatenate([sequence_old_logp(new, before) for new, before in
                                  zip(np.split(logp.data, ends), np.split(old, ends))])
        loss = policy_loss(logp, old, per_token, form=form,
                           ref_logp=None if ref_logprobs is None else flatten(ref_logprobs),
                           epsilon=epsilon, epsilon_high=epsilon_high, delta=delta, beta=beta,
                           kl=kl, kl_ratio=kl_ratio, entropy=entropy, entropy_coef=entropy_coef,
                           mask=w != 0.0).loss
        main = (loss * w).sum() * (1.0 / total)
        return self._result(main, batch, trunk, w, total, mtp_coef, mtp_detach, balance_coef)

    def score(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """The scalar head `score.weight` (1, C) on the last token of each sequence (our choice)."""
        return self._score(sequences).data

    def loss_reward(self, sequences: Sequence[Sequence[int]], kind: str,
                    labels: Sequence[float] | None = None, total: float | None = None) -> Result:
        """"pairwise": sequences alternate chosen, rejected; "pointwise": labels (B).  Divided by
        total, by default the number of pairs or sequences."""
        scores = self._score(sequences)
        if kind == "pairwise":
            loss = pairwise_loss(scores)
        else:
            loss = pointwise_loss(scores, np.asarray(labels, dtype=np.float64))
        return self._gradients({"main": loss.sum() * (1.0 / (total or loss.shape[0]))})

    # ---- the model

    def _trunk(self, batch: Batch) -> Trunk:
        x = embedding(self.seen(self.params["model.embed_tokens.weight"]), batch.tokens)
        routings: list[Routing] = []
        for layer in range(self.config["num_hidden_layers"]):
            x = self._block(f"model.layers.{layer}", x, batch, routings)
        self.margin = min((r.margin for r in routings), default=np.inf)
        return Trunk(self._norm("model.norm", x), routings)

    def _block(self, name: str, x: Tensor, batch: Batch, routings: list[Routing]) -> Tensor:
        attend = self._mla if f"{name}.self_attn.kv_b_proj.weight" in self.params else self._gqa
        x = x + attend(f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x), batch)
        h = self._norm(f"{name}.post_attention_layernorm", x)
        if f"{name}.mlp.gate.weight" not in self.params:
            return x + self._ffn(f"{name}.mlp", h)
        return x + self._moe(f"{name}.mlp", h, routings)

    def _gqa(self, name: str, h: Tensor, batch: Batch) -> Tensor:
        """Heads of one width, fewer of them for keys and values; RoPE half-split by default."""
        heads = self.config["num_attention_heads"]
        kv_heads = self.config.get("num_key_value_heads") or heads
        n, width = h.shape[0], self.params[f"{name}.q_proj.weight"].shape[0] // heads
        q = self._linear(f"{name}.q_proj", h).reshape(n, heads, width)
        k = self._linear(f"{name}.k_proj", h).reshape(n, kv_heads, width)
        v = self._linear(f"{name}.v_proj", h).reshape(n, kv_heads, width)
        if f"{name}.q_norm.weight" in self.params:  # Qwen3, before the rotation
            q, k = self._norm(f"{name}.q_norm", q), self._norm(f"{name}.k_norm", k)
        q, k = self._rope(q, batch, False), self._rope(k, batch, False)
        q, k, v = map(self.seen, (q, k, v))
        out = attention(q, k, v, batch.spans, width ** -0.5, self._window(name))
        return self._linear(f"{name}.o_proj", out.reshape(n, heads * width))

    def _mla(self, name: str, h: Tensor, batch: Batch) -> Tensor:
        """Multi-head latent attention, expanded.  DeepSeek-V3, eq. 1-11.

        Keys and values come from a normed latent (N, R); a rotary key (N, rope) is shared by the
        heads.  A head's query and key are [nope, rope]; its scores are scaled by the joint width,
        and by YaRN's mscale.  The latents' norms have an epsilon of their own in DeepSeek's code.
        """
        c = self.config
        heads, nope, rot, wide = (c["num_attention_heads"], c["qk_nope_head_dim"],
                                  c["qk_rope_head_dim"], c["v_head_dim"])
        n, rank = h.shape[0], c["kv_lora_rank"]
        if f"{name}.q_a_proj.weight" in self.params:
            latent_q = self._norm(f"{name}.q_a_layernorm", self._linear(f"{name}.q_a_proj", h), 1e-6)
            q = self._linear(f"{name}.q_b_proj", latent_q)
        else:
            q = self._linear(f"{name}.q_proj", h)
        q = q.reshape(n, heads, nope + rot)
        q = concat([q[:, :, :nope], self._rope(q[:, :, nope:], batch, True)], axis=2)
        down = self._linear(f"{name}.kv_a_proj_with_mqa", h)  # (N, R + rope)
        latent = self._norm(f"{name}.kv_a_layernorm", down[:, :rank], 1e-6)
        k_rot = self._rope(down[:, rank:].reshape(n, 1, rot), batch, True)
        kv = self._linear(f"{name}.kv_b_proj", latent).reshape(n, heads, nope + wide)
        k, v = mla_expand(kv, k_rot, nope)
        q, k, v = map(self.seen, (q, k, v))
        scale = (nope + rot) ** -0.5 * deepseek_score_scale(c)
        out = attention(q, k, v, batch.spans, scale)
        return self._linear(f"{name}.o_proj", out.reshape(n, heads * wide))

    def _window(self, name: str) -> int:
        """Sliding window of the attention of that name, 0 for none. Mistral: wherever the config has
        one; Qwen: only when switched on, in the layers that layer_types marks or, without it,
        from max_window_layers on (all of Qwen3-MoE's). The MTP module has none (our choice)."""
        c, layer = self.config, int(name.split(".")[2])
        kind, window = c.get("model_type"), c.get("sliding_window") or 0
        if layer == c["num_hidden_layers"] or kind not in ("mistral", "qwen2", "qwen3", "qwen3_moe"):
            return 0
        if kind == "mistral":
            return window
        if not c.get("use_sliding_window"):
            return 0
        if kind == "qwen3_moe":
            return window
        if c.get("layer_types"):
            return window if c["layer_types"][layer] == "sliding_attention" else 0
        return window if layer >= c["max_window_layers"] else 0

    def _moe(self, name: str, h: Tensor, routings: list[Routing]) -> Tensor:
        """DeepSeekMoE, or Qwen3's: softmax scores over all experts, no bias, nothing shared."""
        c = self.config
        qwen = c.get("model_type") == "qwen3_moe"
        bias = self.params.get(f"{name}.gate.{SELECTION_BIAS}")
        routing = router(linear(h, self.params[f"{name}.gate.weight"]), c["num_experts_per_tok"],
                         bias=None if bias is None else bias.data,
                         n_group=c.get("n_group") or 1, topk_group=c.get("topk_group") or 1,
                         scoring="softmax" if qwen else c.get("scoring_func", "sigmoid"),
                         normalize=c.get("norm_topk_prob", True),
                         scaling=c.get("routed_scaling_factor", 1.0))
        routings.append(routing)
        ffns = [lambda x, e=e: self._ffn(f"{name}.experts.{e}", x)
                for e in range(c["num_experts" if qwen else "n_routed_experts"])]
        out = experts_ffn(h, routing, ffns)
        if f"{name}.shared_experts.gate_proj.weight" in self.params:
            out = out + self._ffn(f"{name}.shared_experts", h)
        return out

    def _ffn(self, name: str, x: Tensor) -> Tensor:
        hidden = swiglu(self._linear(f"{name}.gate_proj", x), self._linear(f"{name}.up_proj", x))
        return self._linear(f"{name}.down_proj", hidden)

    def _mtp(self, batch: Batch, hidden: Tensor, detach: bool) -> tuple[Tensor, list[Routing]]:
        """One more block: it sees h_i and Emb(t_{i+1}), it is about t_{i+2}; (N, C), normed.

        DeepSeek-V3, eq. 21-23, in the order of its checkpoint: [enorm(Emb); hnorm(h)].  h is the
        main model's output after the final norm, and at a sequence's last position the missing
        embedding is the zero vector (our choices).
        """
        name = f"model.layers.{self.config['num_hidden_layers']}"
        table = self.params["model.embed_tokens.weight"]
        if detach:
            hidden, table = stop_gradient(hidden), stop_gradient(table)
        following = np.roll(batch.tokens, -1)
        for span in batch.spans:
            following[span.rows[-1:]] = -1
        joined = concat([self._norm(f"{name}.enorm", embedding(self.seen(table), following)),
                         self._norm(f"{name}.hnorm", hidden)], axis=1)
        routings: list[Routing] = []
        x = self._block(name, self._linear(f"{name}.eh_proj", joined), batch, routings)
        self.margin = min([self.margin, *(r.margin for r in routings)])
        return self._norm(f"{name}.shared_head.norm", x), routings

    def _head(self, hidden: Tensor, detach: bool = False) -> Tensor:
        weight = self.params.get("lm_head.weight", self.params["model.embed_tokens.weight"])
        return self.multiply(hidden, stop_gradient(weight) if detach else weight)[:, :self.live]

    # ---- small parts

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return self.multiply(x, self.params[f"{name}.weight"], self.params.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor, eps: float | None = None) -> Tensor:
        if eps is None:
            eps = self.config.get("rms_norm_eps", 1e-6)
        return rmsnorm(x, self.params[f"{name}.weight"], eps)

    def _rope(self, x: Tensor, batch: Batch, interleaved: bool) -> Tensor:
        inv_freq, factor = frequencies(self.config, x.shape[-1])
        return rope(x, batch.positions, inv_freq, self.config.get("rope_interleave", interleaved),
                    factor)

    def _logprobs(self, batch: Batch, trunk: Trunk, sampling: Mapping[str, Any]
                  ) -> tuple[Tensor, Tensor]:
        """(log-prob, entropy), each (M)."""
        logits = self._head(trunk.hidden[batch.targets - 1])
        return token_logprobs(logits, batch.tokens[batch.targets], **sampling)

    def _score(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        batch = pack(sequences, [[] for _ in sequences])
        last = np.array([span.start + span.length - 1 for span in batch.spans])
        return linear(self._trunk(batch).hidden[last], self.params["score.weight"])[:, 0]

    # ---- losses and their gradients

    def _result(self, main: Tensor, batch: Batch, trunk: Trunk, w: np.ndarray, total: float,
                mtp_coef: float, detach: bool, balance_coef: float) -> Result:
        """Add the MTP term, mtp_coef / total * sum of w[t_{i+2}] * nll, and the balance term over
        every MoE layer that ran, the MTP block's included."""
        terms = {"main": main}
        routings = list(trunk.routings)
        if mtp_coef:
            hidden, mtp_routings = self._mtp(batch, trunk.hidden, detach)
            routings += mtp_routings
            start = np.repeat([s.start for s in batch.spans], [s.length for s in batch.spans])
            reached = batch.targets - 2 >= start[batch.targets]
            targets = batch.targets[reached]
            logp, _ = token_logprobs(self._head(hidden[targets - 2], detach), batch.tokens[targets])
            terms["mtp"] = (logp * -w[reached]).sum() * (mtp_coef / total)
        if balance_coef:
            terms["balance"] = sum((balance_loss(r, batch.spans, total) for r in routings),
                                   Tensor(0.0)) * balance_coef
        return self._gradients(terms)

    def _gradients(self, terms: dict[str, Tensor]) -> Result:
        loss = sum(terms.values(), Tensor(0.0))
        names = [name for name in self.params if not name.endswith(SELECTION_BIAS)]
        grads = gradients(loss, [self.params[name] for name in names])
        return Result(float(loss), dict(zip(names, grads)),
                      {name: float(term) for name, term in terms.items()})


def flatten(rows: Sequence[Any]) -> np.ndarray:
    """Per-completion arrays -> (M)."""
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def flat_weights(weights: Sequence[Any] | None, completions: Sequence[Sequence[int]],
                 total_tokens: float | None) -> tuple[np.ndarray, float]:
    """(M) weights, by default 1, and the total to divide by, by default their sum (never 0)."""
    w = flatten([np.ones(len(c)) for c in completions] if weights is None else weights)
    total = w.sum() if total_tokens is None else total_tokens
    return w, float(total) or 1.0
