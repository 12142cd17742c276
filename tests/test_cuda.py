"""Everything about CUDA but its ops: no GPU, no backend, a forked process, memory, a GPU that is lost."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import cuda_emulation
import r1grpo.cuda
from op_testing import nan
from r1grpo import GRPOConfig, Model, ModelConfig, _core, check_fits, doctor, plan_training
from r1grpo.device import get_device
from r1grpo.plan import available_memory, resident_memory


SMALL = ModelConfig(vocab_size=9, eos_token_id=1, hidden_size=8, num_attention_heads=2, num_hidden_layers=1,
                    intermediate_size=8, max_position_embeddings=64, model_type="qwen2")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """r1grpo._cuda is the emulated backend."""
    try:
        module = cuda_emulation.load()
    except FileNotFoundError as error:
        pytest.skip(f"no emulated GPU: {error}")
    monkeypatch.setitem(sys.modules, "r1grpo._cuda", module)
    monkeypatch.setattr("r1grpo.device._gpu", {})


def test_a_build_without_the_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name)
    monkeypatch.setattr("r1grpo.cuda.importlib", types.SimpleNamespace(import_module=absent))
    monkeypatch.setattr("r1grpo.device._gpu", {})
    for call in (lambda: get_device("cuda"), lambda: r1grpo.cuda.describe_gpu(),
                 lambda: Model(SMALL, device="cuda")):
        with pytest.raises(RuntimeError, match="device 'cuda': this build of r1grpo has no CUDA backend"):
            call()
    with pytest.raises(ValueError, match="device 'tpu' is unknown; there are 'cpu', 'cuda' and 'cuda/fast'"):
        get_device("tpu")


def test_the_gpu_is_one_for_all(emulated: None) -> None:
    assert get_device("cuda") is get_device("cuda") is not get_device()
    assert get_device("cuda").name == "cuda/emulated" and get_device("cuda").tier == "emulated"
    with pytest.raises(RuntimeError, match="there is no GPU 17: fewer are visible"):
        _core.Device(ops=r1grpo.cuda.cuda_ops(), ordinal=17)
    with pytest.raises(ValueError, match="ordinal is -1"):
        _core.Device(ops=r1grpo.cuda.cuda_ops(), ordinal=-1)
    for wrong in (3, None):
        with pytest.raises(ValueError, match="PyCapsule"):
            _core.Device(ops=wrong)


def test_spinning_counts_its_operations(emulated: None) -> None:
    device = get_device("cuda")
    for dtype, one in (("float32", 2 * 32), ("bfloat16", 2 * 16 * 16 * 8)):
        warps = 4 * device.threads * 256 // 32
        assert device.spin(dtype, 3) == 3 * 8 * one * warps and device.spin(dtype, 0) == 0


def test_cublaslt_is_looked_for_where_it_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("home/lib64", "site/nvidia/cublas/lib"):
        tmp_path.joinpath(folder).mkdir(parents=True)
        tmp_path.joinpath(folder, "libcublasLt.so.13").write_bytes(b"no library")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    tried: list[str] = []

    def load(path: str, mode: int) -> str:
        tried.append(path)
        if not path.startswith(str(tmp_path / "home")):
            raise OSError(path)
        return "opened"
    monkeypatch.setattr(r1grpo.cuda, "_open", [])
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert r1grpo.cuda.open_cublaslt() == str(tmp_path / "home/lib64/libcublasLt.so.13")
    assert [Path(path).name for path in tried[:2]] == ["libcublasLt.so.13", "libcublasLt.so.12"]
    assert "site" in tried[2] and len(tried) == 4
    assert r1grpo.cuda.open_cublaslt() and len(tried) == 4, "once is enough"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12 warns of fork beside threads
def test_a_forked_process_is_refused(emulated: None) -> None:
    device, a = _core.Device(ops=r1grpo.cuda.cuda_ops()), np.ones((3, 4), np.float32)
    child = os.fork()
    if child == 0:
        try:
            _core.add(device, nan(3, 4), a, a)
        except RuntimeError as error:
            del device  # closing it there is nothing to the driver either
            os._exit(0 if "forked process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    _core.add(device, a, a, a)
    assert np.all(a == 2.0)


def test_gpu_memory_is_what_plans_are_compared_with(emulated: None) -> None:
    _, free, total = r1grpo.cuda.describe_gpu()
    assert 0 < free <= total and available_memory("cuda") == free
    assert resident_memory("cuda") == total - free
    config = dataclasses.replace(SMALL, vocab_size=100_000, hidden_size=1024, num_hidden_layers=24)
    with pytest.raises(MemoryError, match="this run needs .* GiB and 2.00 GiB can be had"):
        check_fits(plan_training(config, GRPOConfig(), device="cuda"))
    check_fits(plan_training(SMALL, GRPOConfig(), device="cuda"))


def test_doctor_shows_the_gpu(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r1grpo.cuda, "_open", [(None, "/where/libcublasLt.so.13")])
    found = dict(doctor.examine())
    assert found["CUDA"].startswith("an emulated GPU, sm_80, driver 13.0, runtime 13.0, ")
    assert found["CUDA"].endswith(" of 2.0 GiB free") and found["cuBLASLt"] == "/where/libcublasLt.so.13"


def test_a_memory_error_carries_the_plan() -> None:
    model = Model(SMALL)
    for call in (lambda: model.logprobs([[1]], [[2]]), lambda: model.sft_gradient([[1]], [[2]]),
                 lambda: model.session([[1]])):
        _core.alloc_fail_at(1)
        with pytest.raises(MemoryError, match="(?s)out of memory.*parameters, .* GiB.*total"):
            call()
        _core.alloc_fail_at(0)


def test_a_full_gpu_is_a_memory_error_with_the_plan(emulated: None) -> None:
    hooks = ctypes.CDLL(cuda_emulation.load().__file__)
    hooks.emulated_limit.argtypes = [ctypes.c_size_t]
    get_device("cuda")
    model = Model(SMALL, device="cuda")
    prompts, completions = [[1, 2, 3]], [[4, 5]]
    try:
        for call in (lambda: model.logprobs(prompts, completions), lambda: model.sft_gradient(prompts, completions),
                     lambda: model.generate(prompts, max_new_tokens=4)):
            hooks.emulated_limit(0)
            with pytest.raises(MemoryError, match="(?s)out of memory.*parameters, .* GiB.*total"):
                call()
            hooks.emulated_limit(2**31)
            call()
        hooks.emulated_limit(0)
        with pytest.raises(MemoryError):
            Model(SMALL, device="cuda")
        with pytest.raises(MemoryError, match="out of memory for .* bytes of optimiser moments"):
            model.update(1e-3)
    finally:
        hooks.emulated_limit(2**31)
    model.update(1e-3)


LOST = """
import ctypes, os, sys
import cuda_emulation
from test_cuda import SMALL
from r1grpo import Model
sys.modules["r1grpo._cuda"] = module = cuda_emulation.load()
model = Model(SMALL, device="cuda")
session = model.session([[1, 2]], max_new_tokens=9)
session.run(1)
array = model.parameters()["model.norm.weight"].__dlpack__(max_version=(1, 0))
calls = (lambda: model.logprobs([[1]], [[2]]), lambda: model.update(1e-3), lambda: session.run(1),
         lambda: model.sft_gradient([[1]], [[2]]), lambda: Model(SMALL, device="cuda"), lambda: model.state_dict())
child = 0
if sys.argv[1] == "fork":
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(model.logprobs([[1]], [[2]])[0].shape)
else:
    ctypes.CDLL(module.__file__).emulated_break(True)
for call in () if child else calls:
    try:
        call()
        print("went well")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.mark.parametrize("what", ["lost", pytest.param("fork", marks=pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork"))])
def test_a_lost_gpu_is_told_once_and_ends_quietly(emulated: None, what: str) -> None:
    """A kernel has failed: the first call says what, later ones that the GPU is lost since then. In a forked process
    every call is refused. The interpreter ends, with all of its objects alive, without a word."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", LOST, what],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    *refused, last = done.stdout.splitlines()
    if what == "fork":
        assert len(refused) == 6 and last == "(1,)"
        assert all(line.startswith("RuntimeError") and "start it with 'spawn'" in line for line in refused)
        return
    assert refused[0].endswith("; this GPU is lost to this process, start a new one")
    for line in [*refused[1:], last]:
        assert line == "RuntimeError this GPU is lost to this process since an earlier error"


@pytest.mark.parametrize("dtype, frozen", [("float32", False), ("bfloat16", False), ("float32", True)])
def test_a_model_takes_what_its_plan_says(emulated: None, dtype: str, frozen: bool) -> None:
    """A GPU's float32 weights are there once: products read the masters."""
    get_device("cuda")
    config = dataclasses.replace(SMALL, vocab_size=3000, hidden_size=64, intermediate_size=300)
    before = resident_memory("cuda")
    model = Model(config, dtype=dtype, device="cuda", frozen=frozen)
    planned = model.plan(training=False, length=8).bytes_of("parameters")
    assert abs(resident_memory("cuda") - before - planned) < 8192, "the rounding of a few allocations"


def qwen2_1_5b() -> ModelConfig:
    """Qwen/Qwen2-1.5B's shape."""
    return ModelConfig(
        model_type="qwen2", vocab_size=151_936, eos_token_id=151_643, hidden_size=1536, intermediate_size=8960,
        num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, max_position_embeddings=32_768,
        tie_word_embeddings=True)


def test_a_model_of_1_5b_trains_in_141_gb(emulated: None) -> None:
    """bf16, AdamW, reference, the KV cache of a rollout of 64 x 8 completions, 16k tokens a micro-batch."""
    args = GRPOConfig(num_generations=8, per_device_train_batch_size=512, beta=0.04, max_prompt_length=128,
                      max_completion_length=256, micro_batch_tokens=16_384)
    plan = plan_training(qwen2_1_5b(), args, dtype="bfloat16", device="cuda")
    for name in ("parameters", "gradients", "Adam's moments", "training: activations", "reference", "sampling: KV"):
        assert plan.bytes_of(name) > 0, name
    assert 40e9 < plan.total < 141e9
    recomputed = plan_training(qwen2_1_5b(), dataclasses.replace(args, gradient_checkpointing=True),
                               dtype="bfloat16", device="cuda")
    assert recomputed.total < 0.6 * plan.total
