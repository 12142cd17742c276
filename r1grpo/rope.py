"""Rotary positions: the rope parameters of a config -> frequencies and factors.

Pair i of a head turns by position x inv_freq[i] (Su et al. 2021, eq. 34); cos and sin are multiplied
by `factor`, the scores of attention by `attn_scale` too. With f_i = rope_theta^(-2i / width), i < width / 2:

    default   f_i
    linear    f_i / factor                                                       (Chen et al. 2023)
    dynamic   f_i: its base grows only beyond max_position_embeddings, where no sequence here goes
    llama3    f_i where 2 pi / f_i < original / high, f_i / factor where it is > original / low, in between
              (1 - s) f_i / factor + s f_i, s = (original f_i / 2 pi - low) / (high - low)   (Llama 3.1's code)
    yarn      (f_i / factor) r_i + f_i (1 - r_i), r_i = clip((i - a) / (b - a), 0, 1), a and b the pairs that
              turn beta_fast and beta_slow times within the original context      (Peng et al. 2023);
              factor of cos and sin: `attention_factor`, else m(mscale) / m(mscale_all_dim), else m(1),
              m(x) = 0.1 x ln(factor) + 1. DeepSeek multiplies the scores by m(mscale_all_dim)^2 too.

`original` is original_max_position_embeddings, by default the declared context. Everything in float64;
names, defaults and precedence are those of transformers. The core sees the numbers only and knows no type.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .brief import brief

__all__ = ["ROPE_TYPES", "Rope", "make_rope"]


@dataclass(frozen=True)
class Rope:
    """inv_freq (width / 2) float64, the factor of cos and sin, and that of attention's scores."""

    inv_freq: np.ndarray
    factor: float = 1.0
    attn_scale: float = 1.0


def make_rope(parameters: Mapping[str, Any], width: int, context: int, deepseek: bool) -> Rope:
    """parameters: rope_theta, rope_type (or type) and the keys of that type; width: rotary columns of
    a head, even; context: max_position_embeddings; deepseek: mscale_all_dim also scales the scores.
    ValueError naming the key that is missing or cannot be."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ValueError(f"rope type {brief(kind)} is not known; known are {', '.join(ROPE_TYPES)}")
    _check_keys(kind, parameters)
    p = {"original_max_position_embeddings": context, **parameters}
    if p.get("factor", 0) is None:  # null: what the two contexts say
        p["factor"] = context / _number(p, "original_max_position_embeddings", kind)
    base = _number(p, "rope_theta", kind)
    plain = np.array([base ** (-2.0 * i / width) for i in range(width // 2)])  # libm's bits
    inv_freq, factor = ROPE_TYPES[kind](plain, p)
    everywhere = p.get("mscale_all_dim") if deepseek and kind != "default" else None
    scale = _mscale(_number(p, "factor", kind), _number(p, "mscale_all_dim", kind)) ** 2 \
        if everywhere else 1.0
    return Rope(inv_freq, factor, scale)


def _check_keys(kind: str, parameters: Mapping[str, Any]) -> None:
    """Keys of other types are left alone, as transformers does; what would change the model is not."""
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            raise ValueError(f"rope parameters for each kind of layer ('{key}') are not supported")
        if key == "partial_rotary_factor" and value not in (None, 1, 1.0):
            raise ValueError(f"partial_rotary_factor is {brief(value)}; only whole heads are "
                             f"rotated here")
        close = difflib.get_close_matches(str(key), _KEYS - {key}, n=1, cutoff=0.85)
        if key not in _KEYS and close:
            raise ValueError(f"unknown rope key '{key}': did you mean '{close[0]}'?")


def _number(p: Mapping[str, Any], key: str, kind: str, default: float | None = None) -> float:
    """p[key], above 0 and finite; null and absent are the default."""
    value = p.get(key) if p.get(key) is not None else default
    if value is None:
        raise ValueError(f"rope type '{kind}' needs {key}")
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not 0 < value < 1e30:
        raise ValueError(f"{key} of rope is {brief(value)}, must be a number above 0")
    return float(value)


def _default(plain: np.ndarray, p: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    return plain, 1.0


def _linear(plain: np.ndarray, p: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    return plain / _number(p, "factor", "linear"), 1.0


def _dynamic(plain: np.ndarray, p: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    _number(p, "factor", "dynamic")
    return plain, 1.0


def _llama3(plain: np.ndarray, p: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    factor, low, high, original = (_number(p, key, "llama3") for key in (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    if high <= low:
        raise ValueError(f"high_freq_factor {high} of rope must be above low_freq_factor {low}")
    turns = original * plain / (2.0 * math.pi)  # of each pair within the original context
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 - smooth) * plain / factor + smooth * plain, 1.0


def _yarn(plain: np.ndarray, p: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    factor, original, base = (_number(p, key, "yarn") for key in (
        "factor", "original_max_position_embeddings", "rope_theta"))
    if base <= 1.0:
        raise ValueError(f"rope_theta of rope type 'yarn' is {base}, must be above 1")
    width = 2 * len(plain)

    def pair_of(turns: float) -> float:
        """The pair, as a real number, that turns so often within the original context."""
        return width * math.log(original / (turns * 2.0 * math.pi)) / (2.0 * math.log(base))

    low = pair_of(_number(p, "beta_fast", "yarn", 32.0))
    high = pair_of(_number(p, "beta_slow", "yarn", 1.0))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(len(plain)) - low) / (high - low), 0.0, 1.0)
    return plain / factor * ramp + plain * (1.0 - ramp), _attention_factor(p, factor)


def _attention_factor(p: Mapping[str, Any], factor: float) -> float:
    if p.get("attention_factor") is not None:
        return _number(p, "attention_factor", "yarn")
    if p.get("mscale") and p.get("mscale_all_dim"):
        return (_mscale(factor, _number(p, "mscale", "yarn"))
                / _mscale(factor, _number(p, "mscale_all_dim", "yarn")))
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


ROPE_TYPES = {"default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3,
              "yarn": _yarn}
_KEYS = frozenset(
    "rope_type type rope_theta factor partial_rotary_factor original_max_position_embeddings "
    "low_freq_factor high_freq_factor beta_fast beta_slow attention_factor mscale mscale_all_dim "
    "truncate".split())
