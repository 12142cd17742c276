"""Benchmarks: what the engine reaches, as a share of what this machine reaches in the same run.

    python -m benchmarks.bench_ops [--json FILE] [--threads N]

A time alone says nothing about another machine, so every figure stands beside a limit measured in
the same process (peak.c). Stored results are in results/. No test asserts a time.
"""
