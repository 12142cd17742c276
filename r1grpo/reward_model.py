"""reward_model.py - learned rewards: a model with a scalar head, trained on judged responses.

    pairwise   L = mean -log sigmoid(s_chosen - s_rejected)          Bradley and Terry 1952
    pointwise  L = mean -[y log sigmoid(s) + (1 - y) log sigmoid(-s)]

DeepSeek-R1 (Nature, Methods; arXiv 2501.12948v2, 3.1): the helpful model is pairwise and sees the
final summary only, the safety model is pointwise and sees the whole response. The paper prints no
loss formulas; these two are ours, so is the end-of-text token behind a response that ended by
itself (one that was cut off has none), and so is sigmoid(s), in (0, 1), as the reward: a plain sum
with 0/1 rewards stays in proportion.

Rows   pairwise: prompt, chosen, rejected      pointwise: prompt, completion, label (1 good, 0 bad)
       optional: chosen_finish_reason, rejected_finish_reason, finish_reason ('stop' where missing)
Responses are whole; what the model does not see of them is cut here, in training and in scoring by
the same function. The prompt is text, messages or prompt_ids; responses are text, or as in TRL one
message each; the messages that chosen and rejected begin with alike are the prompt where a row has
none. Knows nothing about how they were judged: no rubric is in sight.

As a reward function a model is a ModelReward, which sees what was seen in training; or, named by its
folder among the reward functions as in TRL, a TextReward: its plain score of the whole text.
"""

from __future__ import annotations

import math
import numbers
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .brief import brief
from .config import ConfigError, RewardConfig
from .flops import gradient_flops
from .folder import asked_and_tokenizer, model_and_tokenizer
from .rewards.text import said
from .judging import RewardFunction, is_chat
from .tokenizer import end_of_text, split_thinking
from .trainer import (Callback, Trainer, check_length, data_order, fingerprint, prompt_ids_of,
                      require_options)

_SCORE_BATCH = 64  # sequences a call of score; cannot change a score


def scored_ids(prompt_ids: Sequence[int], response: str, part: str, processing_class: Any,
               finish_reason: str = "stop") -> list[int]:
    """What the model sees: the prompt, the response or its summary alone (the text after </think>;
    empty while the thinking is not closed), the end-of-text token where the response ended."""
    text = split_thinking(response)[1] if part == "summary" else response
    end = [end_of_text(processing_class)] if finish_reason == "stop" else []
    return [*prompt_ids, *processing_class.encode(text), *end]


def _as_text(row: dict[str, Any], columns: Sequence[str], where: str) -> dict[str, Any]:
    """A row whose responses are messages, with them as text and with its prompt; others as they are."""
    responses = [row[column] for column in columns]
    if not all(map(is_chat, responses)):
        return row
    shared = 0
    if "prompt" not in row and "prompt_ids" not in row and len(responses) == 2:
        shared = next((i for i, (one, other) in enumerate(zip(*responses)) if one != other),
                      min(map(len, responses)))
        if shared == 0:
            raise ValueError(f"{where} has no 'prompt', and chosen and rejected share no first message "
                             f"that could be it; give the messages before the response as 'prompt'")
        row = {**row, "prompt": responses[0][:shared]}
    texts = {}
    for column, messages in zip(columns, responses):
        last = messages[shared:]
        if len(last) != 1 or last[0].get("role") != "assistant" \
                or not isinstance(last[0].get("content"), str):
            roles = ", ".join(brief(one.get("role")) for one in last[:8]) or "no message"
            raise ValueError(f"{where}: {column} has {roles} after the prompt, expected one message of "
                             f"'assistant' with text; give the messages before it as 'prompt'")
        texts[column] = last[0]["content"]
    return {**row, **texts}


class RewardTrainer(Trainer):
    """for step in RewardTrainer(model, args, train_dataset, ...): ...

    model: a Model, or the folder of one, whose tokenizer is then the default of processing_class. One
    without a scalar head is copied and gets one, drawn from args.seed."""

    args: RewardConfig

    def __init__(self, model: Any, args: RewardConfig | None = None,
                 train_dataset: Sequence[dict[str, Any]] = (),
                 eval_dataset: Sequence[dict[str, Any]] | None = None,
                 processing_class: Any = None,
                 callbacks: Sequence[Callback] | None = None) -> None:
        require_options("RewardTrainer", args, RewardConfig, train_dataset, eval_dataset)
        args = args or RewardConfig()
        model, processing_class = model_and_tokenizer(model, processing_class)
        if hasattr(model, "add_score_head") and not model.config.score_head:  # stand-ins have none
            model = model.add_score_head(args.seed)
        super().__init__(model, args, callbacks)
        if processing_class is None:
            raise ConfigError("RewardTrainer needs a processing_class: responses are text")
        self.processing_class = processing_class
        self.examples = self._encode(train_dataset, "train_dataset")
        self.eval_examples = self._encode(eval_dataset or (), "eval_dataset")
        if not self.examples:
            raise ValueError("train_dataset is empty")
        self._require_memory(max(len(one) for ids, _ in self.examples for one in ids))

    def _encode(self, rows: Sequence[dict[str, Any]], name: str
                ) -> list[tuple[list[list[int]], float]]:
        """Per row: (sequences, label); pairwise has two sequences, chosen first."""
        pairwise = self.args.kind == "pairwise"
        examples = []
        for i, row in enumerate(rows):
            where = f"{name} row {i}"
            columns = ("chosen", "rejected") if pairwise else ("completion",)
            for column in columns if pairwise else (*columns, "label"):
                if column not in row:
                    raise ValueError(f"{where} has no {column!r}, a {self.args.kind} row needs it")
            row = _as_text(row, columns, where)
            for column in columns:
                if not isinstance(row[column], str):
                    raise ValueError(f"{where}: {column} is {brief(row[column])}, expected text")
            label = 1.0 if pairwise else row["label"]
            if not isinstance(label, numbers.Real) or label not in (0, 1):
                raise ValueError(f"{where}: label is {brief(label)}, expected 0 or 1")
            prompt = prompt_ids_of(row, self.processing_class, where)
            reasons = [row.get(f"{column}_finish_reason" if pairwise else "finish_reason", "stop")
                       for column in columns]
            ids = [scored_ids(prompt, row[column], str(self.args.part), self.processing_class, end)
                   for column, end in zip(columns, reasons)]
            check_length(max(map(len, ids)), self.args.max_length, "max_length", self.model, where)
            examples.append((ids, float(label)))
        return examples

    @property
    def total_steps(self) -> int:
        if self.args.max_steps is not None:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * len(self.examples)
                         / self.args.per_device_train_batch_size)

    def _gradient(self) -> dict[str, Any]:
        args, rows = self.args, self.args.per_device_train_batch_size
        chosen = data_order(len(self.examples), args.seed, self.step * rows, rows,
                            args.shuffle_dataset)
        ids = [one for i in chosen for one in self.examples[i][0]]
        labels = None if args.kind == "pairwise" else \
            np.array([self.examples[i][1] for i in chosen], np.float32)
        self.model.zero_grad()
        loss = self.model.reward_gradient(ids, kind=args.kind, labels=labels, total=rows,
                                          micro_batch_tokens=args.micro_batch_tokens,
                                          recompute=args.gradient_checkpointing)
        tokens = sum(map(len, ids))  # the loss is of whole sequences
        return {"loss": float(loss), "num_tokens": tokens, "processed_tokens": tokens,
                "flops": gradient_flops(self.model.config, [(0, len(one)) for one in ids], 0),
                "epoch": (self.step + 1) * rows / len(self.examples)}

    def evaluate(self) -> dict[str, float]:
        """Accuracy on eval_dataset: the chosen response scores higher (a tie is half), or the
        score's sign agrees with the label. Beside labels, whose classes differ in size, stand
        base_rate, the share of the larger class (what a constant verdict reaches), and
        balanced_accuracy, the mean over the classes that occur."""
        if not self.eval_examples:
            raise ValueError("evaluate needs an eval_dataset")
        scores = score_in_batches(self.model.score,
                                  [one for ids, _ in self.eval_examples for one in ids])
        if self.args.kind == "pairwise":
            margin = scores[0::2] - scores[1::2]
        else:
            margin = scores * np.array([2.0 * label - 1.0 for _, label in self.eval_examples])
        right = np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))
        found = {"accuracy": math.fsum(right) / len(right), "n": len(right)}
        if self.args.kind == "pointwise":
            labels = np.array([label for _, label in self.eval_examples])
            classes = [right[labels == label] for label in (0.0, 1.0) if label in labels]
            found["base_rate"] = max(map(len, classes)) / len(right)
            found["balanced_accuracy"] = math.fsum(
                math.fsum(one) / len(one) for one in classes) / len(classes)
        return found

    def _state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {}, {"dataset": fingerprint(self.examples)}

    def _load_state(self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
        if meta["dataset"] != fingerprint(self.examples):
            raise ConfigError("the saved run had another train_dataset")


def score_in_batches(score: Callable[[list[list[int]]], Any], ids: Sequence[list[int]]
                     ) -> NDArray[np.float64]:
    """Scores (B) of sequences, a bounded number at a time."""
    out = [np.asarray(score(list(ids[i:i + _SCORE_BATCH])), np.float64)
           for i in range(0, len(ids), _SCORE_BATCH)]
    scores = np.concatenate(out) if out else np.zeros(0)
    if not np.isfinite(scores).all():
        raise FloatingPointError("the reward model gave a score that is not finite")
    return scores


class ModelReward:
    """A learned reward as a reward function: sigmoid(score). It applies to rows whose column
    `reward_model` is this name, to every row where there is no such column, and gives None to the
    others. `score` is Model.score, injected: a function of lists of ids."""

    def __init__(self, score: Callable[[list[list[int]]], Any], processing_class: Any,
                 part: str = "summary", name: str = "helpful") -> None:
        if part not in ("summary", "whole"):
            raise ConfigError(f"ModelReward: part is {brief(part)}, expected 'summary' or 'whole'")
        self.score, self.processing_class, self.part = score, processing_class, part
        self.__name__ = name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[str],
                 completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        kinds = columns.get("reward_model", [self.__name__] * len(completions))
        reasons = columns.get("finish_reasons", ["stop"] * len(completions))
        mine = [i for i, kind in enumerate(kinds) if kind == self.__name__]
        ids = []
        for i in mine:
            is_ids = len(prompts[i]) > 0 and isinstance(prompts[i][0], int)  # else text, messages
            prompt = prompt_ids_of({"prompt_ids" if is_ids else "prompt": prompts[i]},
                                   self.processing_class, "prompt")
            ids.append(scored_ids(prompt, said(completions[i]), self.part, self.processing_class,
                                  reasons[i]))
        rewards: list[float | None] = [None] * len(completions)
        for i, one in zip(mine, score_in_batches(self.score, ids).tolist()):
            rewards[i] = 0.5 * (1.0 + math.tanh(0.5 * one))  # sigmoid that cannot overflow
        return rewards


class TextReward:
    """A reward model as TRL takes one: its plain score of prompt and completion in one text, or of a
    conversation through its own chat template. It may be any model with a scalar head; its tokenizer
    need not be the policy's."""

    def __init__(self, model: Any, processing_class: Any, name: str) -> None:
        if not model.config.score_head:
            raise ConfigError(f"reward_funcs: {name} has no scalar head; a reward model is a "
                              f"...ForSequenceClassification, or made by RewardTrainer")
        if processing_class is None:
            raise ConfigError(f"reward_funcs: {name} has no tokenizer; give reward_processing_classes")
        self.model, self.processing_class, self.__name__ = model, processing_class, name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any],
                 completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        ids = [self._ids(prompt, completion) for prompt, completion in zip(prompts, completions)]
        return score_in_batches(self.model.score, ids).tolist()

    def check_context(self, prompts: Sequence[Any], completion_tokens: int) -> None:
        """ConfigError where a prompt alone is longer than this model's context; a warning where a
        completion of so many tokens may be too long: its own tokens may be fewer than the policy's."""
        context = self.model.config.max_position_embeddings
        longest = max(len(self._ids(one, [{"role": "assistant", "content": ""}] if is_chat(one) else ""))
                      for one in prompts)
        takes = f"reward {self.__name__!r} reads {context} tokens, the longest prompt has {longest}"
        if longest > context:
            raise ConfigError(f"{takes}; filter the data, or take a model that reads more")
        if longest + completion_tokens > context:
            warnings.warn(f"{takes} and a completion up to {completion_tokens}: one that is too long ends "
                          f"the run; a max_completion_length of {context - longest} is safe", stacklevel=3)

    def _ids(self, prompt: Any, completion: Any) -> list[int]:
        tokenizer = self.processing_class
        if is_chat(prompt):
            return tokenizer.apply_chat_template([*prompt, *completion], add_generation_prompt=False)
        if not isinstance(prompt, str):
            raise ConfigError(f"reward {self.__name__!r} reads text, the prompts are token ids; give "
                              f"rows a column 'prompt'")
        return getattr(tokenizer, "encode_completion", tokenizer.encode)(prompt + completion)


def reward_functions(rewards: Any, processing_classes: Any = None) -> list[RewardFunction]:
    """reward_funcs of a trainer as functions: one or several, each a function, the folder of a reward
    model or such a model. processing_classes: the tokenizers of models, one each (None: that of its
    folder, or a function's)."""
    several = isinstance(rewards, Sequence) and not isinstance(rewards, str)
    found = list(rewards) if several else [rewards]
    tokenizers = list(processing_classes) if isinstance(processing_classes, (list, tuple)) else \
        [processing_classes] * len(found)
    if len(tokenizers) != len(found):
        raise ConfigError(f"reward_processing_classes has {len(tokenizers)} entries for {len(found)} "
                          f"reward functions")
    folders = [Path(one).parts for one in found if isinstance(one, (str, os.PathLike))]
    return [_function(one, tokenizer, folders) for one, tokenizer in zip(found, tokenizers)]


def _folder_name(parts: tuple[str, ...], folders: Sequence[tuple[str, ...]]) -> str:
    """The last part of a folder's path; where others end so, as many parts as they do not share."""
    k = next((k for k in range(1, len(parts)) if sum(one[-k:] == parts[-k:] for one in folders) < 2),
             len(parts))
    return "_".join(parts[-k:])


def _function(reward: Any, processing_class: Any, folders: Sequence[tuple[str, ...]]) -> RewardFunction:
    if isinstance(reward, (str, os.PathLike)):
        model, tokenizer = asked_and_tokenizer(reward, processing_class)
        return TextReward(model, tokenizer, _folder_name(Path(reward).parts, folders))
    if hasattr(reward, "score") and not callable(reward):
        return TextReward(reward, processing_class, type(reward).__name__)
    return reward
