"""Model: one engine that samples and trains, on arrays.

`generate`, `logprobs`; `sft_gradient`, `policy_gradient`, `reward_gradient` add to the gradients,
`update` takes an AdamW step. The log-probabilities that `generate` reports are, bit for bit, those that
`policy_gradient` computes (docs/numerics.md). Token ids in, token ids out: knows nothing about text,
rewards or trainers. Its weights as arrays: model_state.py; its folders and adapters: model_files.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .advantage import sequence_old_logprobs, truncated_weights
from .batch import PackedBatch, as_count, as_number, pack, per_token, split_rows
from .brief import brief
from .losses import Loss, LossSpec, mtp_stats, token_stats
from .model_files import ModelFiles
from .model_state import NO_BASE
from .plan import MICRO_TOKENS as _MICRO_TOKENS
from .plan import SLOTS as _SLOTS
from .plan import MemoryPlan, explained, plan_memory
from .sampling import Filters, Rollout, Session

__all__ = ["Loss", "Model"]


class Model(ModelFiles):
    """A transformer with its weights, gradients and optimiser state, in the C core.

    config: ModelConfig or a dict of its fields; seed: of the random weights (normal with
    `initializer_range`, norms 1, biases 0); device "cpu", "cuda", or "cuda/fast", which is faster and gives
    "bit for bit" up (`exact`; docs/cuda.md).

    dtype: "float32", or "bfloat16": products then see weights and their other operand rounded to
    bf16, and the KV cache holds bf16; sums, norms, softmax, losses, gradients, moments and the
    weights that an update moves stay float32 (docs/numerics.md).

    lora: low-rank adapters (r1grpo/lora.py); then they alone are trained.

    frozen: only what sampling and scoring need, to the same bits: no gradients, no moments, and of
    every matrix the one copy that products read, 2 bytes a parameter in bfloat16 instead of 6. To ask
    for more is a ValueError. offload: a folder for that copy's file, and on a GPU the host's memory: see
    `freeze`."""

    def plan(self, **options: Any) -> MemoryPlan:
        """The memory that this model and calls on it take: see `r1grpo.plan.plan_memory`."""
        return plan_memory(self.config, dtype=self.dtype, device=self.device_name, lora=self.lora,
                           frozen=self.frozen, offload=self._core.offload, **options)

    def _explained(self, batch: PackedBatch, **options: Any) -> AbstractContextManager[None]:
        """A MemoryError of a pass over this batch carries its plan."""
        return explained(lambda: self.plan(
            length=int(max(np.diff(batch.start), default=1)), sequences=max(len(batch.lengths), 1), **options))

    # ---- sampling -------------------------------------------------------------------------------

    def session(self, prompts: Sequence, num_generations: int = 1, max_new_tokens: int = 128,
                temperature: float = 1.0, top_k: int | None = 0, top_p: float | None = 1.0,
                min_p: float | None = 0.0, seed: int = 0, step: int = 0,
                stop_token_ids: Sequence[int] | None = None,
                sample_ids: Sequence[int] | None = None, speculative: bool = False) -> Session:
        """`generate` in slices: see `Session`."""
        how = Filters(temperature, top_k, top_p, min_p)
        stop = self.config.stop_ids() if stop_token_ids is None else stop_token_ids
        with explained(lambda: self.plan(
                training=False, prompts=len(prompts), num_generations=num_generations, slots=_SLOTS,
                prompt_length=max(map(len, prompts)), max_new_tokens=max_new_tokens, speculative=speculative)):
            return Session(self._core, lambda: self.device, self.config, prompts, num_generations,
                           max_new_tokens, how, seed, step, stop, sample_ids, _SLOTS, speculative)

    def generate(self, prompts: Sequence, num_generations: int = 1, max_new_tokens: int = 128,
                 temperature: float = 1.0, top_k: int | None = 0, top_p: float | None = 1.0,
                 min_p: float | None = 0.0, seed: int = 0, step: int = 0,
                 stop_token_ids: Sequence[int] | None = None,
                 sample_ids: Sequence[int] | None = None, speculative: bool = False) -> Rollout:
        """Samples `num_generations` completions of each prompt.

        prompts: P sequences of token ids. Returns a Rollout of flat lists, completion g of prompt p at
        p * G + g. A stop token is included and has a log-prob; stop_token_ids None means the config's
        eos, () none. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and None are off. A draw depends
        on (seed, step, prompt index or sample_ids[p], g, position) and the tokens before alone.

        speculative: the model's MTP module guesses a token ahead, and a step yields two where the guess
        is right (Rollout.drafts counts). Tokens and log-probs are those without it, bit for bit."""
        session = self.session(prompts, num_generations, max_new_tokens, temperature, top_k, top_p,
                               min_p, seed, step, stop_token_ids, sample_ids, speculative)
        while not session.done:
            session.run(64)
        return session.rollout()

    # ---- log-probs and gradients ----------------------------------------------------------------

    def _pack(self, prompt_ids: Sequence, completion_ids: Sequence,
              groups: Sequence[int] | None = None) -> PackedBatch:
        return pack(prompt_ids, completion_ids, self.config.vocab_size,
                    self.config.max_position_embeddings, self.live_vocab, groups)

    def logprobs(self, prompt_ids: Sequence, completion_ids: Sequence, temperature: float = 1.0,
                 top_k: int | None = 0, top_p: float | None = 1.0,
                 min_p: float | None = 0.0) -> list[np.ndarray]:
        """Log-probability of every completion token, one float32 array a completion; completion i
        belongs to prompt i // ratio."""
        return self._logprobs(self._pack(prompt_ids, completion_ids),
                              Filters(temperature, top_k, top_p, min_p))

    def base_logprobs(self, prompt_ids: Sequence, completion_ids: Sequence, temperature: float = 1.0,
                      top_k: int | None = 0, top_p: float | None = 1.0,
                      min_p: float | None = 0.0) -> list[np.ndarray]:
        """`logprobs` without the adapters: the model that they were added to, and the reference of RL."""
        return self._logprobs(self._pack(prompt_ids, completion_ids),
                              Filters(temperature, top_k, top_p, min_p), base=True)

    def _logprobs(self, batch: PackedBatch, how: Filters, base: bool = False) -> list[np.ndarray]:
        out = np.empty(batch.targets, np.float32)
        spec = (False, False, base, *LossSpec(), 0.0, False, 0.0, _MICRO_TOKENS)
        if batch.targets:
            with self._explained(batch, training=False, scoring=True):
                self._core.run(self.device, batch.ids, batch.start, batch.first, batch.group, None, None,
                               None, None, spec, how.tuple(), out, None, None, None, None, None, None, None)
        return split_rows(out, batch.lengths)

    def sft_gradient(self, prompt_ids: Sequence, completion_ids: Sequence, weights=None,
                     total_tokens: float | None = None, micro_batch_tokens: int | None = None,
                     mtp_coef: float = 0.0, balance_coef: float = 0.0,
                     recompute: bool = False) -> Loss:
        """Adds the gradient of sum w (-log p) / total_tokens.

        weights: None (all 1), one number or one array a completion; total_tokens: None for the sum of
        this call's weights; who splits a step over calls passes the step's. micro_batch_tokens bounds
        memory and changes no bit; nor does recompute, which keeps what enters each layer and computes
        its activations once more in backward. mtp_coef adds the MTP module's loss (DeepSeek-V3 eq.
        24-25), balance_coef the sequence-wise balance loss (eq. 17-20), each sequence weighted by its tokens."""
        return self._gradient(LossSpec(), self._pack(prompt_ids, completion_ids), weights, total_tokens,
                              micro_batch_tokens, mtp_coef=mtp_coef, balance_coef=balance_coef,
                              recompute=recompute)

    def policy_gradient(self, prompt_ids: Sequence, completion_ids: Sequence, *, advantages, weights,
                        old_logprobs, ref_logprobs=None, loss: str = "clip", epsilon: float = 0.2,
                        epsilon_high: float | None = None, delta: float | None = None,
                        importance_sampling_level: str = "token", beta: float = 0.0,
                        kl_estimator: str = "k3", use_bias_correction_kl: bool = False,
                        temperature: float = 1.0, top_k: int | None = 0, top_p: float | None = 1.0,
                        min_p: float | None = 0.0, total_tokens: float | None = None,
                        micro_batch_tokens: int | None = None, entropy_coef: float = 0.0,
                        mtp_coef: float = 0.0, mtp_detach: bool = True,
                        balance_coef: float = 0.0, recompute: bool = False,
                        groups: Sequence[int] | None = None, sampled_logprobs=None,
                        importance_sampling_cap: float = 2.0) -> Loss:
        """Adds the gradient of sum w (policy term + beta KL) / total_tokens, rho = exp(log p - old).

        loss: "clip", -min(min(rho, delta) A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) (DeepSeekMath
        eq. 3; delta None is no bound), or "cispo", -min(rho, epsilon_high) A log p with the first
        factor a constant. importance_sampling_level "sequence": rho is the geometric mean of its
        sequence (GSPO), for which log-probs are computed once more. KL: "k1", "k2" or "k3" of the
        current policy to the reference, times rho with use_bias_correction_kl. Formulas and sources:
        csrc/cpu/token_loss.c.

        advantages, weights: one number or one array a completion; old_logprobs, ref_logprobs: one
        array a completion (ref only with beta). total_tokens: None for the sum of weights; pass 1.0
        with weights that already contain the normalisation (r1grpo.advantage). The sampling options
        must be those of the rollout. In RL the routing bias is left alone and balance_coef is 0.

        A prompt is computed once for its completions, which stand together. groups: the group of each
        completion, where every completion comes with its own copy of the prompt (None: completion i
        is of prompt i // ratio); no log-prob depends on it, a gradient does by rounding alone.

        sampled_logprobs: the sampler's, where they are not old_logprobs: on device "cuda/fast" those are a
        training forward's. Then each token's A is multiplied by min(exp(old - sampled),
        importance_sampling_cap), exactly 1 where both are equal (advantage.truncated_weights), and the
        gap is measured to them."""
        if beta and ref_logprobs is None:
            raise ValueError("beta is not 0: ref_logprobs are needed")
        if loss not in ("clip", "cispo"):
            raise ValueError(f"loss {brief(loss)} is neither 'clip' nor 'cispo'")
        if loss == "cispo" and epsilon_high is None:
            raise ValueError("loss 'cispo' needs epsilon_high: the bound of the weight itself")
        if kl_estimator not in ("k1", "k2", "k3"):
            raise ValueError(f"kl_estimator {brief(kl_estimator)} is none of 'k1', 'k2', 'k3'")
        if importance_sampling_level not in ("token", "sequence"):
            raise ValueError(f"importance_sampling_level {brief(importance_sampling_level)} is neither "
                             f"'token' nor 'sequence'")
        batch = self._pack(prompt_ids, completion_ids, groups)
        n, how = batch.lengths, Filters(temperature, top_k, top_p, min_p)
        sampled = old = per_token(old_logprobs, n, "old_logprobs")
        A, correction = per_token(advantages, n, "advantages"), None
        if sampled_logprobs is not None:
            sampled = per_token(sampled_logprobs, n, "sampled_logprobs")
            correction = truncated_weights(old, sampled, as_number(importance_sampling_cap,
                                                                   "importance_sampling_cap", 1e-30))
            A *= correction
        if importance_sampling_level == "sequence":
            now = self._logprobs(batch, how)
            old = per_token(sequence_old_logprobs(now, split_rows(old, n)), n, "old_logprobs")
        spec = LossSpec(
            loss, eps_low=as_number(epsilon, "epsilon"),
            eps_high=as_number(epsilon if epsilon_high is None else epsilon_high, "epsilon_high"),
            delta=math.inf if delta is None else as_number(delta, "delta", 1e-30),
            kl=kl_estimator, kl_ratio=bool(use_bias_correction_kl), beta=as_number(beta, "beta"),
            entropy_coef=as_number(entropy_coef, "entropy_coef", -3e38))
        return self._gradient(
            spec, batch, weights, total_tokens, micro_batch_tokens,
            advantages=A, sampled=sampled, old=old, correction=correction,
            ref=per_token(ref_logprobs, n, "ref_logprobs") if beta else None, how=how,
            mtp_coef=mtp_coef, mtp_detach=mtp_detach, balance_coef=balance_coef,
            recompute=recompute)

    def _gradient(self, loss_spec: LossSpec, batch: PackedBatch, weights, total_tokens: float | None,
                  micro_batch_tokens: int | None, *, advantages=None, sampled=None, old=None,
                  correction=None, ref=None, how: Filters = Filters(), mtp_coef: float = 0.0,
                  mtp_detach: bool = False, balance_coef: float = 0.0,
                  recompute: bool = False) -> Loss:
        w = per_token([1.0] * len(batch.lengths) if weights is None else weights, batch.lengths,
                      "weights")
        if total_tokens is None and not w.any():
            return Loss(0.0, 0, self._logprobs(batch, how))
        total = (as_number(math.fsum(w), "the sum of weights", 1e-30) if total_tokens is None
                 else as_number(total_tokens, "total_tokens", 1e-30))
        if mtp_coef and not self.config.num_nextn_predict_layers:
            raise ValueError("mtp_coef is not 0, but the model has no MTP module")
        M, B = batch.targets, len(batch.lengths)
        logp, entropy, loss, kl, clipped, mtp_loss = (np.zeros(M, np.float32) for _ in range(6))
        draft, balance = np.full(M, -1, np.int32), np.zeros(B, np.float32)
        spec = (True, bool(recompute), False, *loss_spec._replace(scale=1.0 / total),
                as_number(mtp_coef, "mtp_coef"), bool(mtp_detach),
                as_number(balance_coef, "balance_coef") / total, _micro_rows(micro_batch_tokens))
        with self._explained(batch, training=True, micro_batch_tokens=micro_batch_tokens, recompute=recompute):
            self._core.run(self.device, batch.ids, batch.start, batch.first, batch.group, w, advantages,
                           old, ref, spec, how.tuple(), logp, entropy, loss, kl, clipped, mtp_loss, draft,
                           balance if balance_coef else None)
        value = math.fsum(loss) + math.fsum(balance)
        value += mtp_coef / total * math.fsum(w.astype(np.float64) * mtp_loss)
        stats = token_stats(w != 0, logp, entropy, kl, clipped, sampled, old, correction)
        if mtp_coef:
            stats |= mtp_stats(batch, draft, mtp_loss, w != 0)
        if balance_coef:
            stats["balance_loss"] = math.fsum(balance)
        return Loss(value, int((w != 0).sum()), split_rows(logp, batch.lengths), stats)

    # ---- reward models --------------------------------------------------------------------------

    def score(self, ids: Sequence) -> np.ndarray:
        """Scalar head at the last token of each sequence: float32 (B)."""
        batch = self._pack(ids, [[]] * len(ids))
        out = np.empty(len(batch.lengths), np.float32)
        self._core.score(self.device, batch.ids, batch.start, batch.first, None,
                         (False, False, "pointwise", 1.0, _MICRO_TOKENS), out, None)
        return out

    def reward_gradient(self, ids: Sequence, kind: str = "pairwise", labels=None,
                        total: float | None = None, micro_batch_tokens: int | None = None,
                        recompute: bool = False) -> Loss:
        """Adds the gradient of a reward model's loss over B sequences, divided by total.

        pairwise: sequences alternate chosen, rejected; -log sigmoid(chosen - rejected), total defaults
        to the number of pairs. pointwise: cross-entropy of sigmoid(score) against labels in [0, 1]."""
        if kind not in ("pairwise", "pointwise"):
            raise ValueError(f"kind '{kind}' is neither 'pairwise' nor 'pointwise'")
        batch = self._pack(ids, [[]] * len(ids))
        B = len(batch.lengths)
        label = None if kind == "pairwise" else _labels(labels, B)
        if total is None:
            total = max(B // 2 if kind == "pairwise" else B, 1)
        score, loss = np.empty(B, np.float32), np.zeros(B, np.float32)
        self._core.score(self.device, batch.ids, batch.start, batch.first, label,
                         (True, bool(recompute), kind, 1.0 / as_number(total, "total", 1e-30),
                          _micro_rows(micro_batch_tokens)), score, loss)
        right = (score[0::2] > score[1::2]) if kind == "pairwise" else (score > 0) == (label > 0.5)
        return Loss(math.fsum(loss), B, [score], {"accuracy": float(np.mean(right)) if B else 0.0})

    # ---- update ---------------------------------------------------------------------------------

    def update(self, learning_rate: float, betas: tuple[float, float] = (0.9, 0.95),
               eps: float = 1e-8, weight_decay: float = 0.0, max_grad_norm: float = 1.0) -> float:
        """One AdamW step on the accumulated gradients, clipped to max_grad_norm (0: not clipped).
        Returns the norm before clipping; leaves the gradients alone. A norm that is not finite raises
        FloatingPointError and changes nothing. Norm weights and biases are not decayed."""
        below_one = 1.0 - 2.0**-24
        norm = self._core.update(
            self.device, as_number(learning_rate, "learning_rate"),
            as_number(betas[0], "betas[0]", 0.0, below_one),
            as_number(betas[1], "betas[1]", 0.0, below_one), as_number(eps, "eps"),
            as_number(weight_decay, "weight_decay"), as_number(max_grad_norm, "max_grad_norm"))
        if self.lora is None:
            self._base = NO_BASE
        return norm

    def update_router_bias(self, rate: float) -> None:
        """b += rate sign(mean load - load) from the loads since `zero_grad` (DeepSeek-V3 2.1.2)."""
        self._core.router_update(self.device, as_number(rate, "rate"))
        self._base = NO_BASE


def _micro_rows(tokens: int | None) -> int:
    return _MICRO_TOKENS if tokens is None else as_count(tokens, "micro_batch_tokens", 1)


def _labels(values, B: int) -> np.ndarray:
    """Labels in [0, 1] as float32 (B)."""
    label = per_token([] if values is None else values, np.ones(B, np.int64), "labels")
    if ((label < 0) | (label > 1)).any():
        raise ValueError("labels must be in [0, 1]")
    return label
