"""sft.py - supervised fine-tuning, and pre-training, which is the same loss over other rows.

    L = sum w * (-log pi(token)) / sum w        over the completion tokens of the rows of one update

Row (one of)                                     prompt                     completion
    prompt_ids, completion_ids [, weights]       as given                   as given
    prompt (text or messages), completion        encoded                    encoded, end of text
    ids                                          the first token            the others
    text                                         the first token            the others, end of text
    messages                                     those before a turn        that turn, end of text

A conversation gives one example for every turn of the assistant, behind the prompt that the
template makes of the messages before it: the one that the model meets when it is asked, earlier
reasoning left out where the template leaves it out (chat_targets.py, for tokenizers with a template
that can be looked into). A completion may be text or one message. Where the template has written
<think> already, the completion's own is left out.

weights: one number a completion token, 0 leaves a token out. A batch is per_device_train_batch_size
rows, or with packing bins of rows (packing.py), and may straddle two epochs, so every row is used
once an epoch (the last batch is filled up from the next). A row longer than max_length, or than the
model's context, is refused before any work, or as truncation_mode says dropped or cut at its end;
a cut row has lost its end-of-text token, so it teaches not to stop: refuse is the default. MTP and
balance losses and the routing bias follow their options. DeepSeek-R1's numbers are SFTConfig.r1()
and .distill(). Knows nothing about rewards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .brief import brief_names
from .chat_targets import chat_examples
from .config import ConfigError, SFTConfig
from .flops import gradient_flops, whole_sequences
from .folder import model_and_tokenizer
from .packing import best_fit_decreasing
from .rollout import fit_vocabulary
from .tokenizer import THINK
from .trainer import (Callback, Trainer, chat_options, check_length, completion_ids_of, data_order,
                      fingerprint, prompt_ids_of, require_options, require_policy)

_THEIRS = {  # arguments of TRL's trainer that are not here, and what is
    "tokenizer": "is called processing_class",
    "formatting_func": "is not supported: make rows of prompt and completion, or of messages",
    "data_collator": "is not supported: rows are never padded",
    "compute_loss_func": "is not supported: weights of a row say what counts",
    "compute_metrics": "is not supported: callbacks read the metrics of every step",
    "quantization_config": "is not supported: weights are float32 or bfloat16",
    "optimizers": "is not supported: the optimiser is AdamW, its numbers stand in SFTConfig"}


@dataclass(frozen=True)
class Example:
    """A row as token ids."""

    prompt_ids: NDArray[np.int32]
    completion_ids: NDArray[np.int32]  # (T)
    weights: NDArray[np.float32] | None  # (T)

    def __len__(self) -> int:
        """Tokens, of the prompt too."""
        return len(self.prompt_ids) + len(self.completion_ids)


def encode_row(row: dict[str, Any], processing_class: Any, where: str = "row",
               completion_only_loss: bool | None = None) -> Example:
    """Token ids of a row, see the head of the file. completion_only_loss=False: the prompt is
    learned like the completion, but for its first token."""
    def text_ids(name: str, prompt: Sequence[int] = ()) -> list[int]:
        if processing_class is None:
            raise ValueError(f"{where} has text in {name!r}: give processing_class")
        text = row[name] if isinstance(row[name], str) else _said(row[name], f"{where}: {name}")
        if isinstance(row.get("prompt"), list):
            text = _behind(prompt, text, processing_class)
        return completion_ids_of(text, processing_class)

    if "ids" in row or "text" in row:
        whole = list(row["ids"]) if "ids" in row else \
            [*getattr(processing_class, "prefix_ids", ()), *text_ids("text")]
        prompt, completion = whole[:1], whole[1:]
    else:
        prompt = prompt_ids_of(row, processing_class, where)
        if "completion_ids" in row:
            completion = list(row["completion_ids"])
        elif "completion" in row:
            completion = text_ids("completion", prompt)
        else:
            raise ValueError(f"{where} has neither 'completion' nor 'completion_ids'; it has "
                             f"{brief_names(row)}. What is to be learned may be named: "
                             f"load_rows(..., columns={{'prompt': ..., 'completion': ...}}), or --set "
                             f"columns.prompt=... columns.completion=...")
    if not completion:
        raise ValueError(f"{where} has no token to learn")
    weights = None
    if row.get("weights") is not None:
        weights = np.asarray(row["weights"], np.float32)
        if weights.shape != (len(completion),) or not np.isfinite(weights).all():
            raise ValueError(f"{where}: weights must be {len(completion)} finite numbers")
    if completion_only_loss is False:
        if weights is not None:
            weights = np.append(np.ones(len(prompt) - 1, np.float32), weights)
        prompt, completion = prompt[:1], [*prompt[1:], *completion]
    return Example(np.asarray(prompt, np.int32), np.asarray(completion, np.int32), weights)


def assistant_turns(row: dict[str, Any], where: str = "row") -> list[dict[str, Any]]:
    """A conversation as rows of prompt (messages) and completion, one for each turn of the
    assistant; any other row as it is."""
    if "messages" not in row:
        return [row]
    messages, rest = row["messages"], {k: v for k, v in row.items() if k != "messages"}
    rows = [{**rest, "prompt": list(messages[:i]), "completion": one["content"]}
            for i, one in enumerate(messages) if one["role"] == "assistant"]
    if not rows or not rows[0]["prompt"]:
        raise ValueError(f"{where}: messages {'begin with' if rows else 'hold no turn of'} the "
                         f"assistant, there is nothing to learn from")
    return rows


def _said(completion: Any, where: str) -> str:
    """The text of a completion that is one message of the assistant."""
    if isinstance(completion, list) and len(completion) == 1 \
            and completion[0].get("role") == "assistant":
        return str(completion[0]["content"])
    raise ValueError(f"{where} is neither text nor one message of the assistant")


def _behind(prompt: Sequence[int], text: str, processing_class: Any) -> str:
    """The completion without the <think> that the template has put at the end of the prompt."""
    end = processing_class.decode(list(prompt[-8:]), skip_special_tokens=False)
    if not end.rstrip().endswith(THINK) or not text.lstrip().startswith(THINK):
        return text
    text = text.lstrip().removeprefix(THINK)
    return text.removeprefix("\n") if end.endswith("\n") else text


def encode_rows(row: dict[str, Any], processing_class: Any, where: str = "row",
                completion_only_loss: bool | None = None, assistant_only_loss: bool = True
                ) -> list[Example]:
    """The examples of a row: one, or of a conversation one for every turn of the assistant; with
    assistant_only_loss=False one of the whole conversation, all of it learned. Where prompt and
    completion are a conversation in two parts, its last turn."""
    chat, last = row.get("messages"), "messages" in row and not assistant_only_loss
    only = False if last else completion_only_loss
    if hasattr(processing_class, "render_marked"):  # a chat template: chat_targets.py
        if chat is None and "completion" in row and not isinstance(row.get("prompt", ""), str):
            completion, last = row["completion"], True
            chat = [*row["prompt"], *([{"role": "assistant", "content": completion}]
                                      if isinstance(completion, str) else completion)]
        if chat is not None:
            pairs = chat_examples(chat, processing_class, where=where, **chat_options(row))
            return [encode_row({"prompt_ids": prompt, "completion_ids": completion},
                               processing_class, where, only)
                    for prompt, completion in (pairs[-1:] if last else pairs)]
    turns = assistant_turns(row, where)
    return [encode_row(one, processing_class, where, only) for one in (turns[-1:] if last else turns)]


def shortened(example: Example, length: int) -> Example | None:
    """The first `length` tokens of a row; None where none of them is to be learned."""
    keep = length - len(example.prompt_ids)
    weights = None if example.weights is None else example.weights[:max(0, keep)]
    if keep < 1 or weights is not None and not weights.any():
        return None
    return Example(example.prompt_ids, example.completion_ids[:keep], weights)


class SFTTrainer(Trainer):
    """for step in SFTTrainer(model, args, train_dataset): ..."""

    args: SFTConfig

    def __init__(self, model: Any, args: SFTConfig | None = None,
                 train_dataset: Sequence[dict[str, Any]] = (),
                 eval_dataset: Sequence[dict[str, Any]] | None = None,
                 processing_class: Any = None,
                 callbacks: Sequence[Callback] | None = None, peft_config: Any = None,
                 **theirs: Any) -> None:
        for name in theirs:
            raise TypeError(f"SFTTrainer: argument {name!r} " + _THEIRS.get(name, "is unknown"))
        require_options("SFTTrainer", args, SFTConfig, train_dataset, eval_dataset)
        args = args or SFTConfig()
        model, processing_class = model_and_tokenizer(model, processing_class, peft_config,
                                                      args.seed)
        require_policy("SFTTrainer", model)
        super().__init__(model, args, callbacks)
        self.processing_class = processing_class
        fit_vocabulary(model, processing_class)
        # rows of train_dataset that truncation_mode cut, left out
        self.examples, self.shortened, self.dropped = self._encode(train_dataset, "train_dataset")
        self.eval_examples, _, _ = self._encode(eval_dataset or (), "eval_dataset")
        if not self.examples:
            raise ValueError("train_dataset is empty" if not self.dropped else
                             f"train_dataset is empty: all its {self.dropped} rows are too long")
        self.bins = best_fit_decreasing([len(one) for one in self.examples], self.args.max_length) \
            if self.args.packing else [[i] for i in range(len(self.examples))]
        self._require_memory(max(map(len, self.examples)), sequences=max(map(len, self.bins))
                             * self.args.per_device_train_batch_size)

    def _encode(self, rows: Sequence[dict[str, Any]], name: str) -> tuple[list[Example], int, int]:
        """The examples of rows, and how many were cut and left out."""
        args, examples, cuts, dropped = self.args, [], 0, 0
        longest = min(args.max_length or math.inf, self.model.config.max_position_embeddings)
        for one, where in self._examples(rows, name):
            if args.truncation_mode == "refuse":
                check_length(len(one), args.max_length, "max_length", self.model, where)
            elif len(one) > longest:
                cut = shortened(one, longest) if args.truncation_mode == "keep_start" else None
                if cut is None:
                    dropped += 1
                    continue
                cuts += 1
                one = cut
            examples.append(one)
        return examples, cuts, dropped

    def _examples(self, rows: Sequence[dict[str, Any]], name: str
                  ) -> Iterator[tuple[Example, str]]:
        """Examples of the rows, and where each comes from."""
        for i, row in enumerate(rows):
            where = f"{name} row {i}"
            for one in encode_rows(row, self.processing_class, where,
                                   self.args.completion_only_loss, self.args.assistant_only_loss):
                yield one, where

    @property
    def total_steps(self) -> int:
        if self.args.max_steps is not None:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * len(self.bins)
                         / self.args.per_device_train_batch_size)

    def _gradient(self) -> dict[str, Any]:
        args, bins = self.args, self.args.per_device_train_batch_size
        chosen = data_order(len(self.bins), args.seed, self.step * bins, bins,
                            args.shuffle_dataset)
        batch = [self.examples[i] for bin in chosen for i in self.bins[bin]]
        weights = None
        if any(one.weights is not None for one in batch):
            weights = [np.ones(len(one.completion_ids), np.float32) if one.weights is None
                       else one.weights for one in batch]
        self.model.zero_grad()
        loss = self.model.sft_gradient(
            [one.prompt_ids for one in batch], [one.completion_ids for one in batch],
            weights=weights, micro_batch_tokens=args.micro_batch_tokens, mtp_coef=args.mtp_coef,
            balance_coef=args.balance_coef, recompute=args.gradient_checkpointing)
        return {"loss": float(loss), "num_tokens": int(loss.tokens),
                "processed_tokens": sum(map(len, batch)),
                "flops": gradient_flops(
                    self.model.config, *whole_sequences([one.prompt_ids for one in batch],
                                                        [one.completion_ids for one in batch]),
                    args.mtp_coef > 0, self.model.lora is not None),
                "epoch": (self.step + 1) * bins / len(self.bins),
                **{name: loss.stats[name] for name in ("mtp_loss", "mtp_accept", "balance_loss")
                   if name in loss.stats}}

    def evaluate(self) -> dict[str, float]:
        """Mean of -log pi over the weighted completion tokens of eval_dataset."""
        if not self.eval_examples:
            raise ValueError("evaluate needs an eval_dataset")
        losses: list[float] = []
        total: list[float] = []
        for start in range(0, len(self.eval_examples), self.args.per_device_train_batch_size):
            batch = self.eval_examples[start:start + self.args.per_device_train_batch_size]
            logprobs = self.model.logprobs([one.prompt_ids for one in batch],
                                           [one.completion_ids for one in batch])
            for one, logp in zip(batch, logprobs):
                weights = np.ones(len(logp)) if one.weights is None else one.weights
                losses += (-weights * np.asarray(logp, np.float64)).tolist()
                total += weights.tolist()
        if not any(total):
            raise ValueError("eval_dataset has no token whose weight is not 0")
        return {"eval_loss": math.fsum(losses) / math.fsum(total),
                "eval_num_tokens": math.fsum(total)}

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint([[one.prompt_ids.tolist(), one.completion_ids.tolist(),
                             None if one.weights is None else one.weights.tolist()]
                            for one in self.examples])

    def _state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {}, {"dataset": self._fingerprint}

    def _load_state(self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
        if meta["dataset"] != self._fingerprint:
            raise ConfigError("the saved run had another train_dataset")
