"""trl_grpo.py - TRL's GRPOTrainer at whole GRPO steps: the same prompts, group size, lengths and loss.

A step is what lies between two ends of steps of its trainer: sampling, reward, loss, update. Its
tokenizer has one word a token, so that a prompt has exactly the tokens of workloads.py; the end token
cannot be drawn before the last one. Requests say micro: sequences of a forward pass.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from typing import Any

from benchmarks.workloads import MODELS, Work, reward

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers

from .hf import model_of


class Clock(transformers.TrainerCallback):
    """When steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def words(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of the words t0, t1, ..."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab_size)}, unk_token="t3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="t0",
                                                eos_token="t1", unk_token="t3")


def rewards(completion_ids: Any, **_: Any) -> list[float]:
    return reward(completion_ids)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `times` steps behind one that warms up."""
    work = Work(**{name: request[name] for name in ("kind", "model", "batch", "length", "new", "group")})
    model = model_of(work.model, request["dtype"], request["attn"], request.get("experts"))
    model.config.eos_token_id = model.generation_config.eos_token_id = 1
    model.config.pad_token_id = model.generation_config.pad_token_id = 0
    sequences, clock = work.batch * work.group, Clock()
    micro = min(sequences, request.get("micro") or sequences)
    prompts = [" ".join(f"t{i}" for i in one) for one in work.ids().tolist()]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = trl.GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, fp16=False, gradient_checkpointing=False,
            per_device_train_batch_size=micro, gradient_accumulation_steps=sequences // micro,
            steps_per_generation=sequences // micro, num_generations=work.group, num_iterations=1,
            max_completion_length=work.new, beta=0.0, loss_type="dapo", learning_rate=0.0,
            temperature=1.0, top_k=0, top_p=1.0, generation_kwargs={"min_new_tokens": work.new},
            max_steps=request["times"] + 1, optim="adamw_torch_fused", report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, shuffle_dataset=False)
        trainer = trl.GRPOTrainer(model=model, reward_funcs=rewards, args=args,
                                  train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
                                  processing_class=words(MODELS[work.model]["vocab_size"]),
                                  callbacks=[clock])
        trainer.train()
    seconds = [b - a for a, b in zip(clock.ends, clock.ends[1:])]
    return {"seconds": seconds,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                         "trl": trl.__version__}}
