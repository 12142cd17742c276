"""llama.py - llama.cpp, by the Python package llama-cpp-python, at sampling with a Qwen2-shaped model.

A batch of prompts is read at once, then one token of each sequence at a time. Which token comes next is
given, not drawn: that work is spared, in its favour. The weights are random, in bf16, in a GGUF file
that is written here.
"""

from __future__ import annotations

import os
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from benchmarks.workloads import MODELS, Work

_UINT32, _FLOAT32, _STRING = 4, 6, 8  # types of a value
_F32, _BF16 = 0, 30  # types of a tensor
_ALIGN = 32
_open: dict[str, Any] = {}


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as NumPy has them; vectors stay float32."""
    C, F = config["hidden_size"], config["intermediate_size"]  # noqa: N806
    kv = C // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "token_embd.weight", (config["vocab_size"], C)
    yield "output_norm.weight", (C,)
    for i in range(config["num_hidden_layers"]):
        for name, shape in (("attn_norm", (C,)), ("attn_q", (C, C)), ("attn_k", (kv, C)),
                            ("attn_v", (kv, C)), ("attn_output", (C, C)), ("ffn_norm", (C,)),
                            ("ffn_gate", (F, C)), ("ffn_up", (F, C)), ("ffn_down", (C, F))):
            yield f"blk.{i}.{name}.weight", shape
        for name, size in (("attn_q", C), ("attn_k", kv), ("attn_v", kv)):
            yield f"blk.{i}.{name}.bias", (size,)


def write_gguf(path: Path, config: dict[str, Any]) -> None:
    """GGUF version 3: values, places of tensors, tensors; dimensions fastest first."""
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values: dict[str, Any] = {
        "general.architecture": "qwen2", "tokenizer.ggml.model": "none",
        "qwen2.vocab_size": config["vocab_size"], "qwen2.context_length": 32_768,
        "qwen2.embedding_length": config["hidden_size"],
        "qwen2.block_count": config["num_hidden_layers"],
        "qwen2.feed_forward_length": config["intermediate_size"],
        "qwen2.attention.head_count": config["num_attention_heads"],
        "qwen2.attention.head_count_kv": config["num_key_value_heads"],
        "qwen2.rope.freq_base": float(config["rope_theta"]),
        "qwen2.attention.layer_norm_rms_epsilon": 1e-6}
    head, places, offset = b"", b"", 0
    for key, value in values.items():
        kind, data = (_STRING, text(value)) if isinstance(value, str) else \
            (_FLOAT32, struct.pack("<f", value)) if isinstance(value, float) else \
            (_UINT32, struct.pack("<I", value))
        head += text(key) + struct.pack("<I", kind) + data
    for name, shape in tensors(config):
        kind = _BF16 if len(shape) == 2 else _F32
        places += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)
        offset += -(-int(np.prod(shape)) * (2 if kind == _BF16 else 4) // _ALIGN) * _ALIGN
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(list(tensors(config))), len(values)))
        file.write(head + places)
        for _, shape in tensors(config):
            file.write(bytes(-file.tell() % _ALIGN))
            array = 0.02 * rng.standard_normal(shape, np.float32)
            file.write((array.view(np.uint32) >> 16).astype(np.uint16).tobytes() if len(shape) == 2
                       else (1.0 + array).astype(np.float32).tobytes())
        file.write(bytes(-file.tell() % _ALIGN))


def model_of(name: str) -> Any:
    """The open model of that shape."""
    if name not in _open:
        lib.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.gguf")
            write_gguf(path, MODELS[name])
            options = lib.llama_model_default_params()
            options.use_mmap = False
            _open[name] = lib.llama_model_load_from_file(str(path).encode(), options)
        if not _open[name]:
            raise RuntimeError("llama.cpp does not load the model")
    return _open[name]


def decode(context: Any, rows: list[tuple[int, int, int, bool]]) -> None:
    """One call over rows of (token, position, sequence, whether its logits are wanted)."""
    batch = lib.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
        batch.seq_id[i][0], batch.logits[i] = sequence, wanted
    failed = lib.llama_decode(context, batch)
    lib.llama_batch_free(batch)
    if failed:
        raise RuntimeError(f"llama_decode returned {failed}")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `times` generations."""
    work = Work(**{name: request[name] for name in ("kind", "model", "batch", "length", "new", "group")})
    model, options, found = model_of(work.model), lib.llama_context_default_params(), []
    options.n_ctx = work.batch * (work.length + work.new)
    options.n_batch, options.n_seq_max = work.batch * work.length, work.batch
    options.n_threads = options.n_threads_batch = int(os.environ["OMP_NUM_THREADS"])
    context, ids = lib.llama_init_from_model(model, options), work.ids()
    prompt = [(int(ids[b, t]), t, b, t == work.length - 1)
              for b in range(work.batch) for t in range(work.length)]
    for _ in range(request["times"] + bool(request.get("warm"))):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        started = time.perf_counter()
        decode(context, prompt)
        for t in range(work.length, work.length + work.new - 1):
            decode(context, [(int(ids[b, t % work.length]), t, b, True) for b in range(work.batch)])
        found.append(time.perf_counter() - started)
    lib.llama_free(context)
    return {"seconds": found[-request["times"]:]}
