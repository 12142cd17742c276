"""Operations of a pass: hand counts of small shapes, and the laws that any count obeys."""

from __future__ import annotations

import pytest

from r1grpo import Model, ModelConfig
from r1grpo.flops import forward_flops, gradient_flops

DENSE = ModelConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, head_dim=6, intermediate_size=10)
MLA = ModelConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                  intermediate_size=10, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=2,
                  v_head_dim=3)
MOE = ModelConfig.from_dict({**MLA.to_dict(), "num_hidden_layers": 3, "first_k_dense_replace": 1,
                             "n_routed_experts": 5, "num_experts_per_tok": 2, "q_lora_rank": 7,
                             "moe_intermediate_size": 9, "n_shared_experts": 1,
                             "num_nextn_predict_layers": 1})


def test_dense_by_hand() -> None:
    """One token and its own key: q 8x24, k and v 8x12, o 24x8, FFN 3x8x10, a pair 4 heads x (6 + 6)."""
    layer = 8 * 24 + 2 * 8 * 12 + 24 * 8 + 3 * 8 * 10 + 4 * 12
    assert forward_flops(DENSE, [(0, 1)], 0) == 2 * 2 * layer
    assert forward_flops(DENSE, [(0, 1)], 1) == 2 * (2 * layer + 8 * 50)


def test_attention_by_hand() -> None:
    """Three queries see 1 + 2 + 3 keys; two more behind four that are there see 5 + 6."""
    linear = 8 * 24 + 2 * 8 * 12 + 24 * 8 + 3 * 8 * 10
    assert forward_flops(DENSE, [(0, 3)], 0) == 2 * 2 * (3 * linear + 6 * 48)
    assert forward_flops(DENSE, [(0, 3), (4, 2)], 0) == 2 * 2 * (5 * linear + (6 + 11) * 48)


def test_mla_by_hand() -> None:
    """q 8 x 2(4+2), latent 8 x (6+2), k and v 6 x 2(4+3), o 6 x 8; a pair 2 (4+2+3)."""
    attention = 8 * 12 + 8 * 8 + 6 * 14 + 6 * 8
    assert forward_flops(MLA, [(0, 2)], 0) == 2 * (2 * (attention + 3 * 8 * 10) + 3 * 18)


def test_mixture_by_hand() -> None:
    """q through 8 x 7 and 7 x 12; layer 0 is dense, two have a router 8 x 5 and 2 + 1 experts 3x8x9."""
    attention = 8 * 7 + 7 * 12 + 8 * 8 + 6 * 14 + 6 * 8 + 18
    sparse = 8 * 5 + 3 * (3 * 8 * 9)
    trunk = 3 * attention + 3 * 8 * 10 + 2 * sparse
    assert forward_flops(MOE, [(0, 1)], 1) == 2 * (trunk + 8 * 50)
    assert forward_flops(MOE, [(0, 1)], 1, mtp=True) == \
        2 * (trunk + 2 * 8 * 8 + attention + sparse + 2 * 8 * 50)


def test_window() -> None:
    """With a window of 2, queries at 0 .. 4 see 1, 2, 2, 2, 2 keys, those at 3 and 4 four of them."""
    config = ModelConfig.from_dict({**DENSE.to_dict(), "model_type": "mistral", "sliding_window": 2})
    full = forward_flops(DENSE, [(0, 5)], 0) - forward_flops(config, [(0, 5)], 0)
    assert full == 2 * 2 * (15 - 9) * 48
    assert forward_flops(config, [(0, 3), (3, 2)], 0) == forward_flops(config, [(0, 5)], 0)


@pytest.mark.parametrize("config", [DENSE, MLA, MOE])
def test_parts_add_up(config: ModelConfig) -> None:
    """However positions are cut into calls; and with every token in the head, a pass over short
    sequences is close to the two operations that each parameter of a dense model costs."""
    whole = forward_flops(config, [(0, 9), (0, 4)], 5)
    assert whole == forward_flops(config, [(0, 6), (6, 3), (0, 4)], 2) + forward_flops(config, [], 3)
    assert gradient_flops(config, [(0, 9), (0, 4)], 5) == 3 * whole
    assert gradient_flops(config, [(0, 9), (0, 4)], 5, adapters_only=True) == 2 * whole


def test_beside_the_parameters() -> None:
    model = Model(DENSE)
    matrices = sum(array.size for name, array in model.state_dict().items()
                   if array.ndim == 2 and "embed" not in name)
    assert forward_flops(DENSE, [(0, 1)], 1) == 2 * (matrices + 2 * 48)
