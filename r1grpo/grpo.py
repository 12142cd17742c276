"""grpo.py - GRPO, the data flow about one statement an arrow. Start reading here.

    problems -> rollout -> rewards -> advantages -> mini-batches      GRPOTrainer._explore
    mini-batch -> token weights -> gradient                           GRPOTrainer._gradient
    gradient -> update                                                Trainer.__next__

Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300), eq. 3, with eq. 4 for the KL:

    L = - sum_i w_i sum_t [ min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A) - beta k3 ]
    rho_it = pi(o_it) / pi_old(o_it)       k3 = e^d - d - 1,  d = log pi_ref - log pi
    A_i    = (r_i - mean of its group) / std of its group         (DeepSeek-R1, eq. 3)

Other losses (delta, cispo, sequence ratios, k1, k2) stand in csrc/cpu/token_loss.c.

As in DeepSeek-R1 a rollout is split at random into steps_per_generation mini-batches, one update
each, num_iterations times over (there: once); a step is one update. log pi_old is what the sampler
reported: the engine samples and trains with the same kernels, so at the first update of a rollout
rho is exactly 1. That is measured: max_logprob_gap over gap_tokens must read 0.0. Where it does not, on
device "cuda/fast", log pi_old is a training forward's and A of a token is multiplied by
min(pi_old / pi_sampled, importance_sampling_cap). The reference is
the policy of at most ref_model_sync_steps updates ago, by hard copy, or with ref_model_mixup_alpha
below 1 a mixture.

Our choices: dynamic sampling draws new prompts only for the groups still missing; if the bound is
reached, groups without variance fill the batch (they move nothing but the KL term). Draws are a
function of (seed, step of the rollout, running number of the prompt, generation, position).
Knows nothing about tasks, templates or what a reward means.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .advantage import (group_advantages, separate_advantages, token_advantages, token_weights,
                        zero_variance)
from .config import ConfigError, GRPOConfig
from .flops import sampling_flops
from .folder import model_and_tokenizer
from .grpo_metrics import completion_metrics, rollout_guards, update_metrics, without_canaries
from .guards import audited_samples
from .judging import FailureWindow, RewardError, Scores
from .reward_model import TextReward, reward_functions
from .rollout import Completions, Ended, fit_vocabulary, rollout
from .samples import sample_rows
from .scoring import RewardFunction, Rewards, VerdictLog, pack_rollout, unpack_rollout
from .trainer import (Callback, Trainer, check_length, data_order, fingerprint, prompt_ids_of,
                      require_options, require_policy)
from .verifiers import VerifierPool

Row = dict[str, Any]
Logprobs = list[NDArray[np.float32]]
Dataset = Sequence[Row] | Callable[[int], Sequence[Row]]

_THEIRS = {  # arguments of TRL's trainer that are not here, and what is
    "tokenizer": "is called processing_class",
    "quantization_config": "is not supported: weights are float32 or bfloat16; LoraConfig keeps "
                           "optimiser state for adapters alone",
    "optimizers": "is not supported: the optimiser is AdamW, its numbers stand in GRPOConfig",
    "tools": "is not supported: completions are one turn of text",
    "rollout_func": "is not supported: sampling and training are one engine here",
    "environment_factory": "is not supported: rewards are functions of completions"}
_TRIAL_TOKENS = 32
_EVAL_SAMPLE_ID = 1 << 30  # evaluation draws share no sample id with training


@dataclass
class Batch:
    """A scored rollout of P prompts, n = P G completions, and how far training has come with it."""

    step: int  # the trainer's step when it was sampled
    rows: list[Row]  # (P)
    indices: list[int]  # (P) in the dataset of that step
    completions: Completions
    parts: NDArray[np.float64]  # (n, reward functions), NaN: not applicable
    reasons: dict[str, list[str | None]]  # (n) of the reward functions that give Verdicts
    advantages: NDArray[np.float32]  # (n)
    metrics: dict[str, float]
    cursor: int  # position in the data stream behind this rollout
    failures: FailureWindow  # of verifiers, this rollout included
    position: int = 0  # mini-batches done
    flops: float = 0.0  # operations of sampling
    guards: dict[str, float] = field(default_factory=dict)  # of all that was sampled (guards.py)
    reference: Logprobs | None = None  # (n) of the reference, once made
    trained: Logprobs | None = None  # (n) the policy's then, by a training forward

    def mini_batches(self, seed: int, count: int) -> list[NDArray[np.int64]]:
        """The random split of the rollout: a function of (seed, step)."""
        order = np.random.default_rng([seed, self.step, 1]).permutation(len(self.completions))
        return [np.sort(part) for part in np.array_split(order, count)]


class GRPOTrainer(Trainer):
    """for step in GRPOTrainer(model, reward_funcs, args, train_dataset): ...

    train_dataset: rows with 'prompt' (text, or messages) or 'prompt_ids', and the columns that the
    reward functions read; or a function step -> rows, for a curriculum (it must be pure).
    model: a Model, or the folder of one, whose tokenizer is then the default of processing_class.
    reward_funcs: functions (scoring.py), or folders of reward models (reward_model.py).
    callbacks: each is called as f(trainer, metrics) after a step. peft_config: a LoraConfig; then
    `model` of the trainer is a copy with adapters, which alone are trained. `batch` is the rollout in
    work. audit_funcs: verifiers that are asked about audit_share of the samples; what they say is logged
    and nothing else. Rows with a true column `canary` cannot be solved and are not learned from (guards.py).
    """

    args: GRPOConfig

    def __init__(self, model: Any, reward_funcs: RewardFunction | str | Sequence[Any],
                 args: GRPOConfig | None = None, train_dataset: Dataset = (),
                 eval_dataset: Sequence[Row] | None = None, processing_class: Any = None,
                 callbacks: Sequence[Callback] | None = None, peft_config: Any = None,
                 reward_processing_classes: Any = None,
                 audit_funcs: RewardFunction | Sequence[RewardFunction] = (),
                 **theirs: Any) -> None:
        for name in theirs:
            raise TypeError(f"GRPOTrainer: argument {name!r} " + _THEIRS.get(name, "is unknown"))
        require_options("GRPOTrainer", args, GRPOConfig, train_dataset, eval_dataset)
        args = args or GRPOConfig()
        model, processing_class = model_and_tokenizer(model, processing_class, peft_config,
                                                      args.seed)
        require_policy("GRPOTrainer", model)
        super().__init__(model, args, callbacks)
        self.rewards = Rewards(
            reward_functions(reward_funcs, reward_processing_classes), args.reward_weights,
            VerifierPool(args.verifier_workers, args.verifier_deadline, args.verifier_memory << 20),
            audit_funcs)
        self.dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.processing_class = processing_class
        if self.args.stop_strings and processing_class is None:
            raise ConfigError("GRPOConfig: stop_strings needs a processing_class")
        fit_vocabulary(model, processing_class)
        longest = max(len(self._prompt(row, f"train_dataset row {i}"))
                      for i, row in enumerate(self._rows(0)))
        for i, row in enumerate(eval_dataset or ()):
            self._prompt(row, f"eval_dataset row {i}")
        adapted = getattr(model, "lora", None) is not None
        for name in ("sync_ref_model", "ref_model_offload"):
            if adapted and getattr(self.args, name):
                raise ConfigError(f"GRPOConfig: {name}: the reference of a model with adapters is the "
                                  "model without them, which does not move and takes no memory")
        self._check_reward_models(longest)
        self._require_memory(longest, longest)
        # a model with adapters is its own reference, without them
        self.reference = self._make_reference() if self.args.beta > 0 and not adapted else None
        self.verdicts = VerdictLog(self.args.output_dir and
                                   Path(self.args.output_dir) / "verdicts.jsonl", self.rewards.names)
        self.batch: Batch | None = None
        self.max_logprob_gap = 0.0  # over the whole run, at the first update of each rollout
        self.gap_tokens = 0
        self.sampled_tokens = 0  # of all rollouts, groups that dynamic sampling dropped included
        self._tried = False

    @property
    def total_steps(self) -> int:
        """Updates of the whole run; an epoch visits every prompt once."""
        if self.args.max_steps is not None:
            return self.args.max_steps
        rollouts = self.args.num_train_epochs * len(self._rows(0)) / self.args.prompts_per_rollout
        return math.ceil(rollouts) * self.args.updates_per_rollout

    def _check_reward_models(self, longest: int) -> None:
        """Of those that read a context of their own; longest: tokens of the longest prompt."""
        limit = self.args.max_completion_length
        most = limit if isinstance(limit, int) else max(length for _, length in limit)
        most = min(most, self.model.config.max_position_embeddings - longest)
        for one in self.rewards.functions:
            if isinstance(one, TextReward):
                one.check_context([row.get("prompt", row.get("prompt_ids")) for row in self._rows(0)], most)

    def _make_reference(self) -> Any:
        """A copy of the policy as it is now, with what log-probs need and no more."""
        kind = self.args.reference_kind(self.model.dtype)
        if kind == "master":
            return self.model.clone()
        folder = self.args.output_dir or tempfile.gettempdir()
        return self.model.freeze(offload=folder if kind == "offloaded" else None)

    # ---- problems -> rollout -> rewards -> advantages ----

    def _explore(self) -> Batch:
        args, rows = self.args, self._rows(self.step)
        cursor = self.batch.cursor if self.batch else 0
        failures = self.batch.failures if self.batch else FailureWindow(args.verifier_failures)
        wanted, drawn, found = args.prompts_per_rollout, 0, 0
        indices, sampled, judged = [], [], []
        for attempt in range(args.max_num_gen_batches if args.filter_zero_std_samples else 1):
            chosen = data_order(len(rows), args.seed, cursor, wanted - found, args.shuffle_dataset)
            completions, scores, reference = self._sample_and_score(
                attempt, [rows[i] for i in chosen], range(drawn, drawn + len(chosen)))
            failures = failures.add(scores, args.num_generations)
            self.verdicts.write(self.step, attempt, completions, scores, sample_rows(
                self.step, attempt, self.rewards, [rows[i] for i in chosen], completions, scores))
            cursor, drawn = cursor + len(chosen), drawn + len(chosen)
            indices += chosen
            sampled.append(completions)
            judged.append(scores)
            problems = [rows[i] for i in indices]
            learned = without_canaries(Scores.join(judged), problems)
            dull = self._dull(learned.parts)
            found = int((~dull).sum())
            if found == wanted:
                break
        everything, scores = Completions.join(sampled), Scores.join(judged)
        metrics = completion_metrics(self.rewards, everything, learned)
        metrics["sampled_tokens"] = sum(map(len, everything.completion_ids))
        if everything.drafts[0]:
            metrics["speculative_acceptance"] = everything.drafts[1] / everything.drafts[0]
        # where more was sampled than needed: groups with something to compare come first
        groups = sorted(np.argsort(dull, kind="stable")[:wanted].tolist())
        flat = [i for g in groups for i in everything.group(g)]
        parts = scores.parts[flat]
        done = everything.select(groups)
        return Batch(self.step, [problems[g] for g in groups], [indices[g] for g in groups],
                     done, parts,
                     {name: [reasons[i] for i in flat] for name, reasons in scores.reasons.items()},
                     self._compare(learned.parts[flat]), metrics, cursor, failures,
                     guards=rollout_guards(self.rewards, problems, everything, scores),
                     flops=sampling_flops(self.model.config, [*map(len, everything.prompt_ids)],
                                          [*map(len, everything.completion_ids)]),
                     reference=reference, trained=self._trained_logprobs(done))

    def _compare(self, parts: NDArray[np.float64]) -> NDArray[np.float32]:
        """Advantages (n) of rewards by part (n, parts)."""
        args = self.args
        if args.multi_objective_aggregation == "normalize_then_sum":
            return separate_advantages(*self.rewards.counted(parts), args.num_generations,
                                       args.std_ddof)
        return group_advantages(self.rewards.total(parts), args.num_generations, args.scale_rewards,
                                args.std_ddof)

    def _dull(self, parts: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(groups) whether a group has nothing to compare, in the sum or in any reward."""
        separate = self.args.multi_objective_aggregation == "normalize_then_sum"
        compared = self.rewards.counted(parts)[0].T if separate else [self.rewards.total(parts)]
        return np.all([zero_variance(one, self.args.num_generations) for one in compared], axis=0)

    def _rows(self, step: int) -> Sequence[Row]:
        rows = self.dataset(step) if callable(self.dataset) else self.dataset
        if not len(rows):
            raise ValueError("train_dataset is empty")
        return rows

    def _prompt(self, row: Row, where: str) -> list[int]:
        ids = prompt_ids_of(row, self.processing_class, where)
        check_length(len(ids), self.args.max_prompt_length, "max_prompt_length", self.model,
                     f"{where}: its prompt")
        return ids

    def _sample(self, prompts: Sequence[list[int]], group_size: int, step: int, sample_ids: range,
                tell: Callable[[Ended], None] | None = None) -> Completions:
        return rollout(self.model, prompts, group_size, self.args.sampling(self.step),
                       self.args.stop_strings, self.processing_class, self.args.seed, step,
                       list(sample_ids), tell)

    def _sample_and_score(self, attempt: int, rows: Sequence[Row], sample_ids: range
                          ) -> tuple[Completions, Scores, Logprobs | None]:
        """A rollout and its verdicts; a resumed run replays those that are on disk. While pooled
        functions are waited for, the reference scores it, where all of it will be trained on."""
        prompts, size = [self._prompt(row, "a row") for row in rows], self.args.num_generations
        audited = audited_samples(len(rows) * size, self.args.audit_share, self.args.seed, self.step,
                                  attempt) if self.rewards.audits else ()
        with self.rewards.judging(rows, prompts, size, audited) as judging:
            early = judging.pooled and not self.verdicts.foresees(self.step, attempt)
            done = self._sample(prompts, size, self.step, sample_ids, judging.begin if early else None)
            known, reference = self.verdicts.recall(self.step, attempt, done), None
            if early and not self.args.filter_zero_std_samples:
                reference = self._reference_logprobs(done)
            return done, known or judging.finish(done), reference

    def _reference_logprobs(self, done: Completions) -> Logprobs | None:
        """Log-probs of completions under the reference (n); None without one."""
        if self.args.beta == 0:
            return None
        logprobs = self.reference.logprobs if self.reference else self.model.base_logprobs
        return logprobs(done.prompt_ids, done.completion_ids, **self.args.sampling().filters())

    def _trained_logprobs(self, done: Completions) -> Logprobs | None:
        """(n) log-probs of the policy that sampled, by a training forward; None: the sampler's are."""
        correct = self.args.importance_sampling_correction
        if correct is None:
            correct = not self.model.exact
        return self.model.logprobs(done.prompt_ids, done.completion_ids,
                                   **self.args.sampling().filters()) if correct else None

    # ---- mini-batch -> token weights -> gradient ----

    def _gradient(self) -> dict[str, Any]:
        args = self.args
        if not self._tried:
            self.try_rewards()
        if self.batch is None or self.batch.position == args.updates_per_rollout:
            self.batch = self._explore()
        batch, done = self.batch, self.batch.completions
        parts = batch.mini_batches(args.seed, args.steps_per_generation)
        chosen = parts[batch.position % args.steps_per_generation]
        groups = [i // done.group_size for i in chosen.tolist()]
        prompts = [done.prompt_ids[p] for p in groups]
        ids = [done.completion_ids[i] for i in chosen]
        sampled = [done.logprobs[i] for i in chosen]
        old = [batch.trained[i] for i in chosen] if batch.trained else sampled
        keep = np.array([not (args.mask_truncated_completions and done.finish_reasons[i] == "length"
                              or batch.rows[i // done.group_size].get("canary"))
                         for i in chosen], np.float32)
        weights = token_weights([len(one) for one in ids], keep, args.loss_type,
                                args.completion_length(batch.step), args.bnpo_batch_size)
        filters = args.sampling().filters()
        if batch.reference is None:  # it has moved, or the run was resumed
            batch.reference = self._reference_logprobs(done)
        reference = batch.reference
        advantages = token_advantages(batch.advantages[chosen], self.rewards.returns(ids, batch.parts[chosen]))
        self.model.zero_grad()
        loss = self.model.policy_gradient(
            prompts, ids, advantages=advantages, weights=weights, old_logprobs=old,
            ref_logprobs=[reference[i] for i in chosen] if reference else None,
            loss="cispo" if args.loss_type == "cispo" else "clip",
            epsilon=args.epsilon, epsilon_high=args.epsilon_high, delta=args.delta,
            importance_sampling_level=args.importance_sampling_level, beta=args.beta,
            kl_estimator=args.kl_estimator, use_bias_correction_kl=args.use_bias_correction_kl,
            total_tokens=1.0, micro_batch_tokens=args.micro_batch_tokens,
            mtp_coef=args.mtp_coef, mtp_detach=args.mtp_detach, balance_coef=args.balance_coef,
            entropy_coef=args.entropy_coef, recompute=args.gradient_checkpointing, groups=groups,
            sampled_logprobs=sampled if batch.trained else None,
            importance_sampling_cap=args.importance_sampling_cap, **filters)
        found = update_metrics(args, self.model, batch, prompts, ids, groups, old, advantages, keep,
                               loss)
        return {**found, "epoch": batch.cursor / len(self._rows(batch.step))}

    def _commit(self, metrics: dict[str, Any]) -> None:
        assert self.batch is not None
        if self.batch.position == 0:
            # np.maximum: a NaN gap stays a NaN, it must not pass for a small one
            self.max_logprob_gap = float(np.maximum(self.max_logprob_gap,
                                                    metrics["max_logprob_gap"]))
            self.gap_tokens += metrics["gap_tokens"]
            self.sampled_tokens += metrics["sampled_tokens"]
        self.batch.position += 1
        if self.reference and self.args.sync_ref_model \
                and self.step % self.args.ref_model_sync_steps == 0:
            self.reference.copy_weights_from(self.model, self.args.ref_model_mixup_alpha)
            self.batch.reference = None
        if self.step == self.total_steps:
            self.rewards.pool.close()

    # ---- before, beside and after the loop ----

    def try_rewards(self) -> None:
        """Ask the reward functions about two short samples of a row for each reward model and each
        route that the first and the last dataset name, so that a faulty one fails now."""
        sampling = self.args.sampling(self.step)
        rows: dict[Any, Row] = {}
        for step in (self.step, self.total_steps - 1):
            for row in self._rows(step):
                name = row.get("reward_model")  # verl's column of this name holds no name
                route = frozenset(self.rewards.route(row))
                rows.setdefault((name if isinstance(name, str) else None, route), row)
        short = dataclasses.replace(sampling, max_completion_length=min(
            _TRIAL_TOKENS, sampling.max_completion_length))
        tried = list(rows.values())
        prompts = [self._prompt(row, "a row") for row in tried]
        scores = self.rewards.score(tried, rollout(self.model, prompts, 2, short, (),
                                                   self.processing_class, self.args.seed),
                                    range(2 * len(tried)))
        if scores.details:
            raise RewardError(f"a verifier failed at its trial: {'; '.join(scores.details)}")
        self._tried = True

    def evaluate(self) -> dict[str, float]:
        """Mean rewards and lengths on eval_dataset, names prefixed with 'eval_'. The draws are the
        same at every call, so two calls differ by the weights alone."""
        if not self.eval_dataset:
            raise ValueError("evaluate needs an eval_dataset")
        group = self.args.num_generations_eval or self.args.num_generations
        ids = range(_EVAL_SAMPLE_ID, _EVAL_SAMPLE_ID + len(self.eval_dataset))
        prompts = [self._prompt(row, "a row") for row in self.eval_dataset]
        completions = self._sample(prompts, group, 0, ids)
        scores = self.rewards.score(self.eval_dataset, completions)
        return {f"eval_{k}": v for k, v in completion_metrics(
            self.rewards, completions, scores).items()}

    def completion_rows(self) -> Iterator[dict[str, Any]]:
        """The rollout in work as JSON rows, for completions.jsonl or a look inside."""
        if self.batch is None:
            return
        done = self.batch.completions
        for i in range(len(done)):
            row = self.batch.rows[i // done.group_size]
            yield {"step": self.batch.step, "problem_key": row.get("problem_key"),
                   "task": row.get("task"), "language": row.get("language"),
                   "prompt": row.get("prompt"), "completion": done.texts[i],
                   "completion_ids": done.completion_ids[i].tolist(),
                   "logprobs": done.logprobs[i].tolist(),
                   "rewards": {name: None if math.isnan(v) else v for name, v in
                               zip(self.rewards.names, self.batch.parts[i].tolist())},
                   **({"verdicts": {name: reasons[i] for name, reasons in self.batch.reasons.items()}}
                      if self.batch.reasons else {}),
                   "advantage": float(self.batch.advantages[i]),
                   "finish_reason": done.finish_reasons[i]}

    # ---- state ----

    def _state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        meta: dict[str, Any] = {"max_logprob_gap": self.max_logprob_gap,
                                "gap_tokens": self.gap_tokens,
                                "sampled_tokens": self.sampled_tokens,
                                "rewards": self.rewards.signature,
                                "dataset": fingerprint(self._rows(self.step))}
        if self.reference:
            arrays = {f"reference/{k}": v for k, v in self.reference.state_dict().items()}
        if self.batch:
            batch = self.batch
            arrays |= pack_rollout(batch.completions)
            arrays |= {"rollout/parts": batch.parts, "rollout/advantages": batch.advantages}
            if batch.trained:
                arrays["rollout/trained"] = np.concatenate(batch.trained)
            meta["rollout"] = {"step": batch.step, "indices": batch.indices,
                               "metrics": batch.metrics, "cursor": batch.cursor,
                               "position": batch.position, "flops": batch.flops,
                               "guards": batch.guards,
                               "reasons": batch.reasons, "failures": batch.failures.counts,
                               "finish_reasons": batch.completions.finish_reasons}
        return arrays, meta

    def _load_state(self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
        if meta["dataset"] != fingerprint(self._rows(int(meta["step"]))):
            raise ConfigError("the saved run had another train_dataset")
        now = self.rewards.signature
        then = meta.get("rewards", now)  # older states say nothing of them
        if then != now:
            raise ConfigError(f"the saved run had other reward functions, or other weights of them: "
                              f"{_listed(then)} -> {_listed(now)}")
        batch, saved = None, meta.get("rollout")
        if saved:
            rows = self._rows(saved["step"])
            completions = unpack_rollout(arrays, saved["finish_reasons"], self.processing_class)
            batch = Batch(saved["step"], [rows[i] for i in saved["indices"]], saved["indices"],
                          completions, arrays["rollout/parts"], saved.get("reasons", {}),
                          arrays["rollout/advantages"], saved["metrics"], saved["cursor"],
                          FailureWindow(self.args.verifier_failures, saved.get("failures", ())),
                          saved["position"], saved.get("flops", 0.0), saved.get("guards", {}))
            if "rollout/trained" in arrays:
                ends = np.cumsum(arrays["rollout/completion_lengths"])[:-1]
                batch.trained = np.split(arrays["rollout/trained"], ends)
        self.verdicts.load()  # checks before it changes anything, and so does this:
        if self.reference:
            self.reference.load_state_dict({k.removeprefix("reference/"): v
                                            for k, v in arrays.items()
                                            if k.startswith("reference/")})
        self.batch = batch
        self.max_logprob_gap, self.gap_tokens = meta["max_logprob_gap"], meta["gap_tokens"]
        self.sampled_tokens = meta["sampled_tokens"]


def _listed(rewards: Sequence[Sequence[Any]]) -> str:
    """A signature of Rewards as words."""
    return ", ".join(f"{name} {weight:g}" for name, weight in rewards)
