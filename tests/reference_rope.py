"""Frequencies of rotary positions in float64, from the sources' equations, written pair by pair.

`frequencies(config, width)` takes a dict of Hugging Face's keys, `rope_scaling` or `rope_parameters`.
Imports nothing of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain_frequencies(theta: float, width: int) -> np.ndarray:
    """theta^(-2i / width), i < width / 2.  Su et al. 2021, section 3.2.2."""
    return theta ** (-2.0 * np.arange(width // 2) / width)


def frequencies(config: Mapping[str, Any], width: int) -> tuple[np.ndarray, float]:
    """(inverse frequencies (width / 2), factor of cos and sin)."""
    p = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = p.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = p.get("rope_type", p.get("type", "default"))
    plain = plain_frequencies(theta, width)
    context = p.get("original_max_position_embeddings", config.get("max_position_embeddings"))
    if kind == "linear":
        return plain / p["factor"], 1.0
    if kind == "llama3":
        return np.array([llama3(f, p, context) for f in plain]), 1.0
    if kind == "yarn":
        return yarn(plain, theta, p, context)
    assert kind in ("default", "dynamic"), kind  # dynamic differs beyond the declared context only
    return plain, 1.0


def llama3(f: float, p: Mapping[str, Any], context: int) -> float:
    """One frequency, by its wavelength, as Llama 3.1's `apply_scaling` has it."""
    wavelength = 2.0 * math.pi / f
    if wavelength < context / p["high_freq_factor"]:
        return f
    if wavelength > context / p["low_freq_factor"]:
        return f / p["factor"]
    smooth = ((context / wavelength - p["low_freq_factor"])
              / (p["high_freq_factor"] - p["low_freq_factor"]))
    return (1.0 - smooth) * f / p["factor"] + smooth * f


def yarn(plain: np.ndarray, theta: float, p: Mapping[str, Any], context: int
         ) -> tuple[np.ndarray, float]:
    """Peng et al. 2023: interpolate what turns slowly, keep what turns fast; DeepSeek's mscale."""
    width, factor = 2 * len(plain), p["factor"]

    def pair(turns: float) -> float:
        return width / 2.0 * math.log(context / (2.0 * math.pi * turns), theta)

    low, high = pair(p.get("beta_fast", 32)), pair(p.get("beta_slow", 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    out = []
    for i, f in enumerate(plain):
        slow = min(max((i - low) / (high - low), 0.0), 1.0)
        out.append((1.0 - slow) * f + slow * f / factor)
    attention = p.get("attention_factor")
    if attention is None and p.get("mscale") and p.get("mscale_all_dim"):
        attention = mscale(factor, p["mscale"]) / mscale(factor, p["mscale_all_dim"])
    return np.array(out), mscale(factor, 1.0) if attention is None else attention


def mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def deepseek_score_scale(config: Mapping[str, Any]) -> float:
    """What DeepSeek-V3 multiplies the scores of attention by, beside 1 / sqrt(width)."""
    p = config.get("rope_scaling") or config.get("rope_parameters") or {}
    weight = p.get("mscale_all_dim")
    return mscale(p["factor"], weight) ** 2 if weight else 1.0
