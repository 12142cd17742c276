"""hf.py - PyTorch and transformers at the work of workloads.py: a training step with fused AdamW, and
`generate`. Requests say dtype, attn (eager, sdpa) and, for a mixture, experts (their implementation).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.workloads import MODELS, NONE_ENDS, Work

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
_open: dict[tuple[Any, ...], tuple[Any, Any]] = {}


def model_of(name: str, dtype: str, attn: str, experts: str | None) -> Any:
    """A random model of that shape, never a cached one."""
    values = dict(MODELS[name])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **{**values, **NONE_ENDS})
    if experts:
        config._experts_implementation = experts
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, dtype), attn_implementation=attn)


def opened(request: dict[str, Any]) -> tuple[Any, Any]:
    """The model and its optimiser, opened once for all attentions."""
    key = tuple(request.get(name) for name in ("model", "dtype", "experts"))
    if key not in _open:
        model = model_of(request["model"], request["dtype"], request["attn"], request.get("experts"))
        _open[key] = model, torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    _open[key][0].set_attn_implementation(request["attn"])
    return _open[key]


def step_of(work: Work, model: Any, optimizer: Any) -> Callable[[], None]:
    ids = torch.from_numpy(work.ids())

    def sft() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def generate() -> None:
        with torch.inference_mode():
            done = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                                  top_p=1.0, temperature=1.0, max_new_tokens=work.new, pad_token_id=0)
        assert done.shape[1] == work.length + work.new

    model.train(work.kind == "sft")
    return {"sft": sft, "generate": generate}[work.kind]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `times` pieces of the work."""
    how = {name: request[name] for name in ("kind", "model", "batch", "length", "new", "group")}
    step, found = step_of(Work(**how), *opened(request)), []
    for i in range(request["times"] + bool(request.get("warm"))):
        started = time.perf_counter()
        step()
        found.append(time.perf_counter() - started)
    return {"seconds": found[-request["times"]:],
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
