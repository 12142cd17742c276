"""sizes.py - the shapes that the GPU is measured at, and their smallest form.

WHOLE is what the bars are for; QUICK is for an emulated GPU, and for whether anything runs at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.workloads import Work

Sizes = dict[str, int]


@dataclass(frozen=True)
class Shapes:
    """Sizes of ops as op_loop.c has them, and works of workloads.py."""

    products: tuple[Sizes, ...]  # beside the ceiling, without a bar
    experts: tuple[Sizes, ...]
    attention: tuple[Sizes, ...]
    decode: dict[str, tuple[Sizes, int]]  # and numbers of the cache that a position needs, K and V
    norm: Sizes
    adamw: Sizes
    training: dict[str, Work]
    rows: tuple[int, ...]  # of a micro-batch of training
    head: dict[str, Any]  # a model that is almost only a head: what it has else than `head_of`
    head_of: str
    head_rows: tuple[int, int]  # sequences, completion tokens of each
    sampling: tuple[tuple[Work, float | None, float | None], ...]  # tokens a second: least, aim
    grpo: Work
    repeats: int
    at_least: float  # seconds of a measurement


WHOLE = Shapes(
    products=({"N": 16_384, "O": 4864, "I": 896}, {"N": 16_384, "O": 896, "I": 4864},
              {"N": 16_384, "O": 8960, "I": 1536}, {"N": 256, "O": 8960, "I": 1536}),
    experts=({"N": 128 * 128, "E": 128, "O": 768, "I": 2048}, {"N": 128 * 128, "E": 128, "O": 2048, "I": 768},
             {"N": 512 * 128, "E": 128, "O": 768, "I": 2048}),
    attention=({"B": 8, "T": 2048, "rows": 2048, "H": 14, "Hkv": 2, "D": 64, "Dv": 64},
               {"B": 8, "T": 2048, "rows": 2048, "H": 16, "Hkv": 4, "D": 128, "Dv": 128},
               {"B": 8, "T": 2048, "rows": 2048, "H": 16, "Hkv": 16, "D": 192, "Dv": 128}),
    decode={"grouped, 14 heads on 2": (
                {"B": 256, "T": 2048, "rows": 1, "H": 14, "Hkv": 2, "D": 64, "Dv": 64}, 2 * 2 * 64),
            "grouped, 32 heads on 8": (
                {"B": 128, "T": 2048, "rows": 1, "H": 32, "Hkv": 8, "D": 128, "Dv": 128}, 2 * 8 * 128),
            "MLA, 16 heads, by its latent 512 + 64": (
                {"B": 64, "T": 2048, "rows": 1, "H": 16, "Hkv": 16, "D": 192, "Dv": 128}, 576)},
    norm={"N": 65_536, "I": 1536}, adamw={"O": 151_936, "I": 1536},
    training={"0.5B": Work("sft", "qwen_0.5b", 32, 512), "1.5B": Work("sft", "qwen_1.5b", 32, 512)},
    rows=(8192, 4096),
    head=dict(num_hidden_layers=1, intermediate_size=64), head_of="qwen_0.5b", head_rows=(16, 512),
    sampling=((Work("generate", "tiny_moe", 1024, 64, 128), None, None),
              (Work("generate", "qwen_0.5b", 1, 64, 256), 1_500.0, 2_500.0),
              (Work("generate", "qwen_0.5b", 32, 384, 256), None, None),
              (Work("generate", "qwen_0.5b", 256, 384, 256), 100_000.0, 160_000.0)),
    grpo=Work("grpo", "qwen_0.5b", 64, 128, 256, 8), repeats=7, at_least=0.05)

QUICK = Shapes(
    products=({"N": 16, "O": 24, "I": 16},), experts=({"N": 16, "E": 2, "O": 8, "I": 16},),
    attention=({"B": 1, "T": 40, "rows": 40, "H": 2, "Hkv": 1, "D": 8, "Dv": 8},),
    decode={"grouped": ({"B": 2, "T": 70, "rows": 1, "H": 2, "Hkv": 1, "D": 8, "Dv": 8}, 16)},
    norm={"N": 4, "I": 64}, adamw={"O": 8, "I": 16},
    training={"tiny": Work("sft", "tiny_moe", 2, 8)}, rows=(64,),
    head=dict(num_hidden_layers=1), head_of="tiny_moe", head_rows=(1, 4),
    sampling=((Work("generate", "tiny_moe", 1, 4, 3), 1.0, 2.0),), grpo=Work("grpo", "tiny_moe", 2, 4, 2, 2),
    repeats=1, at_least=0.0)
