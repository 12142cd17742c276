"""bench_features.py - what parts of the engine are worth: the same work with them and without.

    python -m benchmarks.bench_features [--json FILE] [--only PART] [--threads N] [--quick]

prefix        a step on 16 completions of 64 tokens of each 512-token prompt: the prompt once a group,
              and once a completion
speculation   sampling with guesses of the MTP module. The tiny mixture gets one and learns, for half a
              minute, a chain of tokens that goes on as expected 19 times in 20; tokens are compared

Both sides are measured in turn; medians. `gain` is the time without over the time with.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from r1grpo import Model, ModelConfig
from r1grpo.device import get_device

from .contestants.ours import model_of
from .harness import Report, interleaved, options, timed
from .workloads import MODELS, NONE_ENDS

PARTS = ("prefix tiny_moe", "prefix small_dense", "prefix qwen_0.5b", "speculation")
BARS = {"tiny_moe": 3.0, "qwen_0.5b": 4.0}
NOISE = 0.05


def chains(rng: np.random.Generator, vocab: int, batch: int, length: int) -> np.ndarray:
    """int32 (batch, length): each token has one successor, missed with probability NOISE."""
    successor = np.random.default_rng(0).permutation(vocab)
    ids = rng.integers(0, vocab, (batch, length))
    missed = rng.random((batch, length)) < NOISE
    for t in range(1, length):
        ids[:, t] = np.where(missed[:, t], ids[:, t], successor[ids[:, t - 1]])
    return ids.astype(np.int32)


def prefix(report: Report, name: str, quick: bool) -> None:
    """Gradient and update on groups whose prompt is shared, and is not."""
    vocab, rng, group = MODELS[name]["vocab_size"], np.random.default_rng(0), 2 if quick else 16
    prompts = rng.integers(0, vocab, (1 if name == "qwen_0.5b" else 4, 8 if quick else 512))
    every = np.repeat(prompts, group, axis=0)
    ids = list(rng.integers(0, vocab, (len(every), 4 if quick else 64)))
    old = [np.zeros(len(one), np.float32) for one in ids]
    report.title(f"{name + ', prefix':20} {'dtype':9} {'without':>10} {'with':>10} {'gain':>6}")
    for dtype in ("float32",) if quick else ("float32", "bfloat16"):
        model = model_of(name, dtype)

        def step(groups: np.ndarray, model: Model = model) -> float:
            def call() -> None:
                model.zero_grad()
                model.policy_gradient(list(every), ids, advantages=[1.0] * len(ids),
                                      weights=[1.0] * len(ids), old_logprobs=old, groups=groups)
                model.update(0.0)
            return timed(call)
        apart = np.arange(len(every))
        calls = {"without": lambda: step(apart), "with": lambda: step(apart // group)}
        if not quick:
            calls["with"]()  # gradients and moments are made once
        seconds = interleaved(calls, 1 if quick else 5)
        without, with_ = (statistics.median(seconds[key]) for key in calls)
        report.add({"part": "prefix", "model": name, "dtype": dtype, "without": without,
                    "with": with_, "gain": without / with_},
                   f"{'':20} {dtype:9} {without:10.4f} {with_:10.4f} {without / with_:6.2f}"
                   + (f"   bar {BARS[name]}" if name in BARS else ""))


def speculation(report: Report, quick: bool) -> None:
    config = ModelConfig.from_dict({**MODELS["tiny_moe"], **NONE_ENDS, "num_nextn_predict_layers": 1})
    model, rng, found = Model(config, seed=0), np.random.default_rng(1), None
    for _ in range(2 if quick else 150):
        ids = chains(rng, config.vocab_size, 4 if quick else 32, 64)
        model.zero_grad()
        found = model.sft_gradient(list(ids[:, :1]), list(ids[:, 1:]), mtp_coef=0.3)
        model.update(3e-3)
    report.title(f"speculation: learned to a loss of {float(found):.2f}, guesses right "
                 f"{found.stats['mtp_accept']:.0%}\n{'batch':>8} {'without':>10} {'with':>10} {'gain':>6} "
                 "right")
    new = 8 if quick else 256
    for batch in (1, 2) if quick else (1, 4, 16, 64):
        prompts = list(chains(rng, config.vocab_size, batch, 16))
        last: dict[bool, Any] = {}

        def sample(speculative: bool) -> float:
            def call() -> None:
                last[speculative] = model.generate(prompts, max_new_tokens=new, stop_token_ids=(),
                                                   seed=0, speculative=speculative)
            return timed(call)
        seconds = interleaved({"without": lambda: sample(False), "with": lambda: sample(True)},
                              1 if quick else 7)
        for plain, fast in zip(last[False].completion_ids, last[True].completion_ids, strict=True):
            if not np.array_equal(plain, fast):
                raise AssertionError("speculative sampling drew other tokens")
        without, with_ = (statistics.median(seconds[name]) for name in ("without", "with"))
        guessed, right = last[True].drafts
        report.add({"part": "speculation", "batch": batch, "without": without, "with": with_,
                    "gain": without / with_, "tokens_per_second": batch * new / with_,
                    "right": right / max(guessed, 1)},
                   f"{batch:8} {without:10.4f} {with_:10.4f} {without / with_:6.2f} "
                   f"{right / max(guessed, 1):.0%}" + ("   bar 1.4" if batch == 1 else ""))


def main(arguments: list[str] | None = None) -> None:
    args = options(__doc__, PARTS, arguments=arguments)
    report = Report("features", args.json, args.quick, get_device())
    for part in args.only:
        kind, _, name = part.partition(" ")
        if kind == "prefix" and not (args.quick and name != "tiny_moe"):
            prefix(report, name, args.quick)
    if "speculation" in args.only:
        speculation(report, args.quick)


if __name__ == "__main__":
    main()
