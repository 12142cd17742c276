"""Model: one engine that samples and trains, on arrays.

Create, load, save; `generate`, `logprobs`; `sft_gradient`, `policy_gradient`, `reward_gradient` add
to the gradients, `update` takes an AdamW step. The log-probabilities that `generate` reports are, bit
for bit, those that `policy_gradient` computes (docs/numerics.md). Token ids in, token ids out: knows
nothing about text, rewards or trainers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _core
from .advantage import sequence_old_logprobs
from .batch import PackedBatch, as_count, as_number, pack, per_token, split_rows
from .checkpoint import write_folder
from .device import get_device
from .hub import find_folder
from .load_folder import ModelFolder, is_whole
from .lora import (LoraConfig, adapter_files, check_targets, is_adapter, merged, read_config,
                   read_tensors, start_adapters)
from .model_config import ModelConfig
from .plan import MICRO_TOKENS as _MICRO_TOKENS
from .plan import SLOTS as _SLOTS
from .plan import MemoryPlan, plan_memory
from .sampling import Filters, Rollout, Session
from .save_folder import model_files, stale_files
from .weights import from_hf, init_weights, to_hf

__all__ = ["Loss", "Model"]

DTYPES = ("float32", "bfloat16")


@dataclass
class Loss:
    """What a gradient call computed. `float(loss)` is the loss whose gradient was added.

    tokens: unmasked tokens; logprobs: one float32 array a completion, of the current weights;
    stats: figures over unmasked tokens (means, extremes, counts)."""

    value: float
    tokens: int
    logprobs: list[np.ndarray]
    stats: dict[str, float] = field(default_factory=dict)

    def __float__(self) -> float:
        return self.value


class LossSpec(NamedTuple):
    """r1_loss_spec of csrc/ops.h, field by field."""

    form: str = "nll"
    scale: float = 1.0
    eps_low: float = 0.0
    eps_high: float = 0.0
    delta: float = math.inf
    kl: str = "k3"
    kl_ratio: bool = False
    beta: float = 0.0
    entropy_coef: float = 0.0


class Model:
    """A transformer with its weights, gradients and optimiser state, in the C core.

    config: ModelConfig or a dict of its fields; seed: of the random weights (normal with
    `initializer_range`, norms 1, biases 0); device "cpu".

    dtype: "float32", or "bfloat16": products then see weights and their other operand rounded to
    bf16, and the KV cache holds bf16; sums, norms, softmax, losses, gradients, moments and the
    weights that an update moves stay float32 (docs/numerics.md).

    lora: low-rank adapters (r1grpo/lora.py); then they alone are trained."""

    def __init__(self, config: ModelConfig | dict[str, Any], seed: int | None = 0,
                 device: str = "cpu", dtype: str = "float32", lora: LoraConfig | None = None):
        if not isinstance(config, ModelConfig):
            config = ModelConfig.from_dict(config)
        if seed is not None:
            seed = as_count(seed, "seed", 0)
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, must be one of {', '.join(DTYPES)}")
        self.config = config
        self.device_name = device
        self.dtype = dtype
        self._carried: dict[str, bytes] = {}  # the folder's other files: see load_folder.py
        self.lora = lora
        sizes, *rope = config.core()
        self._core = _core.Model(get_device(device), {**sizes, **(lora.sizes() if lora else {})},
                                 *rope, dtype)
        self._params = self._core.params()
        if lora:
            check_targets(lora, [p[0] for p in self._params])
            self._core.adapter_scale = lora.scale
        if seed is not None:
            for i, array in init_weights(self._base_params, config, seed):
                self._write(i, "value", array)
            for i, array in start_adapters(self._params, seed):
                self._write(i, "value", array)

    @property
    def live_vocab(self) -> int:
        """Ids from here on have no probability and no gradient in the head: they are never sampled,
        and no softmax counts them. vocab_size unless set, to the tokenizer's size as a rule: published
        models pad the rows of their embedding."""
        return self._core.live_vocab

    @live_vocab.setter
    def live_vocab(self, size: int) -> None:
        self._core.live_vocab = as_count(size, "live_vocab", 1)

    # ---- weights -----------------------------------------------------------------------------

    @property
    def device(self) -> _core.Device:
        return get_device(self.device_name)

    def _read(self, i: int, what: str) -> np.ndarray:
        _, E, O, I, _ = self._params[i]  # noqa: E741 - the core's letters
        flat = np.empty(E * max(O, 1) * I, np.float32)
        self._core.read(self.device, i, what, flat)
        return flat.reshape((E, O, I) if O else (I,))

    def _write(self, i: int, what: str, array: np.ndarray) -> None:
        self._core.write(self.device, i, what, np.ascontiguousarray(array, np.float32).reshape(-1))

    @property
    def _base_params(self) -> list[tuple]:
        """Parameters without the adapters', which come last."""
        return [p for p in self._params if not is_adapter(p[0])]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Hugging Face tensor names -> float32 arrays (copies); one tensor an expert."""
        return to_hf((p[0], self._read(i, "value")) for i, p in enumerate(self._params))

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse. Missing, surplus and misshapen tensors raise ValueError naming them all, before
        anything is written."""
        if not isinstance(state, Mapping):
            raise TypeError(f"a state dict maps names to arrays, not {type(state).__name__}")
        for i, array in enumerate(from_hf(state, self._params, self.config)):
            self._write(i, "value", array)

    def grad_dict(self) -> dict[str, np.ndarray]:
        """Gradients accumulated since `zero_grad`, named and shaped as in `state_dict`."""
        return to_hf((p[0], self._read(i, "grad")) for i, p in enumerate(self._params) if p[4])

    def clone(self) -> Model:
        """An independent copy of the weights, without gradients or optimiser state."""
        other = self._empty(self.lora)
        other.copy_weights_from(self)
        return other

    def _empty(self, lora: LoraConfig | None) -> Model:
        """A model like this one but for the adapters, whose weights are still to be written."""
        other = Model(self.config, None, self.device_name, self.dtype, lora)
        other.live_vocab, other._carried = self.live_vocab, self._carried
        return other

    def copy_weights_from(self, other: Model, alpha: float = 1.0) -> None:
        """Takes the weights of a model of the same shape; with alpha below 1, in float32,
        alpha * theirs + (1 - alpha) * its own."""
        theirs = np.float32(as_number(alpha, "alpha", 0.0, 1.0))
        if [p[:4] for p in self._params] != [p[:4] for p in other._params]:
            raise ValueError("copy_weights_from: the models have different parameters")
        for i in range(len(self._params)):
            value = other._read(i, "value")
            if alpha != 1.0:
                value = theirs * value + np.float32(1.0 - alpha) * self._read(i, "value")
            self._write(i, "value", value)

    def num_parameters(self) -> dict[str, int]:
        """{"total", "active", "mtp"}: parameters of the model, those one token uses (its share of the
        routed experts), and those of the MTP module, which the first two leave out."""
        total = active = mtp = 0
        c = self.config
        for name, E, O, I, _ in self._params:  # noqa: E741
            n = E * max(O, 1) * I
            if name.startswith(f"model.layers.{c.num_hidden_layers}."):
                mtp += n
                continue
            total += n
            active += n * c.num_experts_per_tok // E if ".experts.*" in name else n
        return {"total": total, "active": active, "mtp": mtp}

    def plan(self, **options: Any) -> MemoryPlan:
        """The memory that this model and calls on it take: see `r1grpo.plan.plan_memory`."""
        return plan_memory(self.config, dtype=self.dtype, device=self.device_name, lora=self.lora,
                           **options)

    # ---- files -------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike, max_shard_size: int | str = "5GB",
                        dtype: str | None = None) -> None:
        """Writes a Hugging Face folder, whole or not at all: what transformers, vLLM and llama.cpp's
        converter load. dtype: "float32", "bfloat16" or "float16"; None: the model's own. The tokenizer's
        files and generation_config.json are those of the folder that the model was loaded from. Adapters
        are merged into the weights; save_adapter keeps them apart."""
        folder = Path(folder)
        write_folder(folder, model_files(self.config, self._base_params, self._read_merged,
                                         dtype or self.dtype, max_shard_size, self._carried),
                     stale_files(folder))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, device: str = "cpu", dtype: str = "float32",
                        revision: str | None = None, trust_remote_code: bool = False,
                        lora: LoraConfig | None = None, seed: int = 0) -> Model:
        """Loads a Hugging Face folder of safetensors: what `save_pretrained` wrote or others published.

        folder: a path, or an id of the hub ("org/name", with `revision`; needs huggingface_hub). Weights
        in float32, float16, bfloat16 or DeepSeek's FP8; shards; experts one by one or fused. A file that
        does not fit raises ValueError or FileNotFoundError before a weight is read. lora, seed: new
        adapters beside the weights (r1grpo/lora.py), which are then frozen."""
        if trust_remote_code:
            raise ValueError("trust_remote_code=True is refused: code of a model folder is never run; its "
                             "architecture must be one of those that this engine knows")
        with ModelFolder(find_folder(folder, revision, is_whole)) as source:
            model = cls(source.config, seed=None, device=device, dtype=dtype, lora=lora)
            for i, array in enumerate(source.arrays()):
                model._write(i, "value", array)
        for i, array in start_adapters(model._params, as_count(seed, "seed", 0)):
            model._write(i, "value", array)
        model._carried = source.files
        return model

    # ---- adapters ----------------------------------------------------------------------------

    def add_adapter(self, lora: LoraConfig, seed: int = 0) -> Model:
        """A copy of this model with new low-rank adapters, all else frozen; it samples the same bits
        until its first update. `from_pretrained(lora=...)` needs no second model while it is made."""
        if not isinstance(lora, LoraConfig):
            raise TypeError(f"the adapter's options are a {type(lora).__module__}."
                            f"{type(lora).__name__}, expected an r1grpo.LoraConfig")
        if self.lora:
            raise ValueError("this model has adapters already; merge() makes them part of its weights")
        other = self._empty(lora)
        for i in range(len(self._params)):
            other._write(i, "value", self._read(i, "value"))
        for i, array in start_adapters(other._params, as_count(seed, "seed", 0)):
            other._write(i, "value", array)
        return other

    def merge(self) -> Model:
        """A model without adapters whose weights are W + s B A (within rounding the same function)."""
        other = self._empty(None)
        for i in range(len(other._params)):
            other._write(i, "value", self._read_merged(i))
        return other

    def _read_merged(self, i: int) -> np.ndarray:
        value = self._read(i, "value")
        if self.lora is None:
            return value
        index = {p[0]: j for j, p in enumerate(self._params)}
        stem = self._params[i][0].removesuffix(".weight")
        down, up = index.get(f"{stem}.lora_A.weight"), index.get(f"{stem}.lora_B.weight")
        if down is None or up is None:
            return value
        return merged(value, self._read(down, "value"), self._read(up, "value"), self.lora.scale)

    def base_logprobs(self, prompt_ids: Sequence, completion_ids: Sequence, temperature: float = 1.0,
                      top_k: int | None = 0, top_p: float | None = 1.0,
                      min_p: float | None = 0.0) -> list[np.ndarray]:
        """`logprobs` without the adapters: the model that they were added to, and the reference of RL."""
        return self._logprobs(self._pack(prompt_ids, completion_ids),
                              Filters(temperature, top_k, top_p, min_p), base=True)

    def save_adapter(self, folder: str | os.PathLike, base: str = "") -> None:
        """Writes the adapters alone, as PEFT does; base: name or path of the model that they belong to."""
        if not self.lora:
            raise ValueError("this model has no adapter; save_pretrained writes its weights")
        tensors = to_hf((p[0], self._read(i, "value")) for i, p in enumerate(self._params)
                        if is_adapter(p[0]))
        write_folder(Path(folder), adapter_files(self.lora, tensors, base))

    def load_adapter(self, folder: str | os.PathLike) -> Model:
        """A copy of this model with the adapters of a folder that save_adapter or PEFT wrote."""
        folder = Path(folder)
        lora = read_config(folder)
        params = _core.Model.layout({**self.config.core()[0], **lora.sizes()})
        check_targets(lora, [p[0] for p in params])
        shapes = {name.replace("*", str(e)): (O, I) for name, E, O, I, _ in params  # noqa: E741
                  if is_adapter(name) for e in range(E)}
        found = read_tensors(folder, shapes)  # before anything of these sizes is allocated
        other = self.add_adapter(lora)
        for i, (name, E, *_) in enumerate(params):
            if is_adapter(name):
                other._write(i, "value",
                             np.stack([found[name.replace("*", str(e))] for e in range(E)]))
        return other

    # ---- sampling ----------------------------------------------------------------------------

    def session(self, prompts: Sequence, num_generations: int = 1, max_new_tokens: int = 128,
                temperature: float = 1.0, top_k: int | None = 0, top_p: float | None = 1.0,
                min_p: float | None = 0.0, seed: int = 0, step: int = 0,
                stop_token_ids: Sequence[int] | None = None,
                sample_ids: Sequence[int] | None = None) -> Session:
        """`generate` in slices: see `Session`."""
        how = Filters(temperature, top_k, top_p, min_p)
        stop = self.config.stop_ids() if stop_token_ids is None else stop_token_ids
        return Session(self._core, lambda: self.device, self.config, prompts, num_generations,
                       max_new_tokens, how, seed, step, stop, sample_ids, _SLOTS)

    def generate(self, prompts: Sequence, num_generations: int = 1, max_new_tokens: int = 128,
                 temperature: float = 1.0, top_k: int | None = 0, top_p: float | None = 1.0,
                 min_p: float | None = 0.0, seed: int = 0, step: int = 0,
                 stop_token_ids: Sequence[int] | None = None,
                 sample_ids: Sequence[int] | None = None, speculative: bool = False) -> Rollout:
        """Samples `num_generations` completions of each prompt.

        prompts: P sequences of token ids. Returns a Rollout of flat lists, completion g of prompt p at
        p * G + g. A stop token is included and has a log-prob; stop_token_ids None means the config's
        eos, () none. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and None are off. A draw depends
        on (seed, step, prompt index or sample_ids[p], g, position) and the tokens before alone."""
        if speculative:
            raise ValueError("speculative=True is not available yet: it needs MTP decoding")
        session = self.session(prompts, num_generations, max_new_tokens, temperature, top_k, top_p,
                               min_p, seed, step, stop_token_ids, sample_ids)
        while not session.done:
            session.run(64)
        return session.rollout()

    # ---- log-probs and gradients --------------------------------------------------------------

    def _pack(self, prompt_ids: Sequence, completion_ids: Sequence) -> PackedBatch:
        return pack(prompt_ids, completion_ids, self.config.vocab_size,
                    self.config.max_position_embeddings, self.live_vocab)

    def logprobs(self, prompt_ids: Sequence, completion_ids: Sequence, temperature: float = 1.0,
                 top_k: int | None = 0, top_p: float | None = 1.0,
                 min_p: float | None = 0.0) -> list[np.ndarray]:
        """Log-probability of every completion token, one float32 array a completion; completion i
        belongs to prompt i // ratio."""
        return self._logprobs(self._pack(prompt_ids, completion_ids),
                              Filters(temperature, top_k, top_p, min_p))

    def _logprobs(self, batch: PackedBatch, how: Filters, base: bool = False) -> list[np.ndarray]:
        out = np.empty(batch.targets, np.float32)
        spec = (False, False, base, *LossSpec(), 0.0, False, 0.0, _MICRO_TOKENS)
        if batch.targets:
            self._core.run(self.device, batch.ids, batch.start, batch.first, None, None, None, None,
                           spec, how.tuple(), out, None, None, None, None, None, None, None)
        return split_rows(out, batch.lengths)

    def zero_grad(self) -> None:
        """Clears the gradients (and the counts of tokens per expert)."""
        self._core.zero_grad(self.device)

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
                        balance_coef: float = 0.0, recompute: bool = False) -> Loss:
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
        must be those of the rollout. In RL the routing bias is left alone and balance_coef is 0."""
        if beta and ref_logprobs is None:
            raise ValueError("beta is not 0: ref_logprobs are needed")
        if loss not in ("clip", "cispo"):
            raise ValueError(f"loss {loss!r} is neither 'clip' nor 'cispo'")
        if loss == "cispo" and epsilon_high is None:
            raise ValueError("loss 'cispo' needs epsilon_high: the bound of the weight itself")
        if kl_estimator not in ("k1", "k2", "k3"):
            raise ValueError(f"kl_estimator {kl_estimator!r} is none of 'k1', 'k2', 'k3'")
        if importance_sampling_level not in ("token", "sequence"):
            raise ValueError(f"importance_sampling_level {importance_sampling_level!r} is neither "
                             f"'token' nor 'sequence'")
        batch = self._pack(prompt_ids, completion_ids)
        n, how = batch.lengths, Filters(temperature, top_k, top_p, min_p)
        sampled = old = per_token(old_logprobs, n, "old_logprobs")
        if importance_sampling_level == "sequence":
            now = self._logprobs(batch, how)
            old = per_token(sequence_old_logprobs(now, split_rows(sampled, n)), n, "old_logprobs")
        spec = LossSpec(
            loss, eps_low=as_number(epsilon, "epsilon"),
            eps_high=as_number(epsilon if epsilon_high is None else epsilon_high, "epsilon_high"),
            delta=math.inf if delta is None else as_number(delta, "delta", 1e-30),
            kl=kl_estimator, kl_ratio=bool(use_bias_correction_kl), beta=as_number(beta, "beta"),
            entropy_coef=as_number(entropy_coef, "entropy_coef", -3e38))
        return self._gradient(
            spec, batch, weights, total_tokens, micro_batch_tokens,
            advantages=per_token(advantages, n, "advantages"), sampled=sampled, old=old,
            ref=per_token(ref_logprobs, n, "ref_logprobs") if beta else None, how=how,
            mtp_coef=mtp_coef, mtp_detach=mtp_detach, balance_coef=balance_coef,
            recompute=recompute)

    def _gradient(self, loss_spec: LossSpec, batch: PackedBatch, weights, total_tokens: float | None,
                  micro_batch_tokens: int | None, *, advantages=None, sampled=None, old=None,
                  ref=None, how: Filters = Filters(), mtp_coef: float = 0.0,
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
        self._core.run(self.device, batch.ids, batch.start, batch.first, w, advantages, old, ref,
                       spec, how.tuple(), logp, entropy, loss, kl, clipped, mtp_loss, draft, balance)
        value = math.fsum(loss) + math.fsum(balance)
        value += mtp_coef / total * math.fsum(w.astype(np.float64) * mtp_loss)
        stats = _stats(w != 0, logp, entropy, kl, clipped, sampled, old)
        if mtp_coef:
            stats |= _mtp_stats(batch, draft, mtp_loss, w != 0)
        if balance_coef:
            stats["balance_loss"] = math.fsum(balance)
        return Loss(value, int((w != 0).sum()), split_rows(logp, batch.lengths), stats)

    # ---- reward models -------------------------------------------------------------------------

    def add_score_head(self, seed: int = 0) -> Model:
        """A copy of this model with a scalar head (zeros would rank nothing: it is drawn from seed)."""
        if self.lora:
            raise ValueError("this model has adapters; merge() makes them part of its weights first")
        config = ModelConfig.from_dict({**self.config.to_dict(), "score_head": True})
        other = Model(config, seed=seed, device=self.device_name, dtype=self.dtype)
        own = other.state_dict()
        other.load_state_dict({**own, **self.state_dict()})
        other._carried = self._carried
        return other

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

    # ---- update --------------------------------------------------------------------------------

    def update(self, learning_rate: float, betas: tuple[float, float] = (0.9, 0.95),
               eps: float = 1e-8, weight_decay: float = 0.0, max_grad_norm: float = 1.0) -> float:
        """One AdamW step on the accumulated gradients, clipped to max_grad_norm (0: not clipped).
        Returns the norm before clipping; leaves the gradients alone. A norm that is not finite raises
        FloatingPointError and changes nothing. Norm weights and biases are not decayed."""
        below_one = 1.0 - 2.0**-24
        return self._core.update(
            self.device, as_number(learning_rate, "learning_rate"),
            as_number(betas[0], "betas[0]", 0.0, below_one),
            as_number(betas[1], "betas[1]", 0.0, below_one), as_number(eps, "eps"),
            as_number(weight_decay, "weight_decay"), as_number(max_grad_norm, "max_grad_norm"))

    def update_router_bias(self, rate: float) -> None:
        """b += rate sign(mean load - load) from the loads since `zero_grad` (DeepSeek-V3 2.1.2)."""
        self._core.router_update(self.device, as_number(rate, "rate"))

    def optimizer_state(self) -> dict[str, np.ndarray]:
        """Adam's moments "m.NAME", "v.NAME" and "step" (uint64): all that `update` remembers."""
        state = {"step": np.array([self._core.step], np.uint64)}
        for i, (name, *_, trained) in enumerate(self._params):
            if trained:
                state |= {f"m.{name}": self._read(i, "m"), f"v.{name}": self._read(i, "v")}
        return state

    def load_optimizer_state(self, state: dict[str, np.ndarray]) -> None:
        """The reverse of `optimizer_state`."""
        names = {p[0] for p in self._params if p[4]}
        expected = {"step"} | {f"{k}.{name}" for k in "mv" for name in names}
        if expected != set(state):
            raise ValueError(f"optimizer state differs in {sorted(expected ^ set(state))[:5]}")
        for i, (name, *_, trained) in enumerate(self._params):
            if trained:
                self._write(i, "m", state[f"m.{name}"])
                self._write(i, "v", state[f"v.{name}"])
        self._core.step = int(state["step"][0])

    def reset_optimizer(self) -> None:
        """Moments to zero, step to 0."""
        for i, (_, E, O, I, trained) in enumerate(self._params):  # noqa: E741
            if trained:
                zeros = np.zeros(E * max(O, 1) * I, np.float32)
                self._write(i, "m", zeros)
                self._write(i, "v", zeros)
        self._core.step = 0


def _micro_rows(tokens: int | None) -> int:
    return _MICRO_TOKENS if tokens is None else as_count(tokens, "micro_batch_tokens", 1)


def _labels(values, B: int) -> np.ndarray:
    """Labels in [0, 1] as float32 (B)."""
    label = per_token([] if values is None else values, np.ones(B, np.int64), "labels")
    if ((label < 0) | (label > 1)).any():
        raise ValueError("labels must be in [0, 1]")
    return label


def _stats(mask, logp, entropy, kl, clipped, sampled, old) -> dict[str, float]:
    """Figures over unmasked tokens; means in float64. The gap is to the sampler's log-probs, the
    ratio to old, which differs from them at the sequence level."""
    if not mask.any():
        return {}
    n = int(mask.sum())
    stats = {"entropy": math.fsum(entropy[mask]) / n, "logp_mean": math.fsum(logp[mask]) / n}
    if old is not None:
        difference = logp[mask].astype(np.float64) - sampled[mask]
        ratio = np.exp(logp[mask].astype(np.float64) - old[mask])
        stats |= {
            "logp_gap_max": float(np.abs(difference).max()), "logp_gap_tokens": n,
            "logp_gap_mean": math.fsum(np.abs(difference)) / n,
            "ratio_min": float(ratio.min()), "ratio_max": float(ratio.max()),
            "ratio_mean": math.fsum(ratio) / n, "kl": math.fsum(kl[mask]) / n,
            "clip_low": float((clipped[mask] < 0).mean()),
            "clip_high": float((clipped[mask] > 0).mean()),
        }
    return stats


def _mtp_stats(batch: PackedBatch, draft, mtp_loss, mask) -> dict[str, float]:
    """mtp_loss: mean -log p of the MTP module; mtp_accept: share of tokens that its most likely guess,
    made one position earlier, hits."""
    rows = np.concatenate([np.arange(f, e - s) + s for f, s, e in
                           zip(batch.first, batch.start, batch.start[1:], strict=False)])
    seen = mask & (draft >= 0)
    if not seen.any():
        return {}
    hit = draft[seen] == batch.ids[rows][seen]
    return {"mtp_loss": math.fsum(mtp_loss[seen]) / int(seen.sum()), "mtp_accept": float(hit.mean())}
