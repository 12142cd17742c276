"""Small models of every shape for the tests, and random batches for them.

Weights are drawn wide (std 0.3 or so) and norms and biases away from 1 and 0, so that a term that is
missing or misplaced cannot hide.
"""

from __future__ import annotations

import numpy as np

from r1grpo import Model, ModelConfig

V = 40


def configs() -> dict[str, ModelConfig]:
    """Name -> configuration; every flag of the model in both positions somewhere."""
    moe = dict(vocab_size=V, eos_token_id=1, hidden_size=32, num_attention_heads=2,
               intermediate_size=40, max_position_embeddings=160, kv_lora_rank=12,
               qk_nope_head_dim=10, qk_rope_head_dim=6, v_head_dim=14, n_routed_experts=6,
               num_experts_per_tok=2, moe_intermediate_size=12, n_shared_experts=1,
               first_k_dense_replace=1, num_hidden_layers=3, num_nextn_predict_layers=1,
               model_type="deepseek_v3", initializer_range=0.25)
    dense = dict(vocab_size=V, eos_token_id=1, hidden_size=24, num_attention_heads=4,
                 num_key_value_heads=2, intermediate_size=36, num_hidden_layers=2,
                 max_position_embeddings=160, initializer_range=0.3)
    return {
        "moe": ModelConfig(**moe, tie_word_embeddings=True),
        "moe_groups": ModelConfig(**{
            **moe, "n_group": 3, "topk_group": 2, "q_lora_rank": 14, "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 0, "num_hidden_layers": 2}),
        "moe_softmax": ModelConfig(**{
            **moe, "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False,
            "n_shared_experts": 0, "num_nextn_predict_layers": 0, "num_hidden_layers": 2}),
        "dense": ModelConfig(**dense, model_type="qwen2", tie_word_embeddings=True),
        "dense_untied": ModelConfig(**{**dense, "head_dim": 10, "num_key_value_heads": 1}),
        "dense_mtp": ModelConfig(**dense, num_nextn_predict_layers=1),
        "dense_window": ModelConfig(**{**dense, "num_hidden_layers": 3}, model_type="qwen3",
                                    use_sliding_window=True, sliding_window=21,
                                    num_nextn_predict_layers=1, layer_types=[
                                        "sliding_attention", "full_attention",
                                        "sliding_attention"]),
        "qwen3": ModelConfig(**{
            **dense, "model_type": "qwen3", "head_dim": 10, "tie_word_embeddings": True,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}}),
        "qwen3_moe": ModelConfig(**{
            **dense, "model_type": "qwen3_moe", "head_dim": 8, "attention_bias": True,
            "n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
            "norm_topk_prob": True, "num_hidden_layers": 4, "decoder_sparse_step": 2,
            "mlp_only_layers": [1], "rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
        "llama_bias": ModelConfig(**{
            **dense, "model_type": "llama", "attention_bias": True, "mlp_bias": True,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 30}}),
        "moe_yarn": ModelConfig(**{
            **moe, "q_lora_rank": 14, "attention_bias": True, "num_hidden_layers": 2,
            "rms_norm_eps": 1e-3, "rope_scaling": {
                "type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3,
                "original_max_position_embeddings": 40, "beta_fast": 32, "beta_slow": 1}}),
    }


def make(name: str, seed: int = 0, dtype: str = "float32", device: str = "cpu") -> Model:
    """The model of that name; norms, biases and routing biases are random too."""
    model = Model(configs()[name], seed=seed, dtype=dtype, device=device)
    rng = np.random.default_rng([seed, 7])
    state = model.state_dict()
    for key, array in state.items():
        if array.ndim == 1:
            state[key] = (array + 0.2 * rng.standard_normal(array.shape)).astype(np.float32)
    model.load_state_dict(state)
    return model


def batch(seed: int = 0, prompts: tuple[int, ...] = (5, 1, 70), ratio: int = 2,
          longest: int = 40) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of the given lengths and `ratio` completions of each, one of them empty, the last id of
    the vocabulary among the tokens."""
    rng = np.random.default_rng(seed)
    prompt_ids = [rng.integers(0, V, n).tolist() for n in prompts]
    lengths = rng.integers(1, longest, len(prompts) * ratio)
    lengths[1] = 0
    completion_ids = [rng.integers(0, V, n).tolist() for n in lengths]
    completion_ids[0][-1] = V - 1
    return prompt_ids, completion_ids
