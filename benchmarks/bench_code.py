"""bench_code.py - GRPO steps on function-writing problems whose hidden tests are executed.

    python -m benchmarks.bench_code [--json FILE] [--threads N] [--quick] [--level full]

A small model learns programs for generated problems (r1grpo/tasks/functions.py), every fourth of them
spoiled: hanging, ending the process, taking memory, flooding the output, reaching for a file. Then it
has twenty GRPO steps with the reward `code` on the same problems, in worker processes and the sandbox. A line a step: the mean reward, verdicts by reason, and the slowest of them; at the end the
slowest against its deadline, verdicts of the pool itself (there should be none), and spoiled programs.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from r1grpo import GRPOConfig, GRPOTrainer, Model, ModelConfig, SFTConfig, SFTTrainer
from r1grpo.rewards import Pooled, get_code_reward
from r1grpo.tasks.functions import sample_functions
from r1grpo.verifiers.sandbox import LEVELS

from .harness import Report, options
from .workloads import timed_code

SPOILED = ("    while True: pass", "    raise SystemExit", "    return [0] * 10 ** 10",
           "    while 1: print(x)", "    return open('x')")
SECONDS = 0.5  # of one test


class Pieces:
    """A tokenizer: words, digits, single signs and spaces of the texts that it was made of."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, texts: Iterable[str]) -> None:
        found = sorted({piece for text in texts for piece in self._split(text)})
        self.pieces = ["", "", "", *found]
        self._ids = {piece: i for i, piece in enumerate(self.pieces) if piece}
        self.vocab_size = len(self.pieces)

    @staticmethod
    def _split(text: str) -> list[str]:
        return re.findall(r"[A-Za-z_]+|    |.", text, re.S)

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str) -> list[int]:
        return [self._ids[piece] for piece in self._split(text)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.pieces[int(i)] for i in ids)

    def batch_decode(self, batch: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids) for ids in batch]


def spoiled(program: str) -> bool:
    return any(one.strip() in program for one in SPOILED)


def lessons(problems: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Programs to learn from: three times the right one, once a spoiled one."""
    return [{"prompt": one["prompt"], "completion": program} for i, one in enumerate(problems)
            for program in (*[one["solution"].strip()] * 3, "def solve(x):\n" + SPOILED[i % len(SPOILED)])]


def question(row: dict[str, Any]) -> str:
    """What to write, without the examples: a quarter of the tokens."""
    return str(row["prompt"]).partition("\n")[0]


def learn(rows: Sequence[dict[str, str]], tokenizer: Pieces, quick: bool) -> Model:
    config = ModelConfig.from_dict(dict(
        model_type="llama", vocab_size=tokenizer.vocab_size, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=192, max_position_embeddings=256,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    model = Model(config, seed=0)
    trainer = SFTTrainer(model, SFTConfig(
        learning_rate=8e-3, lr_scheduler_type="cosine", warmup_steps=10, max_steps=3 if quick else 150,
        per_device_train_batch_size=4 if quick else 32), rows, processing_class=tokenizer)
    for metrics in trainer:
        if trainer.step % 50 == 0:
            print(f"learning, step {trainer.step}: loss {metrics['loss']:.3f}", flush=True)
    return model


def main() -> None:
    chosen = options(__doc__ or "", ("steps",), ("--level", {"choices": LEVELS[:2], "default": "full"}))
    report, quick = Report("bench_code", chosen.json, chosen.quick), chosen.quick
    problems = [{**row, "prompt": question(row)} for row in sample_functions("train", 8 if quick else 24, 2)]
    rows = lessons(problems)
    tokenizer = Pieces(text for row in rows for text in row.values())
    model = learn(rows, tokenizer, quick)
    group, prompts, steps = (2, 2, 2) if quick else (8, 4, 20)
    deadline = 4 * SECONDS
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "times"
        reward = get_code_reward(level=chosen.level, seconds=SECONDS, total_seconds=deadline)
        trainer = GRPOTrainer(model, Pooled(timed_code, times=str(file), **reward.options), GRPOConfig(
            learning_rate=1e-4, beta=0.0, num_generations=group, per_device_train_batch_size=group * prompts,
            max_steps=steps, max_completion_length=8 if quick else 48, seed=1), problems,
            processing_class=tokenizer)
        total: Counter[str] = Counter()
        seen, began = 0, time.perf_counter()
        report.title(f"{'step':>4} {'reward':>7} {'spoiled':>8} {'median':>7} {'slowest':>8} {'seconds':>8}  verdicts")
        for metrics in trainer:
            reasons = Counter(trainer.batch.reasons["timed_code"])
            bad = sum(map(spoiled, trainer.batch.completions.texts))
            times = list(map(float, file.read_text().split()))[seen:]
            seen, total, now = seen + len(times), total + reasons, time.perf_counter()
            middle, slowest = statistics.median(times), max(times)
            report.add({"step": trainer.step, "reward": metrics["reward"], "spoiled": bad, "median": middle,
                        "slowest": slowest, "seconds": now - began, "failed": metrics["verdicts/failed"],
                        "verdicts": dict(reasons)},
                       f"{trainer.step:4d} {metrics['reward']:7.3f} {bad:8d} {middle:7.2f} {slowest:8.2f} "
                       f"{now - began:8.1f}  {', '.join(f'{name} {n}' for name, n in sorted(reasons.items()))}")
            began = now
        trainer.rewards.pool.close()
    slowest = max(row["slowest"] for row in report.rows)
    report.save(verdicts=dict(total), slowest=slowest, deadline=deadline, pool_deadline=reward.options["deadline"])
    print(f"\n{sum(total.values())} verdicts: {', '.join(f'{name} {n}' for name, n in sorted(total.items()))}; the "
          f"slowest took {slowest:.2f} s. A program's tests have {deadline:g} s, its worker "
          f"{reward.options['deadline']:g} s; the pool's own: {sum(row['failed'] for row in report.rows):g}")


if __name__ == "__main__":
    main()
