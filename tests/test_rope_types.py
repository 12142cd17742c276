"""r1grpo.rope: every type against the oracle, both spellings of a config, and what cannot be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from r1grpo import ModelConfig
from r1grpo.rope import ROPE_TYPES, make_rope
from reference_rope import deepseek_score_scale, frequencies

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
CASES: list[tuple[dict[str, Any], float, int]] = [  # parameters, theta, width
    ({}, 10000.0, 64), ({"rope_type": "default"}, 1e6, 2), ({"type": "linear", "factor": 2.5}, 1e4, 128),
    ({"type": "dynamic", "factor": 4.0}, 1e4, 64), (LLAMA3, 500000.0, 128), (YARN, 10000.0, 64),
    ({**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1}, 1e4, 64),
    ({**YARN, "mscale": 0.707, "mscale_all_dim": 1.3}, 1e4, 64),
    ({**YARN, "attention_factor": 1.5, "truncate": False}, 1e6, 128),
    ({**YARN, "factor": 1.0}, 1e4, 64),
    ({"type": "yarn", "factor": 4.0}, 1e6, 128),  # the original context is the declared one
    ({**YARN, "original_max_position_embeddings": 4}, 1e4, 64),  # no pair turns once: all interpolated
]


@pytest.mark.parametrize("parameters, theta, width", CASES)
@pytest.mark.parametrize("deepseek", [False, True])
def test_values(parameters: dict, theta: float, width: int, deepseek: bool) -> None:
    rope = make_rope({"rope_theta": theta, **parameters}, width, 32768, deepseek)
    inv_freq, factor = frequencies(
        {"rope_theta": theta, "max_position_embeddings": 32768, "rope_scaling": parameters}, width)
    np.testing.assert_allclose(rope.inv_freq, inv_freq, rtol=1e-13)
    assert rope.inv_freq.dtype == np.float64 and len(rope.inv_freq) == width // 2
    assert rope.factor == pytest.approx(factor, rel=1e-13)
    want = deepseek_score_scale({"rope_scaling": parameters}) if deepseek else 1.0
    assert rope.attn_scale == pytest.approx(want, rel=1e-13)


def test_deepseek_v3_as_published() -> None:
    """mscale and mscale_all_dim are both 1: cos and sin as they are, the scores by m(1)^2."""
    rope = make_rope({**YARN, "rope_theta": 10000, "mscale": 1.0, "mscale_all_dim": 1.0}, 64, 163840, True)
    assert rope.factor == 1.0
    assert rope.attn_scale == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    assert rope.inv_freq[0] == 1.0 and rope.inv_freq[-1] == pytest.approx(1e4 ** (-62 / 64) / 40)


def config(**values: Any) -> ModelConfig:
    return ModelConfig.from_dict({"model_type": "llama", "max_position_embeddings": 65536, **values})


def test_the_old_and_the_new_form_are_one() -> None:
    old = config(rope_theta=500000.0, rope_scaling={"type": "yarn", "factor": 8.0})
    same = [config(rope_parameters={"rope_theta": 500000.0, "rope_type": "yarn", "factor": 8.0}),
            config(rope_theta=1.0, rope_parameters={"rope_theta": 500000.0, "rope_type": "yarn",
                                                    "factor": 8.0}),
            config(rope_theta=500000.0, rope_scaling={"rope_type": "yarn", "factor": 8.0},
                   rope_parameters={"rope_type": "default"})]
    for new in same:
        assert new.rope_theta == 500000.0
        assert new.rope().inv_freq.tobytes() == old.rope().inv_freq.tobytes()
        assert new.rope().factor == old.rope().factor
        again = ModelConfig.from_dict(new.to_dict())
        assert again == new and again.rope().inv_freq.tobytes() == old.rope().inv_freq.tobytes()
    assert old.to_dict()["rope_scaling"] == {"type": "yarn", "factor": 8.0}
    assert same[0].to_dict()["rope_parameters"]["factor"] == 8.0


def test_the_original_context_may_stand_outside() -> None:
    inside = config(rope_scaling={**YARN, "original_max_position_embeddings": 1024})
    outside = config(rope_scaling=YARN, original_max_position_embeddings=1024)
    assert inside.rope().inv_freq.tobytes() == outside.rope().inv_freq.tobytes()
    implied = config(rope_scaling={**YARN, "factor": None})  # null: the ratio of the contexts
    assert implied.rope().inv_freq[-1] == pytest.approx(1e4 ** (-126 / 128) / 16)


@pytest.mark.parametrize("parameters, message", [
    ({"rope_type": "longrope"}, f"'longrope' is not known; known are {', '.join(ROPE_TYPES)}"),
    ({"rope_type": 3}, "3 is not known"), ({"type": None}, "None is not known"),
    ({"rope_type": "linear"}, "'linear' needs factor"),
    ({"rope_type": "dynamic"}, "'dynamic' needs factor"),
    ({"rope_type": "linear", "factor": 0}, "factor of rope is 0"),
    ({"rope_type": "linear", "factor": -2.0}, "factor of rope is -2.0"),
    ({"rope_type": "linear", "factor": True}, "factor of rope is True"),
    ({"rope_type": "linear", "factor": "4"}, "factor of rope is '4'"),
    ({"rope_type": "linear", "factor": math.inf}, "factor of rope is inf"),
    ({"rope_type": "linear", "factor": math.nan}, "factor of rope is nan"),
    ({**LLAMA3, "low_freq_factor": None}, "'llama3' needs low_freq_factor"),
    ({**LLAMA3, "high_freq_factor": 1.0}, "high_freq_factor 1.0 of rope must be above"),
    ({"rope_type": "yarn"}, "'yarn' needs factor"), ({**YARN, "rope_theta": 1.0}, "rope_theta"),
    ({**YARN, "beta_fast": "fast"}, "beta_fast"), ({**YARN, "rope_theta": 0}, "rope_theta"),
    ({**YARN, "orginal_max_position_embeddings": 5},
     "unknown rope key 'orginal_max_position_embeddings': did you mean 'original_max"),
    ({"rope_type": "linear", "factors": 5, "factor": 2}, "did you mean 'factor'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"full_attention": {"rope_type": "default"}}, "'full_attention'"),
])
@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
def test_what_cannot_be_raises(parameters: dict, message: str, form: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**{form: parameters})
