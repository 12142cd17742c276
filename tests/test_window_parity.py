"""Sliding windows against transformers: who has one, in which layers, and what it computes.

Tiny models with random weights, made by transformers, float32 here against float64 there; a window
shorter than the sequence, and one position more or less would show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from r1grpo import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = dict(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=160,
            initializer_range=0.25, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
            pad_token_id=None)
CASES = {
    "mistral": ("Mistral", dict(sliding_window=21)),
    "mistral without": ("Mistral", dict(sliding_window=None)),
    "qwen2, upper layers": ("Qwen2", dict(sliding_window=7, use_sliding_window=True,
                                          max_window_layers=1)),
    "qwen2, switched off": ("Qwen2", dict(sliding_window=7, max_window_layers=1)),
    "qwen3, by name": ("Qwen3", dict(sliding_window=30, use_sliding_window=True, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"])),
    "qwen3_moe": ("Qwen3Moe", dict(sliding_window=9, use_sliding_window=True, num_experts=4,
                                   num_experts_per_tok=2, moe_intermediate_size=16)),
}


@pytest.mark.parametrize("name", CASES)
def test_logprobs_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    family, options = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**TINY, **options)
    config._experts_implementation = "eager"  # the others know no float64
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = Model.from_pretrained(tmp_path)
    assert any(ours.config.window(i) for i in range(3)) == ("off" not in name and "out" not in name)
    ids = np.random.default_rng(1).integers(0, 48, 90).tolist()
    with torch.no_grad():
        logits = theirs.double()(torch.tensor([ids]), use_cache=False).logits[0]
    want = torch.log_softmax(logits, -1)[torch.arange(89), torch.tensor(ids[1:])].numpy()
    np.testing.assert_allclose(ours.logprobs([ids[:1]], [ids[1:]])[0], want, atol=2e-5)
    ours.save_pretrained(tmp_path / "back")
    back = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    for key in ("sliding_window", "use_sliding_window", "layer_types"):
        assert getattr(back, key, None) == getattr(config, key, None), key
