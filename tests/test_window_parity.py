"""Sliding windows against transformers: who has one, in which layers, and what it computes.

Tiny models with random weights, made by transformers, float32 here against float64 there; a window
shorter than the sequence, and one position more or less would show.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from r1grpo import Model, ModelConfig

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
}


@pytest.mark.parametrize("name", CASES)
def test_logprobs_are_those_of_transformers(name: str) -> None:
    family, options = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**TINY, **options)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    state = {k: v.numpy().copy() for k, v in theirs.state_dict().items()}
    values = json.loads(config.to_json_string(use_diff=False))
    ours = Model(ModelConfig.from_dict(
        {**values, "attention_bias": any(k.endswith("q_proj.bias") for k in state)}), seed=None)
    ours.load_state_dict(state)
    ids = np.random.default_rng(1).integers(0, 48, 90).tolist()
    with torch.no_grad():
        logits = theirs.double()(torch.tensor([ids]), use_cache=False).logits[0]
    want = torch.log_softmax(logits, -1)[torch.arange(89), torch.tensor(ids[1:])].numpy()
    np.testing.assert_allclose(ours.logprobs([ids[:1]], [ids[1:]])[0], want, atol=2e-5)
