"""The GRPO loss and its gradient, against TRL's own code on the same batch.

TRL's trainer is not set up (no data, no accelerator, no generation): its `_compute_loss` runs on an
object that has the attributes it reads, over a small random Qwen2 of transformers with TRL's head, in
float64. Ours runs in float32 on the same weights, through the functions that GRPOTrainer calls.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from r1grpo import Model, ModelConfig
from r1grpo.advantage import group_advantages, token_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other projects' deprecations on import
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    trl = pytest.importorskip("trl")
    from trl import GRPOTrainer as TheirTrainer
    from trl.trainer.callbacks import SyncRefModelCallback
    from trl.trainer.utils import add_fused_lm_head, nanstd

V, GROUP, LIMIT = 40, 4, 9
PROMPTS = [[1, 2, 3, 4, 5], [6, 7]]
LENGTHS = (5, 9, 1, 3, 7, 2, 9, 4)
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.5, 0.25, 0.0, 1.0]


@pytest.fixture(scope="module")
def theirs():
    """A random Qwen2 (biases, grouped queries) in float64; its eager attention makes the padding on
    the left NaN there."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=V, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.2, tie_word_embeddings=False, attn_implementation="sdpa")
    return transformers.Qwen2ForCausalLM(config).double()


@pytest.fixture(scope="module")
def ours(theirs):
    model = Model(ModelConfig.from_dict(theirs.config.to_dict()), seed=None)
    model.load_state_dict({name: value.float().numpy() for name, value in
                           theirs.state_dict().items()})
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in
                            model.state_dict().items()})  # float32 values on both sides
    return model


@pytest.fixture(scope="module")
def data(ours):
    """Completions, the log-probs of a policy some updates ago, those of a reference."""
    rng = np.random.default_rng(0)
    completions = [rng.integers(0, V, n) for n in LENGTHS]

    def nearby(size):
        return [one + size * rng.standard_normal(len(one)).astype(np.float32)
                for one in ours.logprobs(PROMPTS, completions, temperature=0.8)]
    return SimpleNamespace(completions=completions, old=nearby(0.3), ref=nearby(0.3))


def padded(rows, left=False, dtype=None):
    """A tensor of rows, padded with 0, and its mask."""
    width = max(map(len, rows))
    out = np.zeros((len(rows), width), np.asarray(rows[0]).dtype if dtype is None else dtype)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        out[i, part], mask[i, part] = row, 1
    return torch.from_numpy(out), torch.from_numpy(mask)


def their_loss(theirs, data, keep, *, loss_type, level, epsilon, epsilon_high, delta, beta,
               use_bias_correction_kl):
    """TRL's loss and gradient; the arguments are those of its GRPOConfig."""
    trainer = object.__new__(TheirTrainer)
    trainer.__dict__.update(
        model=theirs, beta=beta, loss_type=loss_type, importance_sampling_level=level,
        epsilon_low=epsilon, epsilon_high=epsilon if epsilon_high is None else epsilon_high,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=use_bias_correction_kl,
                             steps_per_generation=1),
        max_completion_length=LIMIT, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        aux_loss_enabled=False, use_vllm=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(num_processes=1, is_main_process=False, gather=lambda x: x,
                                    reduce=lambda x, reduction: x, autocast=nullcontext))
    prompts, prompt_mask = padded([p for p in PROMPTS for _ in range(GROUP)], left=True)
    ids, mask = padded(data.completions)
    mask = mask * torch.tensor(keep)[:, None]
    rewards = torch.tensor(REWARDS, dtype=torch.float64).view(-1, GROUP)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (nanstd(rewards, dim=1, keepdim=True)
                                                              + 1e-4)
    inputs = {"prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": ids,
              "completion_mask": mask, "advantages": advantages.reshape(-1),
              "num_items_in_batch": mask.sum(),
              "old_per_token_logps": padded(data.old, dtype=np.float64)[0],
              "ref_per_token_logps": padded(data.ref, dtype=np.float64)[0]}
    theirs.train()
    theirs.zero_grad()
    loss = trainer._compute_loss(theirs, inputs)
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in theirs.named_parameters()}


@pytest.fixture(scope="module")
def with_head(theirs):
    add_fused_lm_head(theirs, temperature=0.8, outputs=("log_probs", "entropy"))
    return theirs


OPTIONS = {"loss_type": "dapo", "level": "token", "epsilon": 0.2, "epsilon_high": None,
           "delta": None, "beta": 0.0, "use_bias_correction_kl": False}


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("options", [
    *({"loss_type": kind} for kind in ("grpo", "dapo", "dr_grpo", "bnpo")),
    *({"loss_type": kind, "beta": 0.3} for kind in ("grpo", "dapo", "dr_grpo", "bnpo")),
    {"beta": 0.3, "use_bias_correction_kl": True},
    {"epsilon": 0.1, "epsilon_high": 0.3, "delta": 1.4},
    {"epsilon": 0.1, "epsilon_high": 0.5, "delta": 1.2, "beta": 0.04},
    {"loss_type": "cispo", "epsilon_high": 1.1},
    {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.3},
    *({"loss_type": kind, "level": "sequence", "epsilon": 0.05}
      for kind in ("grpo", "dapo", "dr_grpo", "bnpo")),
    {"loss_type": "grpo", "level": "sequence", "epsilon": 0.02, "epsilon_high": 0.1, "beta": 0.3},
    {"level": "sequence", "epsilon": 0.02, "delta": 1.05},
    {"loss_type": "cispo", "level": "sequence", "epsilon_high": 1.02}], ids=str)
def test_loss_and_gradient_are_trls(with_head, ours, data, options, masked):
    options = OPTIONS | options
    keep = [1, 1, 0, 1, 1, 1, 0, 1] if masked else [1] * 8
    want, gradients = their_loss(with_head, data, keep, **options)
    kind = options["loss_type"]
    ours.zero_grad()
    loss = ours.policy_gradient(
        PROMPTS, data.completions, advantages=group_advantages(REWARDS, GROUP, ddof=1),
        weights=token_weights(LENGTHS, np.array(keep, np.float32), kind, LIMIT),
        old_logprobs=data.old, ref_logprobs=data.ref, total_tokens=1.0, temperature=0.8,
        loss="cispo" if kind == "cispo" else "clip", importance_sampling_level=options["level"],
        **{key: options[key] for key in ("epsilon", "epsilon_high", "delta", "beta",
                                         "use_bias_correction_kl")})
    assert float(loss) == pytest.approx(want, rel=1e-5, abs=1e-5)
    found = ours.grad_dict()
    assert set(found) == set(gradients)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(found[name], gradient, rtol=0,
                                   atol=1e-5 * np.abs(gradient).max(), err_msg=name)
    if not masked and "delta" not in str(options):
        assert loss.stats["clip_high"] > 0


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_soft_reference_sync_is_trls(alpha):
    config = ModelConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=16)
    policy, reference = Model(config, seed=1), Model(config, seed=2)

    def module(model):
        return torch.nn.ParameterDict({name.replace(".", "_"): torch.nn.Parameter(
            torch.from_numpy(value)) for name, value in model.state_dict().items()})
    target = module(reference)
    SyncRefModelCallback._sync_target_model(module(policy), target, alpha)
    reference.copy_weights_from(policy, alpha)
    for name, value in reference.state_dict().items():
        np.testing.assert_allclose(value, target[name.replace(".", "_")].detach().numpy(),
                                   rtol=1e-6, atol=1e-9)
