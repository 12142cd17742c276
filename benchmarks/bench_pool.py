"""bench_pool.py - rewards in worker processes: what they cost, and how much of them a run notices.

    python -m benchmarks.bench_pool [--json FILE] [--only PART] [--threads N] [--quick]

item      of a function that does nothing: one after the other, and many at once
start     from a pool without processes to its first result
deadline  what a hanging item costs beyond its deadline: the kill, what it left, a new worker
hidden    GRPO steps of 64 completions with a KL to a reference, once with a reward that costs nothing and
          once with one that waits a second for each completion. Both sample the same. `ratio` is the
          throughput with it over that without; `left` the seconds of rewards that the trainer saw. Workers
          hide no more seconds of rewards than they have while the engine samples: of the short completions
          (200 tokens, 8 workers) 8 s of rewards would stand behind less than that of sampling, which shows
          what is left then; the long ones (800 tokens, 16 workers) are those that the bar is for

Both sides of `hidden` are measured in turn; medians.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from r1grpo import GRPOConfig, GRPOTrainer, Model, ModelConfig
from r1grpo.rewards import Pooled
from r1grpo.verifiers import VerifierPool

from .harness import Report, interleaved, options, timed
from .workloads import MODELS, NONE_ENDS, slow_reward

PARTS = ("item", "start", "deadline", "hidden short", "hidden long")
HIDDEN = {"short": ("small_dense", 200, 8), "long": ("small_dense", 800, 16)}  # model, tokens, workers
BAR = 0.95


def item(report: Report, quick: bool) -> None:
    count = 20 if quick else 2000
    report.title(f"{'item':20} {'microseconds':>12}")
    with VerifierPool(workers=1) as pool:
        def alone() -> None:
            for _ in range(count):
                pool.result(pool.submit("builtins:len", "answer"))

        def together() -> None:
            for ticket in [pool.submit("builtins:len", "answer") for _ in range(count)]:
                pool.result(ticket)
        for name, call in (("alone", alone), ("together", together)):
            call()
            each = statistics.median(timed(call) for _ in range(1 if quick else 5)) / count
            report.add({"part": "item", "name": name, "microseconds": 1e6 * each},
                       f"{name:20} {1e6 * each:12.0f}")


def start(report: Report, quick: bool) -> None:
    def call() -> None:
        with VerifierPool(workers=1) as pool:
            pool.result(pool.submit("builtins:len", "answer"))
    seconds = statistics.median(timed(call) for _ in range(2 if quick else 20))
    report.title(f"{'start':20} {'milliseconds':>12}")
    report.add({"part": "start", "milliseconds": 1e3 * seconds}, f"{'':20} {1e3 * seconds:12.1f}")


def deadline(report: Report, quick: bool) -> None:
    count, limit = 2 if quick else 50, 0.02
    with VerifierPool(workers=1, deadline=limit) as pool:
        def call() -> None:
            for ticket in [pool.submit("time:sleep", 600) for _ in range(count)]:
                pool.result(ticket)
        beyond = timed(call) / count - limit
    report.title(f"{'deadline':20} {'milliseconds':>12}")
    report.add({"part": "deadline", "milliseconds": 1e3 * beyond}, f"{'':20} {1e3 * beyond:12.1f}")


def hidden(report: Report, name: str, quick: bool) -> None:
    model, length, workers = HIDDEN[name]
    config = ModelConfig.from_dict({**MODELS[model], **NONE_ENDS})
    rng = np.random.default_rng(0)
    rows = [{"prompt_ids": one} for one in rng.integers(64, config.vocab_size, (4, 8)).tolist()]
    group, wait = (2, 0.01) if quick else (16, 1.0)
    ends = tuple(range(round(config.vocab_size / length)))  # one token in `length` ends a completion

    def trainer(reward: Any) -> GRPOTrainer:
        return GRPOTrainer(Model(config, seed=0), reward, GRPOConfig(
            learning_rate=0.0, beta=0.001, num_generations=group, max_steps=100,
            per_device_train_batch_size=len(rows) * group, stop_token_ids=ends,
            max_completion_length=8 if quick else 5 * length // 2, verifier_workers=2 if quick else workers), rows)
    trainers = {"without": trainer(slow_reward), "with": trainer(Pooled(slow_reward, seconds=wait))}
    if not quick:
        for one in trainers.values():
            next(one)
    steps: dict[str, list[Any]] = {side: [] for side in trainers}
    seconds = interleaved({side: lambda side=side: timed(lambda: steps[side].append(next(trainers[side])))
                           for side in trainers}, 1 if quick else 3)
    assert [one["reward"] for one in steps["with"]] == [one["reward"] for one in steps["without"]]
    without, with_ = (statistics.median(seconds[side]) for side in ("without", "with"))
    left = statistics.median(one["verdicts/wait_time"] for one in steps["with"])
    count = len(rows) * group
    report.title(f"{'hidden, ' + name:20} {'rewards':>10} {'without':>10} {'with':>10} {'left':>8} {'ratio':>6}")
    report.add({"part": "hidden", "name": name, "model": model, "completions": count, "workers": workers,
                "reward_seconds": wait * count,
                "without": without, "with": with_, "left": left, "ratio": without / with_},
               f"{'':20} {wait * count:10.2f} {without:10.2f} {with_:10.2f} {left:8.2f} {without / with_:6.3f}"
               f"   bar {BAR}")
    trainers["with"].rewards.pool.close()


def main() -> None:
    chosen = options(__doc__ or "", PARTS)
    report = Report("bench_pool", chosen.json, chosen.quick)
    for part in chosen.only:
        kind, _, name = part.partition(" ")
        if kind == "hidden":
            hidden(report, name, chosen.quick)
        else:
            {"item": item, "start": start, "deadline": deadline}[kind](report, chosen.quick)


if __name__ == "__main__":
    main()
