"""speed.py - part `bench`: every figure of speed beside its bar.

Shares are of ceilings.py's ceilings, in the same run; operations are what the work needs (r1grpo/flops.py),
nothing that is computed twice; bytes are each operand once. Bars are for exact mode; at the end what it costs: the
same figures in fast mode beside them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bench_step import flops_of
from benchmarks.contestants import ours
from benchmarks.workloads import MODELS, NONE_ENDS, Work
from r1grpo import Model, ModelConfig
from r1grpo.device import FAST
from r1grpo.plan import plan_memory, resident_memory

from .ceilings import Ceilings
from .op_loop import Loop, seconds
from .record import OutOfTimeError, Part, Rows
from .sizes import QUICK, WHOLE, Shapes

TERA, GIGA = 1e12, 1e9


class Bench:
    """The pieces, on one GPU. device: what models are asked for."""

    def __init__(self, part: Part, ceilings: Ceilings, device: str) -> None:
        self.part, self.device = part, device
        self.matmul, self.copy = ceilings.matmul, ceilings.copy
        self.shapes: Shapes = QUICK if part.quick else WHOLE
        # what, unit, in exact mode, and what measures it on another device
        self.price: list[tuple[str, str, float, Callable[[str], float]]] = []

    def loop(self, op: str, fast: bool = False, **sizes: int) -> float:
        """Median seconds of an op in bf16."""
        with Loop(op, fast=fast, bf16=1, **sizes) as loop:
            return seconds(loop.run, self.shapes.at_least, self.shapes.repeats)

    def calls(self, call: Callable[[], object], repeats: int | None = None) -> float:
        """Median seconds of a call that waits for its results, behind one that warms up."""
        call()
        found = []
        for _ in range(repeats or self.shapes.repeats):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
        return statistics.median(found)

    # ---- ops ----

    def products(self, rows: Rows) -> None:
        """bf16 products of the models' shapes; no bar of their own."""
        for sizes in self.shapes.products:
            for form in ("nt", "nn", "tn"):
                rate = 2.0 * sizes["N"] * sizes["O"] * sizes["I"] / self.loop(f"matmul_{form}", **sizes)
                rows.add(what=f"matmul_{form}", **sizes, tflops=rate / TERA, share=rate / self.matmul)
                if form == "nt":
                    work = 2e-12 * sizes["N"] * sizes["O"] * sizes["I"]
                    self.price.append((
                        f"product {sizes['N']} x {sizes['I']} x {sizes['O']}", "TFLOP/s", rate / TERA,
                        lambda device, sizes=sizes, work=work: work / self.loop(
                            "matmul_nt", fast=device == FAST, **sizes)))

    def experts(self, rows: Rows) -> None:
        for sizes in self.shapes.experts:
            for form in ("nt", "nn", "tn"):
                rate = 2.0 * sizes["N"] * sizes["O"] * sizes["I"] / self.loop(f"matmul_{form}", **sizes)
                rows.bar(f"grouped matmul_{form}, {sizes['N'] // sizes['E']} tokens an expert", rate / self.matmul,
                         "of the matmul ceiling", 0.45, 0.65, tflops=rate / TERA, **sizes)

    def attention(self, rows: Rows) -> None:
        for sizes in self.shapes.attention:
            T, D, Dv = sizes["T"], sizes["D"], sizes["Dv"]  # noqa: N806
            pairs = sizes["B"] * sizes["H"] * T * (T + 1) / 2
            for op, work, least, aim in (("attention_fwd", 2.0 * pairs * (D + Dv), 0.40, 0.60),
                                         ("attention_bwd", pairs * (6.0 * D + 4.0 * Dv), 0.30, 0.45)):
                rate = work / self.loop(op, **sizes)
                rows.bar(f"{op}, T {T}, heads of {D}", rate / self.matmul, "of the matmul ceiling", least, aim,
                         tflops=rate / TERA, **sizes)

    def decode(self, rows: Rows) -> None:
        """One query of each sequence; bytes: the bf16 cache once (of MLA what its latent would take)."""
        for name, (sizes, numbers) in self.shapes.decode.items():
            rate = 2.0 * numbers * sizes["B"] * sizes["T"] / self.loop("attention_fwd", **sizes)
            rows.bar(f"decode attention, {name}", rate / self.copy, "of copy bandwidth", 0.65, 0.80,
                     gigabytes=rate / GIGA, **sizes)

    def streams(self, rows: Rows) -> None:
        """RMSNorm with residual: four arrays of (N, I) float32 each way. AdamW: weights, two moments read and
        written, gradients read, the bf16 copy written: 30 bytes a parameter."""
        norm, adamw = self.shapes.norm, self.shapes.adamw
        for what, op, sizes, size in (("RMSNorm", "rmsnorm_fwd", norm, 16.0 * norm["N"] * norm["I"]),
                                      ("gradient of RMSNorm", "rmsnorm_bwd", norm, 16.0 * norm["N"] * norm["I"]),
                                      ("AdamW", "adamw", adamw, 30.0 * adamw["O"] * adamw["I"])):
            rate = size / self.loop(op, **sizes)
            rows.bar(what, rate / self.copy, "of copy bandwidth", 0.85, 0.85, gigabytes=rate / GIGA, **sizes)

    # ---- models ----

    def step(self, work: Work, micro: int, device: str) -> float:
        """Median seconds of a step of SFT: gradient and update."""
        model = ours.model_of(work.model, "bfloat16", device)
        return self.calls(ours.step_of(work, model, micro), min(5, self.shapes.repeats))

    def training(self, rows: Rows, name: str, work: Work) -> None:
        """Micro-batches of several sizes; the best one counts."""
        took = {micro: self.step(work, micro, self.device) for micro in self.shapes.rows}
        best = min(took, key=took.__getitem__)
        rate = flops_of(work) / took[best]
        rows.bar(f"training step, {name}, {work.tokens} tokens", rate / self.matmul, "of the matmul ceiling",
                 0.45, 0.58, tflops=rate / TERA, tokens_per_second=work.tokens / took[best],
                 seconds_by_micro_batch_tokens=took)
        self.price.append((f"training step, {name}", "tokens/s", work.tokens / took[best],
                           lambda device: work.tokens / self.step(work, best, device)))

    def head_step(self, device: str) -> tuple[ModelConfig, Callable[[], None]]:
        """A model of one small layer, and its policy gradient."""
        shapes = self.shapes
        (B, T), how = shapes.head_rows, {**MODELS[shapes.head_of], **shapes.head, **NONE_ENDS}  # noqa: N806
        model = Model(ModelConfig.from_dict(how), dtype="bfloat16", device=device)
        ids = Work("sft", shapes.head_of, B, T + 1).ids()
        prompts, completions = [*ids[:, :1]], [*ids[:, 1:]]
        old = model.logprobs(prompts, completions)  # and scratch memory of forward

        def step() -> None:
            model.policy_gradient(prompts, completions, advantages=[1.0, -1.0] * (B // 2) + [1.0] * (B % 2),
                                  weights=[1.0] * B, old_logprobs=old, micro_batch_tokens=B * (T + 1))
        return model.config, step

    def head(self, rows: Rows) -> None:
        """N C V multiply-adds three times, the layer's time counted as the head's. Memory: what the first call
        took, less the plan's gradients, activations and KV; logits are float32 here, so they would be whole."""
        B, T = self.shapes.head_rows  # noqa: N806
        config, step = self.head_step(self.device)
        planned = plan_memory(config, dtype="bfloat16", length=T + 1, sequences=B, device=self.device,
                              micro_batch_tokens=B * (T + 1))
        before = resident_memory(self.device)
        step()
        took = resident_memory(self.device) - before - sum(map(planned.bytes_of, (
            "gradients", "training: activations", "training: KV")))
        N, C, V = B * T, config.hidden_size, config.vocab_size  # noqa: N806
        work, name = 6.0 * N * C * V, f"fused head with GRPO loss, {N} x {V}"
        rate = work / self.calls(step)
        rows.bar(name, rate / TERA, "TFLOP/s", 500.0, 650.0, share=rate / self.matmul)
        self.price.append((name, "TFLOP/s", rate / TERA,
                           lambda device: work / TERA / self.calls(self.head_step(device)[1])))
        logits = 4.0 * N * V
        rows.bar("memory of the logits over the head's", logits / max(took, 1), "x", 10.0, 10.0,
                 of_bf16_logits=logits / 2.0 / max(took, 1), head_bytes=took,
                 planned=planned.bytes_of("training: head"))

    def decoding(self, work: Work, device: str) -> tuple[list[float], list[float]]:
        """Tokens a second behind the first one of each sequence, and those of the whole call."""
        model = ours.model_of(work.model, "bfloat16", device)
        decode, whole = [], []
        for _ in range(1 + min(3, self.shapes.repeats)):
            begin = time.perf_counter()
            session = model.session(work.ids().tolist(), 1, work.new, stop_token_ids=())
            session.run(1)
            first = time.perf_counter()
            while not session.done:
                session.run(64)
            session.rollout()
            end = time.perf_counter()
            decode.append(work.batch * (work.new - 1) / (end - first))
            whole.append(work.tokens / (end - begin))
        return decode[1:], whole[1:]

    def sampling(self, rows: Rows) -> None:
        for work, least, aim in self.shapes.sampling:
            decode, whole = self.decoding(work, self.device)
            rate = statistics.median(decode)
            row: dict[str, Any] = {"whole_call": statistics.median(whole), "spread": decode}
            if least is None:
                rows.add(what=work.name, value=rate, unit="tokens/s", **row)
            else:
                rows.bar(f"decode, {work.name}", rate, "tokens/s", least, aim, **row)
            self.price.append((f"decode, {work.name}", "tokens/s", rate,
                               lambda device, work=work: statistics.median(self.decoding(work, device)[0])))

    def grpo_step(self, device: str) -> dict[str, float]:
        """Median seconds of a step and of its parts; in fast mode with the scoring that it needs."""
        work = self.shapes.grpo
        step = ours.step_of(work, ours.model_of(work.model, "bfloat16", device), self.shapes.rows[0])
        step()
        found = [step() for _ in range(min(3, self.shapes.repeats))]
        return {name: statistics.median(one[name] for one in found) for name in found[0]}

    def grpo(self, rows: Rows) -> None:
        """Its bar is a ratio to a peer: part `peers`."""
        work, parts = self.shapes.grpo, self.grpo_step(self.device)
        rate = work.tokens / parts["seconds"]
        rows.add(what=work.name, tokens_per_second=rate, **parts)
        self.price.append((f"GRPO step, {work.name}", "tokens/s", rate,
                           lambda device: work.tokens / self.grpo_step(device)["seconds"]))

    def prices(self, rows: Rows) -> None:
        """What exactness costs: the same figures in both modes."""
        for what, unit, exact, measure in self.price:
            if self.part.left <= 0:
                raise OutOfTimeError(f"the part's minutes are over before {what}")
            fast = measure(FAST)
            rows.add(what=what, unit=unit, exact=exact, fast=fast, price=fast / exact)


def run(part: Part, device: str = "cuda", **_: str) -> None:
    ceilings = part.piece("ceilings", Ceilings, part.quick)
    if ceilings is None:
        part.refuse("without ceilings there are no shares")
        return
    bench = Bench(part, ceilings, device)
    part.piece("products", bench.products)
    part.piece("grouped products", bench.experts)
    part.piece("attention", bench.attention)
    part.piece("decode attention", bench.decode)
    part.piece("streams", bench.streams)
    part.piece("sampling", bench.sampling)  # one model after the other: each is made once for what needs it
    part.piece("a GRPO step", bench.grpo)
    for name, work in bench.shapes.training.items():
        part.piece(f"training, {name}", bench.training, name, work)
    part.piece("head", bench.head)
    part.piece("price of exact mode", bench.prices)
