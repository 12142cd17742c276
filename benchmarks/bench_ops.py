"""bench_ops.py - every op of the table: its speed, as a share of the machine's, and its growth.

    python -m benchmarks.bench_ops [--json FILE] [--only PART] [--tier TIER|all] [--threads N] [--quick]

matmul   the three forms at 1 to 4,096 rows, float32 and bf16: GFLOP/s against the instruction that the
         tier multiplies with, in registers (machine.py). One row is GB/s of the matrix against reading
         memory from end to end; what fits into a cache may exceed that. 8 rows, float32 and bf16, stand
         beside NumPy's BLAS in float32, measured in turn in a process of its own
ops      everything else: products and attention in GFLOP/s, the others in GB/s against y = a + b on as
         much memory; op_cases.py says what counts as work
moe      routing, permutation and combination over the experts' matmuls, 512 tokens of a tiny mixture

Times, rates and `share` are medians; `best` is the share of the fastest measurement, which a machine
that does other work too (load_average) disturbs least. growth: least seconds per unit of work at one
size over the same at the size before; at most about 1 when cost grows no faster than work.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import product
from typing import Any

from r1grpo import _core

from .harness import Report, Row, Worker, options
from .machine import seconds_of
from .op_cases import Bench, Case

PARTS = ("matmul", "ops", "moe")
FORMS, DTYPES = ("nt", "nn", "tn"), ("float32", "bfloat16")
ROWS = (1, 8, 64, 512, 4096)
MATRICES = ((896, 896), (896, 4864), (4864, 896), (256, 1024), (128, 512), (64, 256))  # (I, O)
HEAD, HEAD_ROWS = (896, 151_936), (1, 8, 64)
MOE = {"E": 16, "K": 2, "C": 128, "groups": (1, 1)}  # the tiny mixture of workloads.py
MOE_FFN, MOE_TOKENS = 128, 512
TITLE = (f"{'op':26} {'shape':38} {'us':>11} {'rate':>17} {'share':>6} {'best':>6} {'growth':>6} "
         f"{'x BLAS':>6}")

# what is promised of matmul shares: rows of the table -> (least, aim)
BARS: tuple[tuple[str, Any, str, float, float | None], ...] = (
    *((f"{dtype}, {form}, {span} rows, matrices of 256 and more",
       lambda r, d=dtype, f=form, n=rows: (r["dtype"], r["form"]) == (d, f) and r["rows"] in n
       and r["I"] >= 256 and r["O"] >= 256, "share", least, 0.93)
      for dtype in DTYPES for form in FORMS
      for span, rows, least in (("64, 512", (64, 512), 0.85),
                                ("4,096", (4096,), 0.85 if dtype == "float32" else 0.80))),
    *((f"{dtype}, 8 rows over float32 BLAS",
       lambda r, d=dtype: r["dtype"] == d and r.get("over_blas"), "over_blas", 2.2, 2.6)
      for dtype in DTYPES),
    *((f"{dtype}, (64, 256), nt, 8 rows or more",
       lambda r, d=dtype: (r["dtype"], r["form"], r["I"], r["O"]) == (d, "nt", 64, 256)
       and r["rows"] >= 8, "share", 0.65, None) for dtype in DTYPES),
    *((f"{dtype}, 1 row, the head, of reading memory",
       lambda r, d=dtype: (r["dtype"], r["form"], r["rows"], r["O"]) == (d, "nt", 1, HEAD[1]),
       "share", least, 0.75) for dtype, least in (("float32", 0.75), ("bfloat16", 0.65))))


class Measure:
    """The parts, on one device."""

    def __init__(self, report: Report, quick: bool) -> None:
        self.report, self.quick = report, quick
        self.device = report.limits.device
        self.bench = Bench(self.device)

    def row(self, part: str, name: str, case: Case, unit: str, limit: float,
            previous: float | None = None, **more: Any) -> Row:
        """Measure a case, keep and print it."""
        call, work, shape = case
        median, least = self.seconds(call)
        row = {"part": part, "tier": self.device.tier, "op": name, "shape": shape,
               "microseconds": median * 1e6, "rate": work / median / 1e9, "unit": unit,
               "share": work / median / limit, "best": work / least / limit, "cost": least / work,
               "growth": None if previous is None else least / work / previous, **more}
        growth, blas = row["growth"], more.get("over_blas")
        return self.report.add(row, (
            f"{name:26} {shape:38} {row['microseconds']:11.1f} {row['rate']:9.1f} {unit:7} "
            f"{row['share']:6.0%} {row['best']:6.0%} {'' if growth is None else f'{growth:.2f}':>6} "
            f"{'' if blas is None else f'{blas:.2f}':>6}"))

    def seconds(self, call: Any) -> tuple[float, float]:
        return seconds_of(call, 1e-6, 1) if self.quick else seconds_of(call)

    def matmul(self, blas: Worker) -> None:
        matrices = [(*m, ROWS) for m in MATRICES] + [(*HEAD, HEAD_ROWS)]
        for (I, O, rows), dtype, form in product(  # noqa: E741
                [(64, 256, (1, 8))] if self.quick else matrices, DTYPES, FORMS):
            cost = None
            if form == FORMS[0]:
                self.report.measure_limits_again()
            for n in rows:
                case = self.bench.matmul(form, n, O, I, dtype)
                about: Row = {"dtype": dtype, "form": form, "rows": n, "I": I, "O": O}
                if n == 1:
                    size = I * O * (2.0 if dtype == "bfloat16" and form == "nt" else 4.0)
                    self.row("matmul", f"matmul_{form}, {dtype}", (case[0], size, case[2]), "GB/s",
                             self.report.limits.read, **about)
                    continue
                if n == 8 and form == "nt":
                    about |= self.beside_blas(case, blas, n, O, I)
                cost = self.row("matmul", f"matmul_{form}, {dtype}", case, "GFLOP/s",
                                self.report.limits.flops(dtype), cost, **about)["cost"]
            del case

    def beside_blas(self, case: Case, blas: Worker, n: int, O: int, I: int) -> Row:  # noqa: E741
        """How many times as fast as BLAS, both in turn."""
        ours, theirs = [], []
        for _ in range(1 if self.quick else 5):
            ours.append(self.seconds(case[0])[0])
            found = blas.ask({"rows": n, "O": O, "I": I, "repeats": 1 if self.quick else 5})
            if found is None:
                return {}
            theirs.append(found["seconds"])
            self.report.found["blas"] = found["name"]
        return {"over_blas": statistics.median(theirs) / statistics.median(ours)}

    def ops(self) -> None:
        limits = self.report.limits
        for unit, cases in (("GFLOP/s", self.bench.flop_cases()), ("GB/s", self.bench.byte_cases())):
            for name, make, sizes in cases:
                cost = None
                for n in sizes[:1] if self.quick else sizes:
                    case = make(n)
                    limit = limits.flops() if unit == "GFLOP/s" else limits.stream(int(case[1]))
                    cost = self.row("ops", name, case, unit, limit, cost)["cost"]

    def moe(self) -> None:
        """Both directions of a layer: what it costs that experts are chosen, over what they compute."""
        n, K, C = MOE_TOKENS, MOE["K"], MOE["C"]
        around = [self.bench.moe(name, n, **MOE) for name in (
            "router_fwd", "dispatch_plan", "combine_fwd", "router_bwd", "combine_bwd", "dispatch_bwd")]
        around.append(self.bench.moved("gather_rows", self.bench.normal(n * K, C),
                                       self.bench.normal(n, C), self.bench.rng.integers(
                                           0, n, n * K).astype("int32")))
        for dtype in DTYPES:
            experts = [self.bench.experts(form, n * K, *shape, dtype) for form in FORMS
                       for shape in ((MOE_FFN, C), (MOE_FFN, C), (C, MOE_FFN))]
            cost, work = (sum(self.seconds(case[0])[0] for case in cases)
                          for cases in (around, experts))
            row = {"part": "moe", "tier": self.device.tier, "dtype": dtype, "tokens": n, **MOE,
                   "around": cost, "experts": work, "share": cost / work}
            self.report.add(row, f"moe, {dtype}, {n} tokens: around the experts {cost * 1e6:.0f} us, "
                            f"experts {work * 1e6:.0f} us: {cost / work:.1%} (bar 10 %)")


def bars(rows: list[Row]) -> Iterator[Row]:
    """What was promised, and the worst and the median of what was found."""
    for name, mine, key, least, aim in BARS:
        found = [row[key] for row in rows if row["part"] == "matmul" and mine(row)]
        if found:
            yield {"bar": name, "least": least, "aim": aim, "worst": min(found),
                   "median": statistics.median(found)}


def main(arguments: list[str] | None = None) -> None:
    args = options(__doc__, PARTS, ("--tier", {"default": "auto",
                                               "choices": ("auto", "all", *_core.tiers())}),
                   arguments=arguments)
    tiers = _core.tiers() if args.tier == "all" else (args.tier,)
    devices = [_core.Device(threads=args.threads, tier=tier) for tier in tiers]
    report = Report("ops", args.json, args.quick, devices[0])
    for device in devices:
        if device is not report.limits.device:
            report.limit_by(device)
        measure = Measure(report, args.quick)
        report.title(f"{device!r}\n{TITLE}")
        if "matmul" in args.only:
            with Worker("benchmarks.contestants.openblas", device.threads) as blas:
                measure.matmul(blas)
        if "ops" in args.only:
            measure.ops()
        if "moe" in args.only:
            measure.moe()
    found = [{"tier": device.tier, **bar} for device in devices
             for bar in bars([row for row in report.rows if row["tier"] == device.tier])]
    report.save(bars=found)
    if found:
        report.title(f"{'matmul':58} {'least':>6} {'aim':>6} {'worst':>6} {'median':>7}")
    for bar in found:
        aim = "" if bar["aim"] is None else f"{bar['aim']:.2f}"
        print(f"{bar['bar'] + ' ' + bar['tier']:58} {bar['least']:6.2f} {aim:>6} "
              f"{bar['worst']:6.2f} {bar['median']:7.2f}")


if __name__ == "__main__":
    main()
