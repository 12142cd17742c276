"""The prompt of a group, computed once in training: E1 and E2 with it, and its gradient.

The unshared form of the same batch is every completion with a copy of its prompt in a group of its
own. csrc/model/micro.c says what is shared.
"""

from __future__ import annotations

import numpy as np
import pytest

from models import V, configs, make
from op_testing import bits
from r1grpo import LoraConfig, Model, _core, set_num_threads
from reference import Reference

NAMES = sorted(configs())
G = 3
PROMPTS = (1, 2, 3, 63, 64, 65, 67, 128)  # a prefix leaves out one row, with an MTP module two
LENGTHS = (7, 0, 20, 1, 30, 2, 0, 0, 3)  # of completions, over and over


pytestmark = pytest.mark.usefixtures("two_threads")


def draw(prompts: tuple[int, ...] = PROMPTS, group: int = G, seed: int = 0
         ) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of these lengths and `group` completions each."""
    rng = np.random.default_rng(seed)
    lengths = np.resize(LENGTHS, len(prompts) * group)
    return ([rng.integers(0, V, n).tolist() for n in prompts],
            [rng.integers(0, V, n).tolist() for n in lengths])


def copies(prompts: list, completions: list) -> list:
    """The prompt of every completion."""
    return [prompts[i // (len(completions) // len(prompts))] for i in range(len(completions))]


def options(model: Model, completions: list) -> dict:
    """A policy loss with all that the model can add to it."""
    rng = np.random.default_rng(2)
    n = len(completions)
    old = [rng.normal(-3, 0.3, len(c)).astype(np.float32) for c in completions]
    how: dict = dict(advantages=rng.normal(size=n), old_logprobs=old, total_tokens=0.7,
                     weights=[np.full(len(c), 0.02, np.float32) for c in completions])
    if model.config.num_nextn_predict_layers:
        how |= dict(mtp_coef=0.3, mtp_detach=False)
    if model.config.n_routed_experts:
        how["balance_coef"] = 0.01
    return how


def gradient(model: Model, prompts: list, completions: list, **more) -> tuple[dict, list[bytes]]:
    """(gradients, bits of the loss and of the log-probs)."""
    model.zero_grad()
    loss = model.policy_gradient(prompts, completions, **options(model, completions), **more)
    return model.grad_dict(), bits([float(loss), *loss.logprobs])


def assert_near(got: dict, want: dict, tolerance: float) -> None:
    scale = max(np.abs(g).max() for g in want.values())
    assert scale > 1e-3, "the batch gives no gradient to speak of"
    for name, g in want.items():
        error = np.abs(got[name].astype(np.float64) - g).max()
        assert error <= tolerance * (np.abs(g).max() + 1e-2 * scale), (name, error)


@pytest.mark.parametrize("name, dtype", [
    *((name, "float32") for name in NAMES),
    *((name, "bfloat16") for name in ("dense", "dense_window", "moe"))])
def test_shared_and_unshared_are_one(name: str, dtype: str) -> None:
    """Log-probs and losses to the bit, gradients to float32 rounding."""
    model = make(name, dtype=dtype)
    prompts, completions = draw()
    flat = copies(prompts, completions)
    assert bits(model.logprobs(prompts, completions)) == bits(model.logprobs(flat, completions))
    want, said = gradient(model, flat, completions)
    got, saying = gradient(model, prompts, completions)
    assert saying == said
    assert_near(got, want, 1e-5 if dtype == "float32" else 5e-3)
    assert bits(got.values()) != bits(want.values()), "nothing was shared"


def test_a_prompt_counts_in_the_load_of_every_completion() -> None:
    """What the routers' biases make of the tokens that each expert had."""
    model = make("moe")
    start, found = model.state_dict(), []
    for seed in range(8):
        prompts, completions = draw((20, 40), 8, seed)
        for asked in (prompts, copies(prompts, completions)):
            gradient(model, asked, completions)
            model.update_router_bias(0.125)
            moved = model.state_dict()
            model.load_state_dict(start)
            found.append(bits(a for k, a in moved.items() if k.endswith("e_score_correction_bias")))
    assert found[0::2] == found[1::2]
    assert len(set(map(tuple, found))) > 1


@pytest.mark.parametrize("name", ["dense", "dense_window", "moe", "moe_groups", "qwen3_moe"])
def test_beside_the_oracle(name: str) -> None:
    model = make(name)
    reference = Reference(model.config.to_dict(), model.state_dict())
    prompts, completions = draw((2, 65, 20))
    want = reference.loss_policy(prompts, completions, **options(model, completions))
    assert reference.margin > 1e-5, "two experts are too close: choose another seed"
    assert_near(gradient(model, prompts, completions)[0], want.gradients, 5e-4)


@pytest.mark.parametrize("name, dtype", [*((name, "float32") for name in NAMES), ("moe", "bfloat16")])
def test_one_gradient(name: str, dtype: str) -> None:
    """Whatever the micro-batches, the threads and what is computed once more."""
    model = make(name, dtype=dtype)
    prompts, completions = draw()
    whole, said = gradient(model, prompts, completions)
    want = bits(whole.values()) + said
    for micro in (1, 90, 200):
        for recompute in (False, True):
            got, saying = gradient(model, prompts, completions, micro_batch_tokens=micro,
                                   recompute=recompute)
            assert bits(got.values()) + saying == want, (micro, recompute)
    for threads in (1, 3, 7):
        set_num_threads(threads)
        got, saying = gradient(model, prompts, completions, micro_batch_tokens=150)
        assert bits(got.values()) + saying == want, threads


def test_adapters_share_too() -> None:
    model = make("moe").add_adapter(LoraConfig(r=3), seed=1)
    rng = np.random.default_rng(3)
    model.load_state_dict({k: a + 0.2 * rng.standard_normal(a.shape).astype(np.float32)
                           if ".lora_B." in k else a for k, a in model.state_dict().items()})
    prompts, completions = draw()
    flat = copies(prompts, completions)
    for logprobs in (model.logprobs, model.base_logprobs):
        assert bits(logprobs(prompts, completions)) == bits(logprobs(flat, completions))
    want, said = gradient(model, flat, completions)
    got, saying = gradient(model, prompts, completions)
    assert saying == said
    assert_near(got, want, 1e-5)


def test_the_samplers_log_probs_are_those_of_a_shared_prompt() -> None:
    model = make("moe")
    prompts, _ = draw((1, 2, 63, 64, 65, 100))
    out = model.generate(prompts, G, max_new_tokens=30, seed=1)
    loss = model.policy_gradient(prompts, out.completion_ids, advantages=[1.0] * len(out),
                                 weights=[1.0] * len(out), old_logprobs=out.logprobs)
    assert loss.stats["logp_gap_max"] == 0.0
    assert loss.stats["logp_gap_tokens"] == sum(map(len, out.completion_ids)) > 200


def test_sharing_follows_the_group_never_content() -> None:
    model = make("dense")
    prompts, completions = draw((40, 70))
    flat = copies(prompts, completions)
    shared, alone = (bits(gradient(model, p, completions)[0].values()) for p in (prompts, flat))
    assert shared != alone

    def grouped(groups: list[int]) -> list[bytes]:
        return bits(gradient(model, flat, completions, groups=groups)[0].values())
    assert grouped([5, 5, 5, 2, 2, 2]) == shared
    assert grouped([0, 1, 2, 3, 4, 5]) == grouped([0, 1, 0, 1, 0, 1]) == alone
    assert grouped([0, 0, 1, 2, 2, 2]) not in (shared, alone)


def test_a_large_group_is_cut_by_its_own_size_alone() -> None:
    """Parts of 2,048 rows behind the prompt (csrc/model/micro.c): here 28, 28, 28 and 6 completions."""
    model = make("dense")
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, V, 60).tolist()
    completions = [rng.integers(0, V, 72).tolist() for _ in range(90)]
    want, said = gradient(model, [prompt], completions)
    assert said[1:] == bits(model.logprobs([prompt] * 90, completions))
    for micro in (1, 5000, 100_000):
        got, saying = gradient(model, [prompt], completions, micro_batch_tokens=micro)
        assert bits(got.values()) + saying == bits(want.values()) + said, micro
    first = 2048 // 73
    got, _ = gradient(model, [prompt] * 90, completions, groups=[i // first for i in range(90)])
    assert bits(got.values()) == bits(want.values())


def test_rows_are_computed_once() -> None:
    """59 rows and 16 x 11 instead of 16 x 70: the buffers follow."""
    model = make("dense")
    fields = model.config.core()[0]
    start, first = np.arange(17, dtype=np.int32) * 70, np.full(16, 60, np.int32)

    def acts(group) -> int:
        return _core.plan_pass(model.device, fields, "float32", start, first, group, 4096,
                               False, "all")["acts"]
    alone, shared = acts(None), acts(np.zeros(16, np.int32))
    assert shared / alone == pytest.approx((59 + 16 * 11) / (16 * 70), rel=0.02)
    assert acts(np.arange(16, dtype=np.int32)) == alone


def test_groups_that_cannot_be() -> None:
    model = make("dense")
    how = dict(advantages=[1.0] * 2, weights=[1.0] * 2, old_logprobs=[[0.0], [0.0]])
    for prompts in ([[1, 2, 3], [1, 2, 4]], [[1, 2, 3], [1, 2]]):
        with pytest.raises(ValueError, match="completions 0 and 1 are of group 7, but their prompts"):
            model.policy_gradient(prompts, [[1], [2]], groups=[7, 7], **how)
    with pytest.raises(ValueError, match="groups has 1 entries for 2 completions"):
        model.policy_gradient([[1, 2]], [[1], [2]], groups=[0], **how)
    with pytest.raises(ValueError, match="groups contains id -1"):
        model.policy_gradient([[1, 2]], [[1], [2]], groups=[0, -1], **how)
    ids, two = np.array([1, 2, 3, 1, 9, 3], np.int32), np.full(2, 2, np.int32)
    out = np.empty(2, np.float32)
    spec = (False, False, False, "nll", 1.0, 0.0, 0.0, 1.0, "k3", False, 0.0, 0.0, 0.0, False, 0.0, 9)
    with pytest.raises(ValueError, match="sequences 0 and 1 are of one group, but have different"):
        model._core.run(model.device, ids, np.array([0, 3, 6], np.int32), two, two, None, None, None,
                        None, spec, (1.0, 0, 1.0, 0.0), out, *[None] * 7)
