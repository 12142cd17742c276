"""ours.py - r1grpo at the work of workloads.py: {kind, ..., "dtype", "times"} -> seconds, and parts; "device"
and "rows", tokens of a micro-batch, where they are not the default.

One model is open at a time. A GRPO step is generate, reward and advantages, gradient and update, timed
apart; the learning rate is 0, so that every step has the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workloads import MODELS, NONE_ENDS, Work, reward
from r1grpo import Model, ModelConfig
from r1grpo.advantage import group_advantages, token_weights

_open: dict[tuple[str, str, str], Model] = {}


def model_of(name: str, dtype: str, device: str = "cpu") -> Model:
    """The open model of that shape, or a new random one in its place."""
    if (name, dtype, device) not in _open:
        _open.clear()
        _open[name, dtype, device] = Model(ModelConfig.from_dict({**MODELS[name], **NONE_ENDS}), dtype=dtype,
                                           device=device)
    return _open[name, dtype, device]


def step_of(work: Work, model: Model, rows: int | None = None) -> Callable[[], dict[str, float]]:
    """One piece of the work: a function that does it and says what its parts took, in seconds."""
    ids = work.ids().tolist()

    def sft() -> None:
        model.zero_grad()
        model.sft_gradient([one[:1] for one in ids], [one[1:] for one in ids],
                           micro_batch_tokens=rows)
        model.update(0.0)

    def generate() -> Any:
        return model.generate(ids, num_generations=max(work.group, 1), max_new_tokens=work.new,
                              stop_token_ids=(), seed=0)

    def grpo() -> dict[str, float]:
        clock = [time.perf_counter()]
        done = generate()
        clock.append(time.perf_counter())
        advantages = group_advantages(reward(done.completion_ids), work.group)
        weights = token_weights([work.new] * len(done), np.ones(len(done), np.float32), "dapo",
                                work.new)
        clock.append(time.perf_counter())
        old, sampled = done.logprobs, None
        if not model.exact:  # as GRPOTrainer does there: truncated importance sampling
            old, sampled = model.logprobs(ids, done.completion_ids), done.logprobs
        model.zero_grad()
        model.policy_gradient(ids, done.completion_ids, advantages=advantages, weights=weights, old_logprobs=old,
                              sampled_logprobs=sampled, total_tokens=1.0, micro_batch_tokens=rows)
        model.update(0.0)
        clock.append(time.perf_counter())
        return dict(zip(("rollout", "reward", "update"), np.diff(clock).tolist()))

    def timed() -> dict[str, float]:
        started = time.perf_counter()
        parts = {"sft": sft, "generate": generate, "grpo": grpo}[work.kind]()
        whole = time.perf_counter() - started
        return {**(parts if work.kind == "grpo" else {}), "seconds": whole}

    return timed


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `times` pieces of the work; the first request of a model warms up."""
    how = {name: request[name] for name in ("kind", "model", "batch", "length", "new", "group")}
    model = model_of(request["model"], request["dtype"], request.get("device", "cpu"))
    step = step_of(Work(**how), model, request.get("rows"))
    if request.get("warm"):
        step()
    found = [step() for _ in range(request["times"])]
    return {"seconds": [one["seconds"] for one in found],
            "parts": {name: [one[name] for one in found] for name in found[0] if name != "seconds"}}
