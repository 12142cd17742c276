"""checks.py - part `test`: the CUDA tests on the GPU, E1 on whole models, two training runs bit for bit."""

from __future__ import annotations

import hashlib

import numpy as np

from benchmarks.workloads import MODELS, NONE_ENDS
from r1grpo import Model, ModelConfig

from .pytest_run import chosen_files, run_file, run_files
from .record import Part, Rows

DTYPES = ("bfloat16", "float32")
NAMES = ("small_dense", "tiny_moe")
LENGTHS, NEW, BATCHES = (1, 63, 64, 1900), 200, (1, 7, 256)  # the issue's
AT_A_TIME, SHARE = 4, 0.6  # test files; of the part's time they may take
OWN = "test_gpu_benchmark.py"  # runs these parts


def prompts_of(lengths: tuple[int, ...], count: int, vocab: int) -> list[list[int]]:
    """`count` prompts of these lengths in turn."""
    rng = np.random.default_rng(0)
    return [rng.integers(4, vocab, lengths[i % len(lengths)]).tolist() for i in range(count)]


def model_of(name: str, dtype: str, device: str) -> Model:
    return Model(ModelConfig.from_dict({**MODELS[name], **NONE_ENDS}), dtype=dtype, device=device)


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """How many numbers have other bits."""
    return int(np.sum(a.view(np.uint32) != b.view(np.uint32)))


def gap(rows: Rows, model: Model, prompts: list[list[int]], new: int, /, **what: object) -> None:
    """The log-probs of sampling beside those of scoring and of the training forward. AssertionError where
    one has other bits."""
    out = model.generate(prompts, 1, max_new_tokens=new, seed=1, stop_token_ids=())
    scored = model.logprobs(prompts, out.completion_ids)
    loss = model.policy_gradient(prompts, out.completion_ids, advantages=np.resize([1.0, -1.0], len(out)),
                                 weights=[1.0] * len(out), old_logprobs=out.logprobs)
    sampled, again = np.concatenate(out.logprobs), np.concatenate(scored)
    row = rows.add(**what, tokens=sampled.size, finite=bool(np.isfinite(sampled).all()),
                   other_bits=differing(sampled, again), gap=float(np.abs(sampled - again).max()),
                   training_gap=float(loss.stats["logp_gap_max"]))
    model.zero_grad()
    if row["other_bits"] or row["training_gap"] != 0.0 or not row["finite"]:
        rows.wrong.append(str(what))


def exactness(rows: Rows, name: str, dtype: str, device: str, quick: bool) -> None:
    """E1: batches of one have one length each, the others all of them."""
    lengths, new, batches = ((1, 5), 3, (1, 3)) if quick else (LENGTHS, NEW, BATCHES)
    model = model_of(name, dtype, device)
    vocab = MODELS[name]["vocab_size"]
    for batch in batches:
        for some in [(n,) for n in lengths] if batch == 1 else [lengths]:
            gap(rows, model, prompts_of(some, batch, vocab), new, model=name, dtype=dtype, batch=batch,
                prompts=list(some))


def training(rows: Rows, name: str, dtype: str, device: str, quick: bool) -> None:
    """Two runs of three steps of sampling, gradient and update: the same weights, bit for bit."""
    steps, new, lengths = (1, 3, (4,)) if quick else (3, 32, (5, 64, 200))
    prompts = prompts_of(lengths, 8 if not quick else 1, MODELS[name]["vocab_size"])

    def digest() -> str:
        model = model_of(name, dtype, device)
        for step in range(steps):
            out = model.generate(prompts, 2, max_new_tokens=new, seed=5, step=step, stop_token_ids=())
            model.zero_grad()
            model.policy_gradient(prompts, out.completion_ids, advantages=np.resize([1.0, -1.0], len(out)),
                                  weights=[1.0] * len(out), old_logprobs=out.logprobs)
            model.update(1e-3, max_grad_norm=1.0)
        found = hashlib.sha256()
        for key, array in sorted(model.state_dict().items()):
            found.update(key.encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    first, second = digest(), digest()
    rows.add(model=name, dtype=dtype, steps=steps, equal=first == second, weights=[first, second])
    if first != second:
        rows.wrong.append(f"{name} {dtype}")


def tests(rows: Rows, nodes: str, folder: str) -> None:
    files = [file for file in chosen_files(nodes, folder) if not file.endswith(OWN)]
    for row in run_files(files, lambda file, seconds: run_file(file, nodes, seconds), SHARE * rows.part.left,
                         AT_A_TIME):
        rows.add(**row)
        if row["output"]:
            rows.wrong.append(row["file"])
    rows.add(file="all", **{name: sum(row[name] for row in rows.found)
                            for name in ("passed", "failed", "skipped", "missing")})


def run(part: Part, device: str = "cuda", nodes: str = "cuda,real", folder: str = "tests") -> None:
    """nodes: names of the device among the tests' parameters; folder: of tests."""
    part.piece("tests", tests, nodes, folder)
    for name in NAMES:
        for dtype in DTYPES:
            part.piece(f"E1, {name}, {dtype}", exactness, name, dtype, device, part.quick)
            part.piece(f"two training runs, {name}, {dtype}", training, name, dtype, device, part.quick)
