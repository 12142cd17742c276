"""hf.py - PyTorch and transformers at the work of workloads.py: a training step with fused AdamW, `generate`,
and both with a reward in between. Requests say dtype, attn (eager, sdpa) and, for a mixture, experts (their
implementation); device (cpu), compiled (training under torch.compile) and rows, the sequences that are
learned from at a time (all).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.workloads import MODELS, NONE_ENDS, Work, reward

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
_open: dict[tuple[Any, ...], tuple[Any, Any, Any]] = {}


def model_of(name: str, dtype: str, attn: str, experts: str | None, device: str = "cpu") -> Any:
    """A random model of that shape, never a cached one."""
    values = dict(MODELS[name])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **{**values, **NONE_ENDS})
    if experts:
        config._experts_implementation = experts
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attn)


def opened(request: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The model, its optimiser, and the model to train with; opened once for all attentions."""
    key = tuple(request.get(name) for name in ("model", "dtype", "experts", "device", "compiled"))
    if key not in _open:
        model = model_of(request["model"], request["dtype"], request["attn"], request.get("experts"),
                         request.get("device", "cpu"))
        forward = torch.compile(model) if request.get("compiled") else model
        _open[key] = model, torch.optim.AdamW(model.parameters(), lr=0.0, fused=True), forward
    _open[key][0].set_attn_implementation(request["attn"])
    return _open[key]


def step_of(work: Work, model: Any, optimizer: Any, forward: Any, rows: int) -> Callable[[], None]:
    """forward: the model, or what torch.compile made of it; rows: sequences of a micro-batch."""
    ids = torch.from_numpy(work.ids()).to(model.device)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def sft() -> None:
        for some in ids.split(rows):
            loss = forward(input_ids=some, labels=some, use_cache=False).loss
            (loss * (len(some) / len(ids))).backward()
        update()

    def generate() -> torch.Tensor:
        with torch.inference_mode():
            done = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                                  top_p=1.0, temperature=1.0, max_new_tokens=work.new, pad_token_id=0,
                                  num_return_sequences=max(work.group, 1))
        assert done.shape[1] == work.length + work.new
        return done

    def grpo() -> None:
        """Sampled, then learned from once, on policy: the ratio is 1, its gradient that of the log-prob."""
        model.eval()
        done = generate().clone()
        model.train()
        scores = torch.tensor(reward(done[:, work.length:].cpu().numpy()), device=done.device).reshape(work.batch, -1)
        advantage = ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)).flatten()
        for some, weight in zip(done.split(rows), advantage.split(rows), strict=True):
            logits = forward(input_ids=some, use_cache=False).logits[:, work.length - 1:-1]
            logp = -torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), some[:, work.length:].flatten(),
                                                      reduction="none")
            ratio = torch.exp(logp - logp.detach()).reshape(len(some), -1)
            (-(ratio * weight[:, None]).sum() / (len(done) * work.new)).backward()
        update()

    model.train(work.kind == "sft")
    return {"sft": sft, "generate": generate, "grpo": grpo}[work.kind]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `times` pieces of the work."""
    work = Work(**{name: request[name] for name in ("kind", "model", "batch", "length", "new", "group")})
    step, found = step_of(work, *opened(request), request.get("rows") or work.batch * max(work.group, 1)), []
    on_gpu = request.get("device") == "cuda"
    for i in range(request["times"] + bool(request.get("warm"))):
        started = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    if on_gpu:
        torch.cuda.empty_cache()  # the next contestant's turn
    return {"seconds": found[-request["times"]:],
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
