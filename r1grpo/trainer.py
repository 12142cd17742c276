"""trainer.py - what every trainer is: an iterator over steps, a state to go on from, a .train().

    for step in trainer: ...            one step = one update of the weights
    trainer.train()                     the same loop; Ctrl-C saves and stops

A step is computed in two halves. The first (sampling, rewards, gradient) may be interrupted at any
moment and changes nothing that counts: all of it is a function of (weights, seed, step) and is done
again. The second (update and bookkeeping) is short and a Ctrl-C waits for its end. So a trainer is
always between two steps, and state_dict() is everything an exact resume needs.

No decision reads a clock: step_time, tokens_per_second and peak_share (of what the processor could
compute at all, device.py) are for the eye, and alone may differ between two runs. Knows nothing about
rewards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checkpoint
from .brief import brief, brief_names
from .config import ConfigError, TrainingConfig
from .config.training import FREE_OPTIONS, LENGTH_OPTIONS
from .console import report
from .device import peak_flops
from .monitor import Progress
from .plan import check_fits, plan_training, resident_memory
from .tokenizer import end_of_text
from .trackers import open_trackers

Callback = Callable[["Trainer", dict[str, Any]], None]


def learning_rate_at(args: TrainingConfig, step: int, total_steps: int) -> float:
    """Learning rate of update `step` (0-based): linear warm-up, then constant, linear or cosine
    decay to min_lr_rate * learning_rate at the last step."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    if args.lr_scheduler_type == "constant":
        return args.learning_rate
    span = max(1, total_steps - 1 - args.warmup_steps)
    done = min(1.0, (step - args.warmup_steps) / span)
    linear = args.lr_scheduler_type == "linear"
    left = 1.0 - done if linear else 0.5 * (1.0 + math.cos(math.pi * done))
    return args.learning_rate * (args.min_lr_rate + (1.0 - args.min_lr_rate) * left)


@lru_cache(maxsize=4)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def data_order(rows: int, seed: int, start: int, count: int, shuffle: bool = True) -> list[int]:
    """Row indices start .. start + count of an endless stream: epoch e is the permutation that
    (seed, e) gives. A pure function, so no data position can be lost in a resume."""
    if rows < 1:
        raise ValueError("the dataset is empty")
    return [int(_permutation(rows, seed, p // rows)[p % rows]) if shuffle else p % rows
            for p in range(start, start + count)]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds a Ctrl-C back until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    caught: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *signal_frame: caught.append(signal_frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
    if caught and callable(before):
        before(*caught[0])


def fingerprint(rows: Sequence[Any]) -> str:
    """Hash of a dataset's rows, so that a resume with other data is noticed."""
    h = hashlib.blake2b(digest_size=16)
    for row in rows:
        h.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return h.hexdigest()


def prompt_ids_of(row: Any, processing_class: Any, where: str) -> list[int]:
    """Token ids of a row's prompt: 'prompt_ids', or 'prompt' as text, or as chat messages with, where
    the row has them, 'tools' and 'chat_template_kwargs'."""
    if "prompt_ids" in row:
        ids = [int(one) for one in row["prompt_ids"]]
    elif "prompt" not in row:
        raise ValueError(f"{where} has neither 'prompt' nor 'prompt_ids'; it has "
                         f"{brief_names(row)}; load_rows finds what columns mean, or takes columns=")
    elif processing_class is None:
        raise ValueError(f"{where} has a text prompt: give processing_class or 'prompt_ids'")
    elif isinstance(row["prompt"], str):
        ids = [*getattr(processing_class, "prefix_ids", ()),
               *processing_class.encode(row["prompt"])]
    else:
        ids = list(processing_class.apply_chat_template(row["prompt"], **chat_options(row)))
    if not ids:
        raise ValueError(f"{where} has an empty prompt")
    return ids


def chat_options(row: Any) -> dict[str, Any]:
    """What a row tells its chat template besides the messages."""
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {**tools, **(row.get("chat_template_kwargs") or {})}


def completion_ids_of(text: str, processing_class: Any) -> list[int]:
    """Token ids of what the model is to say, and the end: its thinking tags are tokens where the
    tokenizer has them, in prompts they are text."""
    encode = getattr(processing_class, "encode_completion", processing_class.encode)
    return [*encode(text), end_of_text(processing_class)]


def check_length(length: int, limit: int | None, option: str, model: Any, where: str) -> None:
    """Refuse what is longer than an option allows or than the model's context, before any work."""
    context = model.config.max_position_embeddings
    for most, name in ((limit, option), (context, "the model's context")):
        if most is not None and length > most:
            raise ValueError(f"{where} has {length} tokens, {name} is {most}; filter the data")


def require_options(trainer: str, args: Any, kind: type, *datasets: Any) -> None:
    """TypeError where `args` are something else: another trainer's or library's, or the dataset; and
    where a dataset is the name of one."""
    if args is not None and not isinstance(args, kind):
        raise TypeError(f"{trainer}: args is a {type(args).__module__}.{type(args).__name__}, "
                        f"expected an r1grpo.{kind.__name__}; give the dataset as train_dataset=")
    for one in datasets:
        if isinstance(one, (str, os.PathLike)):
            raise TypeError(f"{trainer}: a dataset is rows, and {brief(str(one))} a name; "
                            f"load_rows(FILE) reads a file")


def require_policy(trainer: str, model: Any) -> None:
    """ConfigError where the model is one that scores: its head of tokens may be nobody's."""
    if getattr(getattr(model, "config", None), "score_head", False):
        raise ConfigError(f"{trainer}: the model is a reward model: it scores text and writes none")


class Trainer:
    """The loop. A trainer gives _gradient, _commit and its part of the state."""

    def __init__(self, model: Any, args: TrainingConfig,
                 callbacks: Sequence[Callback] | None = None) -> None:
        if getattr(model, "frozen", False):
            raise ConfigError(f"{type(self).__name__}: the model is frozen; one that is trained is loaded "
                              "without frozen=True")
        if args.router_bias_rate and getattr(model, "lora", None) is not None:
            raise ConfigError(f"{type(args).__name__}: router_bias_rate: the routing bias is part of "
                              "the weights that adapters leave as they are")
        if args.offload_optimizer:
            model.offload_optimizer()
        self.model = model
        self.args = args
        self.callbacks = list(callbacks or [])  # each is called as f(trainer, metrics)
        for one in self.callbacks:
            if not callable(one):
                raise TypeError(f"{type(self).__name__}: callbacks holds a {type(one).__name__}, which "
                                "cannot be called: a callback is a function f(trainer, metrics)")
        self.step = 0  # updates done
        self.num_tokens = 0  # tokens in the loss so far
        self.processed_tokens = 0  # tokens trained on so far, prompts included
        self.log_history: list[dict[str, Any]] = []
        self._trackers = open_trackers(args.report_to, args.output_dir, args.run_name)

    def _require_memory(self, length: int, prompt_length: int | None = None,
                        sequences: int | None = None) -> None:
        """MemoryError with the plan's table where the run cannot fit, before its first step. What
        this process holds already counts as part of it: the model is loaded, perhaps trained.
        length: tokens of the longest row; prompt_length: of the longest prompt (GRPO); sequences:
        of an update, where they are more than per_device_train_batch_size (packing)."""
        if hasattr(self.model, "plan"):  # the tests' stand-ins have none
            plan = plan_training(self.model.config, self.args, self.model.dtype, length,
                                 prompt_length, self.model.lora, sequences, self.model.device_name)
            check_fits(plan, allocated=resident_memory(plan.device))

    # ---- what a trainer provides ----

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        raise NotImplementedError

    def _gradient(self) -> dict[str, Any]:
        """Leave the gradient of the next update in the model and return its metrics; 'num_tokens'
        is the number of tokens in this update's loss, 'processed_tokens' counts their prompts
        too; 'flops' is the work of it all (flops.py)."""
        raise NotImplementedError

    def _commit(self, metrics: dict[str, Any]) -> None:
        """Bookkeeping after an update; self.step already counts it."""

    def _state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON values beyond the model, the optimiser and the step."""
        return {}, {}

    def _load_state(self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
        """Take back what _state gave, or raise ConfigError or ValueError with nothing changed."""

    # ---- the loop ----

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """One step; returns its metrics."""
        if self.step >= self.total_steps:
            raise StopIteration
        args = self.args
        started = time.perf_counter()
        learning_rate = learning_rate_at(args, self.step, self.total_steps)
        metrics = self._gradient()
        with uninterrupted():
            norm = self.model.update(learning_rate, betas=(args.adam_beta1, args.adam_beta2),
                                     eps=args.adam_epsilon, weight_decay=args.weight_decay,
                                     max_grad_norm=args.max_grad_norm)
            if args.router_bias_rate:
                self.model.update_router_bias(args.router_bias_rate)
            self.step += 1
            self.num_tokens += metrics["num_tokens"]
            self.processed_tokens += metrics["processed_tokens"]
            self._commit(metrics)
            seconds = time.perf_counter() - started
            peak = peak_flops(self.model.dtype, self.model.device_name)
            metrics = {"step": self.step, **metrics, "grad_norm": float(norm),
                       "learning_rate": learning_rate, "step_time": seconds,
                       "tokens_per_second": metrics["processed_tokens"] / seconds,
                       "peak_share": metrics["flops"] / seconds / peak}
            self.log_history.append(metrics)
        for callback in self.callbacks:
            callback(self, metrics)
        self._trackers.log(dataclasses.asdict(args), self.step, metrics)
        if self.step == self.total_steps:
            self._trackers.finish()
        if args.save_steps and args.output_dir and self.step % args.save_steps == 0:
            self.save_checkpoint()
        return metrics

    def train(self, resume_from_checkpoint: str | Path | bool | None = None
              ) -> list[dict[str, Any]]:
        """Run to the last step and return log_history, with a bar on stderr (unless disable_tqdm)
        and what console.py says. resume_from_checkpoint: a checkpoint's folder, or True for the
        newest in output_dir. Ctrl-C saves a checkpoint (where output_dir is set) and is raised again;
        calling train() once more goes on."""
        if resume_from_checkpoint:
            self.load_checkpoint(None if resume_from_checkpoint is True else resume_from_checkpoint)
        try:
            with Progress(self.total_steps, type(self).__name__, self.step,
                          quiet=self.args.disable_tqdm) as bar:
                for metrics in self:
                    name = "reward" if "reward" in metrics else "loss"
                    bar.update(peak_share=metrics["peak_share"], **{name: metrics[name]})
                    bar.write(report(self, metrics))
        except KeyboardInterrupt:
            if self.args.output_dir:
                with uninterrupted():
                    self.save_checkpoint()
            raise
        return self.log_history

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """{'arrays': name -> array, 'meta': JSON values}: with the same dataset, and the same base
        where adapters are trained, all of an exact resume."""
        arrays, meta = self._state()
        arrays = {**arrays,
                  **{f"model/{k}": v for k, v in self.model.trained_state().items()},
                  **{f"optimizer/{k}": v for k, v in self.model.optimizer_state().items()}}
        return {"arrays": arrays,
                "meta": {**meta, "trainer": type(self).__name__, "step": self.step,
                         "num_tokens": self.num_tokens, "processed_tokens": self.processed_tokens,
                         "args": _fixed_options(self.args), "model": self._model_options()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse. A state of another run raises ConfigError or ValueError, and this trainer stays
        what it was."""
        arrays, meta = state["arrays"], state["meta"]
        if meta["trainer"] != type(self).__name__:
            raise ConfigError(f"this is the state of a {meta['trainer']}, not of a "
                              f"{type(self).__name__}")
        now, then = _fixed_options(self.args), meta["args"]
        if "model" in meta:  # older states say nothing of it
            now, then = {**now, **self._model_options()}, {**then, **meta["model"]}
        changed = [f"{k}: {brief(then.get(k))} -> {brief(now.get(k))}" for k in sorted(now.keys() | then)
                   if now.get(k) != then.get(k)]
        if changed:
            raise ConfigError(f"the saved run had other options: {'; '.join(changed)}")
        weights, moments = _under(arrays, "model/"), _under(arrays, "optimizer/")
        self.model.check_state(weights, moments)
        self._load_state(arrays, meta)
        self.model.load_trained_state(weights)
        self.model.load_optimizer_state(moments)
        self.step, self.num_tokens = int(meta["step"]), int(meta["num_tokens"])
        self.processed_tokens = int(meta["processed_tokens"])

    def _model_options(self) -> dict[str, Any]:
        """What else of the model its bits depend on, as JSON would give it back. The tests' stand-ins
        have nothing of it."""
        model, lora = self.model, getattr(self.model, "lora", None)
        adapters = {"lora": dataclasses.asdict(lora), "base": self._base} if lora else {"lora": None}
        return json.loads(json.dumps({
            "dtype": getattr(model, "dtype", None), "live_vocab": getattr(model, "live_vocab", None),
            **adapters}))

    @cached_property
    def _base(self) -> str:
        """Which weights stay as they are; read once, since all of them are."""
        return self.model.base_digest()

    def save_checkpoint(self) -> Path:
        """Write state_dict() to output_dir, whole or not at all; returns its folder."""
        if not self.args.output_dir:
            raise ConfigError("save_checkpoint needs output_dir")
        state, name = self.state_dict(), checkpoint.step_name(self.step)
        checkpoint.save_checkpoint(self.args.output_dir, name, state["arrays"], state["meta"])
        if self.args.save_total_limit is not None:
            checkpoint.prune_checkpoints(self.args.output_dir, self.args.save_total_limit, name)
        return Path(self.args.output_dir) / name

    def load_checkpoint(self, path: str | Path | None = None) -> None:
        """Load a checkpoint's folder; None: the newest valid one of output_dir."""
        if path is None and not self.args.output_dir:
            raise ConfigError("resume_from_checkpoint=True needs output_dir")
        saved = checkpoint.load_checkpoint(path) if path else \
            checkpoint.load_newest(str(self.args.output_dir))
        if saved is None:
            raise FileNotFoundError(f"no checkpoint in {self.args.output_dir}")
        self.load_state_dict({"arrays": saved.arrays, "meta": saved.meta})

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Save the model (config.json and safetensors) and its tokenizer, where it has one."""
        folder = output_dir or self.args.output_dir
        if not folder:
            raise ConfigError("save_model needs output_dir")
        self.model.save_pretrained(folder)
        tokenizer = getattr(self, "processing_class", None)
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(folder)


def _fixed_options(args: TrainingConfig) -> dict[str, Any]:
    """The options that a resumed run must share, as JSON would give them back."""
    free = FREE_OPTIONS | (LENGTH_OPTIONS if args.lr_scheduler_type == "constant" else set())
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(args).items()
                                  if k not in free}))


def _under(arrays: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
