"""Benchmarks: ratios to what this machine, a peer, or the same work at another size does in the same run.

    python -m benchmarks.bench_ops | bench_step | bench_peers | bench_scale | bench_features
    python -m benchmarks.gpu --part build|test|sanitize|bench|peers --out DIR

docs/benchmarks.md says what each measures and how to read it. Stored results are in results/. No test
asserts a time.
"""
