"""What a GPU has no room for lies in the host's memory: a frozen model's layers, Adam's moments. No bit
depends on it, though the emulated GPUs do copies and kernels at different times, as far as nobody waits."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

import cuda_emulation
from models import batch, configs, make
from op_testing import bits
from r1grpo import GRPOConfig, GRPOTrainer, Model, SFTConfig, plan_memory, plan_training
from r1grpo.foreign import as_array
from r1grpo.plan import resident_memory
from test_cuda import qwen2_1_5b

Gpu = Callable[[int], None]


class Capsule:
    """Somebody's array on the host that has been exported already."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def mtp_layer(model: Model) -> str:
    """How the names of the layer that stays on the GPU begin."""
    return f"model.layers.{model.config.num_hidden_layers}."


def test_an_offloaded_models_bits(gpu: Gpu) -> None:
    """Two layers, three, and a mixture with an MTP module; layers are met in turn, again, and one by one."""
    for i, (name, dtype) in enumerate([("dense", "bfloat16"), ("dense_window", "float32"), ("moe", "bfloat16"),
                                       ("dense_window", "bfloat16")]):
        gpu(i)
        model = make(name, dtype=dtype, device="cuda")
        near, away = model.freeze(), model.freeze(offload="unused")
        for seed in (0, 1):
            rows = batch(seed, prompts=(5, 1, 20), longest=9)
            assert bits(away.logprobs(*rows)) == bits(near.logprobs(*rows))
        prompts = rows[0][:2]
        drawn, same = (one.generate(prompts, 2, max_new_tokens=4, seed=2) for one in (away, near))
        assert bits(drawn.completion_ids) == bits(same.completion_ids) and bits(drawn.logprobs) == bits(same.logprobs)
        state = away.state_dict()
        assert bits(state.values()) == bits(near.state_dict().values())
        parameters = away.parameters()
        for key in list(state)[::-4]:  # a buffer holds one layer and then another: never a view
            shown = parameters[key].__dlpack__(dl_device=(1, 0), max_version=(1, 0))
            assert bits([np.asarray(as_array(Capsule(shown)))]) == bits([state[key]])
            if ".layers." in key and state[key].ndim == 2 and not key.startswith(mtp_layer(away)):
                with pytest.raises(BufferError, match="packed or off-loaded alone"):
                    parameters[key].__dlpack__(copy=False, max_version=(1, 0))
        for key in list(state)[::-3]:
            away.parameters()[key].load(2 * state[key])
            near.parameters()[key].load(2 * state[key])
        assert bits(away.logprobs(*rows)) == bits(near.logprobs(*rows))
        assert bits(away.state_dict().values()) == bits(near.state_dict().values())


@pytest.mark.parametrize("i", range(4))
def test_offloaded_moments_bits(gpu: Gpu, i: int) -> None:
    gpu(i)
    rows = batch(prompts=(5, 20), longest=9)

    def run(offload: bool) -> list[bytes]:
        model = make("moe", dtype="bfloat16", device="cuda")
        if offload:
            model.offload_optimizer()
        for _ in range(2):
            model.zero_grad()
            model.sft_gradient(*rows)
            model.update(1e-2, weight_decay=0.1)
        model.load_optimizer_state(model.optimizer_state())
        model.update(1e-2)
        return bits([*model.state_dict().values(), *model.optimizer_state().values()])
    assert run(True) == run(False)


@pytest.mark.parametrize("fields", [
    dict(vocab_size=70_001, hidden_size=64, num_nextn_predict_layers=1),  # several uses, parts of 65,536 rows
    dict(hidden_size=256, intermediate_size=17_000)])
def test_parts_of_moments(fields: dict) -> None:
    """On the CPU, which has no other memory, the parts of an update are the same, and its bits."""
    config = dataclasses.replace(configs()["dense"], num_hidden_layers=1, **fields)

    def run(offload: bool) -> list[bytes]:
        model = Model(config, dtype="bfloat16")
        model._core.offload = offload
        model.sft_gradient([[1, 2, 3]], [[4, 5, 0]])
        model.update(1e-2, weight_decay=0.1)
        model.update(1e-2, weight_decay=0.1)
        return bits([*model.logprobs([[1, 2]], [[3, 4]]), *model.state_dict().values(),
                     *model.optimizer_state().values()])
    assert run(True) == run(False)


def test_parts_of_an_experts_moments() -> None:
    config = dataclasses.replace(configs()["moe_softmax"], moe_intermediate_size=16_411, num_hidden_layers=1,
                                 first_k_dense_replace=0, hidden_size=256, n_routed_experts=2)
    assert config.moe_intermediate_size * config.hidden_size > 1 << 22

    def run(offload: bool) -> list[bytes]:
        model = Model(config)
        model._core.offload = offload
        model.sft_gradient([[1, 2, 3]], [[4, 5, 0]])
        model.update(1e-2)
        return bits([*model.logprobs([[1, 2]], [[3, 4]]), *model.optimizer_state().values()])
    assert run(True) == run(False)


def test_what_is_loaded_from_pinned_memory_may_change_afterwards(gpu: Gpu, request: pytest.FixtureRequest) -> None:
    """A GPU reads such memory, torch's for one, when its stream comes to it: the call waits for that."""
    if request.node.callspec.params["gpu"] != "emulated":
        pytest.skip("nothing here pins memory")
    gpu(0)  # its streams do nothing before somebody waits
    model = make("dense", dtype="bfloat16", device="cuda")
    model.offload_optimizer()
    model.sft_gradient([[1]], [[2]])
    model.update(1e-3)
    pin = ctypes.CDLL(cuda_emulation.load().__file__).emulated_pin
    pin.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    for parameter in model.parameters().values():
        values = np.full(parameter.shape, 0.5, np.float32)
        pin(values.ctypes.data, values.nbytes)
        parameter.load(values)
        values[:] = 7.0
        pin(values.ctypes.data, 0)
        assert np.all(np.asarray(parameter) == 0.5)


def test_uploads_that_nobody_waits_for(gpu: Gpu) -> None:
    """A step of sampling has several under way, each in a place of its own."""
    gpu(0)  # its streams do nothing before somebody waits, once they have met:
    model = make("dense", dtype="bfloat16", device="cuda")
    model.freeze(offload="unused").logprobs([[5, 6]], [[7]])
    prompts = [[5, 6, 7], [8]]
    drawn = model.generate(prompts, 2, max_new_tokens=5, seed=3)
    assert bits(model.logprobs(prompts, drawn.completion_ids)) == bits(drawn.logprobs)


def test_when_moments_may_move(gpu: Gpu) -> None:
    model = make("dense", device="cuda")
    model.offload_optimizer()
    model.sft_gradient([[1]], [[2]])
    model.update(1e-3)
    model.offload_optimizer()
    with pytest.raises(ValueError, match="the moments are there already"):
        model._core.offload = False
    late = make("dense", device="cuda")
    late.sft_gradient([[1]], [[2]])
    late.update(1e-3)
    with pytest.raises(ValueError, match="the moments are there already"):
        late.offload_optimizer()
    with pytest.raises(ValueError, match="a frozen model's layers lie where they were made"):
        late.freeze().offload_optimizer()
    with pytest.raises(ValueError, match="offload_optimizer keeps a GPU's moments in the host's memory"):
        make("dense").offload_optimizer()
    with pytest.raises(ValueError, match="offload_optimizer"):
        GRPOTrainer(make("dense"), lambda **_: [], GRPOConfig(offload_optimizer=True), [{"prompt_ids": [1]}])


def test_a_trainer_off_loads(gpu: Gpu) -> None:
    def run(i: int, **options: bool) -> list[bytes]:
        gpu(i)
        args = GRPOConfig(max_steps=2, per_device_train_batch_size=8, num_generations=4, beta=0.1,
                          max_completion_length=6, learning_rate=1e-2, disable_tqdm=True, sync_ref_model=True,
                          ref_model_sync_steps=1, ref_model_mixup_alpha=1.0, **options)
        trainer = GRPOTrainer(make("dense", dtype="bfloat16", device="cuda"), lambda completion_ids, **_: [
            float(len(set(ids))) for ids in completion_ids], args, [{"prompt_ids": [3, 4]}, {"prompt_ids": [5]}])
        steps = list(trainer)
        assert steps[1]["kl"] >= 0.0 and steps[1]["max_logprob_gap"] == 0.0
        return bits([*trainer.model.state_dict().values(), *trainer.reference.state_dict().values()])
    assert run(1, ref_model_offload=True, offload_optimizer=True) == run(2)


def test_memory_taken_is_what_the_plan_says(gpu: Gpu, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["gpu"] != "emulated":
        pytest.skip("a GPU gives memory by the 2 MiB, and tests beside this one take some too")
    config = dataclasses.replace(configs()["dense"], hidden_size=128, intermediate_size=512, num_hidden_layers=6,
                                 vocab_size=300)
    model = Model(config, device="cuda")
    before = resident_memory("cuda")
    away = model.freeze(offload="unused")
    taken = resident_memory("cuda") - before
    plan = plan_memory(config, device="cuda", reference="offloaded", training=False, length=16)
    near = plan_memory(config, device="cuda", reference="frozen", training=False, length=16)
    assert abs(taken - plan.bytes_of("reference, ")) < 8192
    layer = near.bytes_of("reference, ") - plan.bytes_of("reference, ")  # of 6, 4 are away
    assert 0 < layer == near.host + plan.host * 4 // 6 and "in the host's memory" in str(plan)
    assert away.plan(training=False).host == plan.host


def test_what_off_loading_saves_of_1_5b(gpu: Gpu) -> None:
    args = GRPOConfig(num_generations=8, per_device_train_batch_size=512, beta=0.04, max_prompt_length=128,
                      max_completion_length=256, micro_batch_tokens=16_384)
    both = dataclasses.replace(args, ref_model_offload=True, offload_optimizer=True)
    near, away = (plan_training(qwen2_1_5b(), one, dtype="bfloat16", device="cuda") for one in (args, both))
    parameters = 1_543_714_304
    assert near.bytes_of("Adam's moments") >= 8 * parameters and away.bytes_of("Adam's moments") == 0
    assert away.host > 10 * 1_300_000_000 and near.host == 0
    assert near.total - away.total > 14e9
    sft = plan_training(qwen2_1_5b(), SFTConfig(offload_optimizer=True, max_length=1024), device="cuda")
    assert sft.host >= 8 * parameters
