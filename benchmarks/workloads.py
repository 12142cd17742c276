"""workloads.py - the models and the work that the benchmarks compare, the same for every contestant.

    MODELS        the keys of a config.json, as transformers and r1grpo both read them
    sft           batch x length tokens, all of them learned: forward, backward, AdamW
    generate      batch prompts, `new` tokens each, drawn at temperature 1, no one ends early
    grpo          prompts x group completions of `new` tokens, a reward, one update on all of them

Ids are random but the same for all. Knows no library.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MODELS: dict[str, dict[str, Any]] = {
    # DeepSeek-V3 in miniature: 3.05 M parameters, 0.99 M of them active a token
    "tiny_moe": dict(
        model_type="deepseek_v3", vocab_size=512, hidden_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=256,
        max_position_embeddings=8192, tie_word_embeddings=False, q_lora_rank=None, kv_lora_rank=64,
        qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, n_routed_experts=16,
        num_experts_per_tok=2, moe_intermediate_size=128, n_shared_experts=1,
        first_k_dense_replace=1, n_group=1, topk_group=1, num_nextn_predict_layers=0),
    "small_dense": dict(  # 7.3 M parameters
        model_type="llama", vocab_size=4096, hidden_size=256, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=1024,
        max_position_embeddings=8192, tie_word_embeddings=True),
    "qwen_0.5b": dict(  # the shape of Qwen2.5-0.5B: 494 M parameters
        model_type="qwen2", vocab_size=151_936, hidden_size=896, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864,
        max_position_embeddings=32_768, rope_theta=1e6, tie_word_embeddings=True),
    "qwen_1.5b": dict(  # the shape of Qwen2.5-1.5B: 1,544 M parameters; for GPUs
        model_type="qwen2", vocab_size=151_936, hidden_size=1536, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960,
        max_position_embeddings=32_768, rope_theta=1e6, tie_word_embeddings=True)}
NONE_ENDS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)


@dataclass(frozen=True)
class Work:
    """kind: sft, generate or grpo; sizes that a kind does not know are 0."""

    kind: str
    model: str
    batch: int = 0    # sequences (sft, generate); prompts (grpo)
    length: int = 0   # of a sequence (sft), of a prompt
    new: int = 0      # tokens of a completion
    group: int = 0    # completions of a prompt (grpo)

    @property
    def name(self) -> str:
        sizes = {"sft": f"{self.batch} x {self.length}",
                 "generate": f"batch {self.batch}, {self.length} + {self.new}",
                 "grpo": f"{self.batch} x {self.group}, {self.length} + {self.new}"}[self.kind]
        return f"{self.model} {self.kind} {sizes}"

    @property
    def tokens(self) -> int:
        """What a rate counts: tokens trained on, tokens drawn, or both passes over all of them."""
        return {"sft": self.batch * self.length, "generate": self.batch * self.new,
                "grpo": self.batch * self.group * (self.length + self.new)}[self.kind]

    def request(self, **more: Any) -> dict[str, Any]:
        """For a Worker."""
        return {**asdict(self), **more}

    def ids(self) -> np.ndarray:
        """int64 (batch, length), the special ids 0 to 3 left out."""
        rng = np.random.default_rng(0)
        return rng.integers(4, MODELS[self.model]["vocab_size"], (self.batch, self.length))


def works(quick: bool = False) -> list[Work]:
    """What bench_step and bench_peers measure, the long ones last."""
    if quick:
        return [Work("sft", "tiny_moe", 2, 16), Work("generate", "tiny_moe", 2, 4, 4),
                Work("grpo", "tiny_moe", 2, 4, 4, 2)]
    return [
        Work("sft", "tiny_moe", 16, 256),
        *(Work("generate", "tiny_moe", batch, 64, 128) for batch in (1, 8, 32, 128)),
        Work("grpo", "tiny_moe", 8, 64, 128, 8),
        Work("sft", "small_dense", 16, 256),
        *(Work("generate", "small_dense", batch, 64, 128) for batch in (1, 8, 32, 128)),
        Work("grpo", "small_dense", 8, 64, 128, 8),
        Work("sft", "qwen_0.5b", 2, 512),
        *(Work("generate", "qwen_0.5b", batch, 64, 32) for batch in (1, 8, 32)),
        Work("grpo", "qwen_0.5b", 4, 64, 128, 8)]


def reward(completion_ids: Any) -> list[float]:
    """The share of even tokens: groups differ, and it costs nothing."""
    return [float(np.mean(np.asarray(ids) % 2 == 0)) for ids in completion_ids]


def slow_reward(prompts: Any, completions: Any, completion_ids: Any, *, seconds: float = 0.0,
                **columns: Any) -> list[float]:
    """The same after a wait for each completion."""
    time.sleep(seconds * len(completion_ids))
    return reward(completion_ids)



def timed_code(prompts: Any, completions: Any, completion_ids: Any, *, times: str, **columns: Any) -> list[Any]:
    """code_reward, which adds the seconds of its verdict to a file."""
    from r1grpo.rewards import code_reward  # contestants import this file

    began = time.perf_counter()
    found = code_reward(prompts, completions, completion_ids, **columns)
    with open(times, "a", encoding="ascii") as file:
        file.write(f"{time.perf_counter() - began:.4f}\n")
    return found
