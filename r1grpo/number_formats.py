"""number_formats.py - float32 from and to the number formats of weight files.

    F64 F32 F16   IEEE 754
    BF16          the upper half of a float32; narrowing rounds to nearest, ties to even
    F8_E4M3       1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity, 0x7f and 0xff are NaN
                  (Micikevicius et al. 2022, table 1); in DeepSeek's files each block of 128 x 128
                  numbers has a factor of its own, at an edge too: y[o,i] = x[o,i] s[o/128,i/128]
                  (DeepSeek-V3, README_WEIGHTS.md and inference/kernel.py)

Works on blocks that the caller cuts. Knows nothing of files and tensors.
"""

from __future__ import annotations

import numpy as np

__all__ = ["BLOCK", "ITEM_BYTES", "NAMES", "narrow", "scale_blocks", "scale_shape", "widen"]

BLOCK = 128  # rows and columns that share a factor
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # what can be written
# the smallest magnitude that would round to infinity
_TOO_LARGE = {"F16": 65520.0, "BF16": float.fromhex("0x1.ffp127")}


def _e4m3() -> np.ndarray:
    """The value of every byte, float32 (256)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, (code & 7) / 8
    value = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    value[code & 127 == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


_E4M3 = _e4m3()


def widen(raw: np.ndarray, dtype: str, out: np.ndarray) -> None:
    """raw: uint8 (n ITEM_BYTES[dtype]), as in a file; out: float32 (n), overwritten."""
    if dtype == "BF16":
        bits = out.view(np.uint32)
        bits[...] = raw.view("<u2")
        np.left_shift(bits, 16, out=bits)
    elif dtype == "F8_E4M3":
        np.take(_E4M3, raw, out=out, mode="clip")
    else:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
            out[...] = raw.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])


def narrow(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> the numbers of a file (uint16 for BF16). A finite number that would become infinite
    raises OverflowError; NaN stays NaN."""
    if dtype == "F32":
        return array.astype("<f4")  # a copy, so that nobody who holds a block holds all of an array
    magnitude = np.abs(array)
    if (np.isfinite(magnitude) & (magnitude >= _TOO_LARGE[dtype])).any():
        raise OverflowError(f"{magnitude[np.isfinite(magnitude)].max():g} does not fit into {dtype}")
    if dtype == "F16":
        return array.astype("<f2")
    bits = array.view(np.uint32)
    upper = bits >> 16
    rounded = (bits + (0x7FFF + (upper & 1))) >> 16
    return np.where(np.isnan(array), upper | 0x40, rounded).astype("<u2")


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the factors of an F8_E4M3 tensor (..., O, I): one a block, edges included."""
    return (*shape[:-2], *(-(-n // BLOCK) for n in shape[-2:]))


def scale_blocks(rows: np.ndarray, factors: np.ndarray) -> None:
    """rows: float32 (n, I) of one row of blocks; factors: float32 (ceil(I / BLOCK)). In place."""
    rows *= np.repeat(factors, BLOCK)[:rows.shape[1]]
