"""What stands in no tensor of a model, scratch memory of ops and cuBLASLt's workspace, stands in the plan: the
emulated GPU's peak is at most what the plan says, and not far below."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from models import configs, make
from r1grpo import Model, ModelConfig, _core, plan_memory
from r1grpo.plan import MemoryPlan
from test_cublaslt import ABSENT, EQUAL, Library
from test_cuda import qwen2_1_5b

OWN = "scratch memory"
PROMPT, COMPLETION = 20, 13


class Gpu:
    """An emulated GPU that is opened anew; peak(): bytes that it had at most since then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.library, self._patch = Library(), monkeypatch

    def open(self, how: int = ABSENT) -> _core.Device:
        gc.collect()
        hooks = ctypes.CDLL(self.library._backend.__file__)
        hooks.emulated_peak.restype = ctypes.c_size_t
        self._peak = hooks.emulated_peak
        self._peak()  # from here on
        self._before = self._peak()
        device = self.library.open(how)
        self._patch.setattr("r1grpo.device._gpu", {"cuda": device})
        return device

    def peak(self) -> int:
        return self._peak() - self._before


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    one = Gpu(monkeypatch)
    yield one
    one.library.open(ABSENT)


def compare(plan: MemoryPlan, held: int, taken: int) -> None:
    planned = {item.name: item.bytes for item in plan.items}
    assert 0.5 * plan.bytes_of(OWN) < held <= plan.bytes_of(OWN), (held, planned)
    assert 0.6 * plan.total < taken <= plan.total, (taken, plan.total, planned)


def train(model: Model, prompts: list, completions: list, recompute: bool) -> None:
    more = {"mtp_coef": 0.3} if model.config.num_nextn_predict_layers else {}
    more |= {"balance_coef": 0.1} if model.config.n_routed_experts else {}
    model.sft_gradient(prompts, completions, micro_batch_tokens=70, recompute=recompute, **more)
    model.update(1e-3)


@pytest.mark.parametrize("name, dtype, recompute, how", [
    ("dense", "float32", False, ABSENT), ("llama_bias", "bfloat16", True, EQUAL), ("moe", "bfloat16", False, ABSENT),
    ("qwen3_moe", "bfloat16", True, ABSENT)])
def test_training_and_generation_take_what_the_plan_says(fresh: Gpu, rng: np.random.Generator, name: str, dtype: str,
                                                         recompute: bool, how: int) -> None:
    device = fresh.open(how)
    model = make(name, dtype=dtype, device="cuda")
    prompts, completions = (rng.integers(0, 40, s).tolist() for s in ((3, PROMPT), (6, COMPLETION)))
    model.generate(prompts, 2, max_new_tokens=COMPLETION, top_p=0.9, stop_token_ids=())
    train(model, prompts, completions, recompute)
    model.logprobs(prompts, completions)
    plan = plan_memory(model.config, dtype=dtype, device="cuda", length=PROMPT + COMPLETION, sequences=6,
                       micro_batch_tokens=70, recompute=recompute, scoring=True, prompts=3, num_generations=2,
                       prompt_length=PROMPT, max_new_tokens=COMPLETION)
    compare(plan, device.own_bytes, fresh.peak())


@pytest.mark.parametrize("name, how", [("dense_mtp", ABSENT), ("moe", EQUAL)])
def test_a_frozen_model_samples_in_what_the_plan_says(fresh: Gpu, name: str, how: int) -> None:
    """With guesses, and a context of several chunks of keys, which few rows share out among blocks."""
    device, config = fresh.open(how), ModelConfig.from_dict({**configs()[name].to_dict(),
                                                             "max_position_embeddings": 1200})
    model = Model(config, dtype="bfloat16", frozen=True, device="cuda")
    model.generate([[1, 2, 3]] * 2, 1, max_new_tokens=1100, seed=1, speculative=True, top_k=5,
                   stop_token_ids=tuple(range(0, 40, 2)))
    plan = plan_memory(config, dtype="bfloat16", device="cuda", frozen=True, training=False, prompts=2,
                       prompt_length=3, max_new_tokens=1100, speculative=True)
    compare(plan, device.own_bytes, fresh.peak())


@pytest.mark.parametrize("name, dtype, wide, keep, lengths", [
    ("dense", "float32", {}, "all", [*range(1, 40), *range(500, 16_000, 77)]),
    ("moe", "bfloat16", {}, "all", [*range(1, 40), *range(500, 16_000, 77)]),
    ("qwen3", "float32", {"hidden_size": 128, "intermediate_size": 256}, "all",
     [1024 * w + i for w in range(1, 33) for i in (0, 1)]),
    ("dense", "bfloat16", {"intermediate_size": 4200}, "none", range(1, 300))])
def test_fewer_rows_need_no_more(fresh: Gpu, name: str, dtype: str, wide: dict, keep: str,
                                 lengths: Sequence[int]) -> None:
    """A plan looks at the largest micro-batch, and the last one is smaller. wide: sums over rows are cut into many
    segments; sums of few rows, that are long, are done side by side."""
    device, fields = fresh.open(), dataclasses.replace(configs()[name], **wide).core()[0]
    needs = [_core.plan_pass(device, fields, dtype, np.array([0, length], np.int32), np.ones(1, np.int32), None, length,
                             False, keep)["own"] for length in lengths]
    assert needs == sorted(needs) and needs[0] < needs[-1]


def test_fewer_slots_need_no_more(fresh: Gpu) -> None:
    """Few rows share out the chunks of a long context among blocks, and a session ends with few."""
    device, fields = fresh.open(), {**configs()["dense"].core()[0], "T": 100_000}
    needs = [_core.plan_decode(device, fields, "bfloat16", slots, 1, 1, 99_000, slots, False)["pass"]["own"]
             for slots in (1, 2, 3, 7, 16, 40)]
    assert needs == sorted(needs) and needs[0] > 10_000


def test_trying_cublaslts_algorithms_is_cheap(fresh: Gpu) -> None:
    """Less than the bfloat16 weights that it is for, whatever the vocabulary."""
    fields = qwen2_1_5b().core()[0]
    without = _core.plan_model(fresh.open(), fields, "bfloat16")["own"]
    tried = _core.plan_model(fresh.open(EQUAL), fields, "bfloat16")["own"]
    assert 32 << 20 < tried - without < 330 << 20


def test_beyond_any_memory(fresh: Gpu) -> None:
    """No byte count of it fits 64 bits; nobody asks what it would need beside."""
    fresh.open(EQUAL)
    most = ModelConfig(vocab_size=2**31 - 1, hidden_size=2**24, num_hidden_layers=4096, head_dim=256,
                       num_attention_heads=2**24, intermediate_size=2**24, max_position_embeddings=2**31 - 64)
    plan = plan_memory(most, length=2**30, sequences=1, recompute=True, scoring=True, device="cuda",
                       prompts=2**31 - 1, num_generations=2**31 - 1)
    assert plan.total > 2**64 and plan.bytes_of(OWN) == 0
