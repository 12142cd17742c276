"""Parameters as arrays of other libraries, and the other way: torch and NumPy on the CPU; the fields of a
capsule, read with ctypes, on the GPU."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from conftest import emulated_backend
from models import batch, make
from op_testing import bits
from r1grpo import Model, _core
from r1grpo.device import get_device
from r1grpo.parameters import Parameter

torch = pytest.importorskip("torch")

MATRIX, VECTOR = "model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"
EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"
READ_ONLY, COPIED = 1, 2
NEW = {"max_version": (1, 0)}


class Tensor(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = [("data", ctypes.c_void_p), ("kind", ctypes.c_int32), ("number", ctypes.c_int32),
                ("dims", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
                ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("stride", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64)]


class Versioned(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p),
                ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)), ("flags", ctypes.c_uint64),
                ("tensor", Tensor)]


class Old(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p),
                ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p))]


def inside(capsule: object) -> tuple[Any, bytes]:
    """The structure in a capsule, and the capsule's name."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    form = Versioned if name(capsule) == b"dltensor_versioned" else Old
    return ctypes.cast(get(capsule, name(capsule)), ctypes.POINTER(form)).contents, name(capsule)


class Producer:
    """An array whose capsules come from `make`, as somebody else's would."""

    def __init__(self, make: Callable[..., object], device: tuple[int, int] = (1, 0)) -> None:
        self.make, self.device = make, device

    def __dlpack__(self, **options: Any) -> object:
        return self.make(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


# ---- out, on the CPU ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["dense", "moe", "qwen3_moe"])
def test_torch_and_numpy_see_the_masters(name: str, dtype: str) -> None:
    model = make(name, dtype=dtype)
    state, parameters = model.state_dict(), model.parameters()
    assert list(parameters) == list(state)
    for key, one in parameters.items():
        assert one.dtype == "float32" and one.shape == state[key].shape and one.name == key
        shown = torch.from_dlpack(one)
        for array in (shown.numpy(), np.from_dlpack(one), np.asarray(one), np.array(one)):
            assert bits([array]) == bits([state[key]])
        assert np.asarray(one).ctypes.data == shown.data_ptr() != np.array(one).ctypes.data
        assert not np.asarray(one).flags.writeable and np.array(one).flags.writeable


def test_a_view_shows_what_updates_do_and_outlives_the_model() -> None:
    model = make("dense")
    prompts, completions = batch()
    core, one = model._core, model.parameters()[MATRIX]
    shown, array, before = torch.from_dlpack(one), np.asarray(one), np.array(one)
    model.sft_gradient(prompts, completions)
    model.update(1e-2)
    after = model.state_dict()[MATRIX]
    assert bits([shown.numpy()]) == bits([array]) == bits([after]) != bits([before])
    held = sys.getrefcount(core)
    del one, model
    gc.collect()
    assert bits([shown.numpy()]) == bits([after]) and sys.getrefcount(core) <= held
    del array
    with_view = sys.getrefcount(core)
    del shown
    assert sys.getrefcount(core) == with_view - 1, "torch let go of the model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_models_matrices_are_copies_on_the_cpu(dtype: str) -> None:
    model = make("moe", dtype=dtype).freeze()
    state, parameters = model.state_dict(), model.parameters()
    for key in (EXPERT, "model.embed_tokens.weight"):
        one = parameters[key]
        assert one.dtype == dtype and not hasattr(one, "__array_interface__")
        shown = torch.from_dlpack(one)
        assert str(shown.dtype) == f"torch.{dtype}"
        assert bits([shown.float().numpy()]) == bits([np.asarray(one)]) == bits([state[key]])
        shown.zero_()
        assert bits([model.state_dict()[key]]) == bits([state[key]])
        with pytest.raises(BufferError, match="needs a copy: this model is frozen, and has it packed or off-loaded alone"):
            one.__dlpack__(copy=False, **NEW)
        with pytest.raises(ValueError, match="NumPy cannot have it without a copy"):
            np.asarray(one, copy=False)
    assert parameters[VECTOR].dtype == "float32" and hasattr(parameters[VECTOR], "__array_interface__")


def test_what_a_capsule_says() -> None:
    model = make("moe")
    one = model.parameters()[EXPERT]
    O, I = one.shape  # noqa: E741 - the core's letters
    view, name = inside(capsule := one.__dlpack__(max_version=(1, 3)))
    assert name == b"dltensor_versioned" and (view.major, view.minor) == (1, 0) and view.flags == READ_ONLY
    t = view.tensor
    assert (t.kind, t.number, t.dims, t.code, t.bits, t.lanes, t.offset) == (1, 0, 2, 2, 32, 1, 0)
    assert (t.shape[0], t.shape[1], t.stride[0], t.stride[1]) == (O, I, I, 1)
    assert t.data == np.asarray(one).ctypes.data
    for options, form, flags in (({}, b"dltensor", None), ({"max_version": (0, 8)}, b"dltensor", None),
                                 ({"copy": True, **NEW}, b"dltensor_versioned", COPIED)):
        copy, name = inside(other := one.__dlpack__(**options))
        assert name == form and (flags is None or copy.flags == flags)
        assert copy.tensor.data != t.data, "who cannot be told that it is read-only gets a copy"
        assert bits([torch.from_dlpack(other).numpy()]) == bits([np.asarray(one)])
    assert inside(one.__dlpack__(dl_device=(1, 0), copy=False, **NEW))[0].tensor.data == t.data
    with pytest.raises(BufferError, match="read-only, which only DLPack 1.0 can say"):
        one.__dlpack__(copy=False)
    with pytest.raises(BufferError, match=r"on DLPack device \(1, 0\): .* not to \(8, 0\)"):
        one.__dlpack__(dl_device=(8, 0))
    with pytest.raises(ValueError, match="the CPU has none"):
        one.__dlpack__(stream=1)
    assert one.__dlpack_device__() == (1, 0) and not hasattr(one, "__cuda_array_interface__")
    del capsule


def test_hostile_consumers() -> None:
    """A capsule that nobody takes, one that is taken twice, one whose consumer renames it and frees it late."""
    model = make("dense")
    one, core = model.parameters()[MATRIX], model._core
    held = sys.getrefcount(core)
    for options in ({}, NEW, {"copy": True}):
        for _ in range(3):
            one.__dlpack__(**options)
    assert sys.getrefcount(core) == held, "nobody took them"
    capsule = one.__dlpack__(**NEW)
    assert sys.getrefcount(core) == held + 1
    first = torch.from_dlpack(capsule)
    with pytest.raises(Exception, match="(?i)dltensor|capsule"):
        torch.from_dlpack(capsule)
    del capsule
    assert sys.getrefcount(core) == held + 1
    del first
    assert sys.getrefcount(core) == held
    capsule = one.__dlpack__(**NEW)
    view, name = inside(capsule)
    address, deleter = ctypes.addressof(view), view.deleter
    kept = ctypes.create_string_buffer(b"used_dltensor_versioned")
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
    rename(capsule, ctypes.cast(kept, ctypes.c_char_p))
    del capsule, one, model
    assert sys.getrefcount(core) == 3, "ours, getrefcount's and the tensor's"
    deleter(address)  # as a consumer does, and ctypes without the GIL
    assert sys.getrefcount(core) == 2


def test_a_busy_model_is_not_copied_and_wrong_arguments_are_named() -> None:
    model = make("moe")
    device = get_device()
    for args, message in (((10**6, 0, "view", True, False, 0), "no parameter 1000000"),
                          ((0, 1, "view", True, False, 0), "no matrix 1 of 1"),
                          ((0, 0, "view", False, False, 0), "there is no view of model.embed_tokens.weight"),
                          ((0, 0, "look", True, False, 0), "must be one of 'view', 'copy', 'host'")):
        with pytest.raises(ValueError, match=message):
            model._core.export(device, *args)
    with pytest.raises(ValueError, match="no parameter 99999"):
        model._core.view(99999)
    for k in range(1, 3):
        _core.alloc_fail_at(k)
        with pytest.raises(MemoryError):
            model.parameters()[MATRIX.replace("1.mlp", "0.mlp")].__dlpack__()
        _core.alloc_fail_at(0)


# ---- in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MATRIX, VECTOR])
def test_load_takes_anybodys_array(name: str) -> None:
    model = make("dense")
    one = model.parameters()[name]
    want = torch.randn(*one.shape, generator=torch.Generator().manual_seed(1))
    step = torch.zeros(*one.shape[:-1], 3 * one.shape[-1])
    step[..., ::3] = want
    forms = [want, want.double(), want.half(), want.bfloat16(), want.numpy(), step[..., ::3].bfloat16(),
             want.t().contiguous().bfloat16().t() if want.dim() == 2 else want.bfloat16()]
    strided = torch.as_strided(step.bfloat16(), one.shape, step[..., ::3].stride())
    for array in [*forms, strided, Producer(lambda **_: want.__dlpack__()),
                  Producer(lambda **o: want.bfloat16().__dlpack__(**o))]:
        one.load(torch.zeros(one.shape))
        one.load(array)
        exact = getattr(array, "dtype", torch.half) not in (torch.half, torch.bfloat16)
        near = dict(rtol=0, atol=0) if exact else dict(rtol=2**-8, atol=1e-6)
        np.testing.assert_allclose(np.asarray(one), want.numpy(), **near)
    one.load(want.bfloat16())
    assert bits([np.asarray(one)]) == bits([want.bfloat16().float().numpy()])


def test_products_see_what_was_loaded() -> None:
    """Also what was written through a view of torch, which knows no read-only memory: once it is loaded."""
    model, other = make("moe", dtype="bfloat16"), make("moe", seed=1, dtype="bfloat16")
    rows = batch()
    for one, source in zip(model.parameters().values(), other.parameters().values(), strict=True):
        one.load(source)
    assert bits(model.logprobs(*rows)) == bits(other.logprobs(*rows))
    one = other.parameters()[EXPERT]
    shown = torch.from_dlpack(one)
    shown.mul_(2.0)
    one.load(shown)
    model.parameters()[EXPERT].load(np.asarray(one))
    assert bits(model.logprobs(*rows)) == bits(other.logprobs(*rows))
    neighbour = EXPERT.replace(".3.", ".2.")
    assert np.array_equal(other.state_dict()[neighbour], model.state_dict()[neighbour])


def test_a_state_dict_of_bfloat16_tensors() -> None:
    model, other = make("qwen3_moe", seed=1), make("qwen3_moe")
    state = {name: torch.from_numpy(array).bfloat16() for name, array in model.state_dict().items()}
    other.load_state_dict(state)
    for name, array in other.state_dict().items():
        assert bits([array]) == bits([state[name].float().numpy()])


@pytest.mark.parametrize("array, message", [
    (np.zeros((3, 3), np.float32), r"is \(24, 36\), given float32 \(3, 3\)"),
    (np.zeros((24, 36), np.int32), r"given int32"),
    (torch.zeros(24, 36, dtype=torch.int64), r"given int64"),
    (torch.zeros(36, 24, dtype=torch.bfloat16), r"given BF16 \(36, 24\)"),
    ([[1.0]], r"given float64 \(1, 1\)")])
def test_load_refuses_what_does_not_fit(array: Any, message: str) -> None:
    model = make("dense")
    before = bits(model.state_dict().values())
    with pytest.raises(ValueError, match=f"{MATRIX} .*{message}"):
        model.parameters()[MATRIX].load(array)
    assert bits(model.state_dict().values()) == before


def test_capsules_that_are_none() -> None:
    device, out = get_device(), np.empty(8, np.uint8)
    taken = torch.zeros(2).__dlpack__()
    torch.from_dlpack(taken)
    for capsule in (taken, 3, None):
        for call in (lambda: _core.dlpack_info(capsule), lambda: _core.dlpack_read(device, capsule, out)):
            with pytest.raises(TypeError, match="expected a DLPack capsule that nobody has taken over"):
                call()
    good = torch.zeros(2)
    with pytest.raises(ValueError, match="the array has 8 bytes, expected 7"):
        _core.dlpack_read(device, good.__dlpack__(), out[:7])
    with pytest.raises(BufferError):
        _core.dlpack_read(device, good.__dlpack__(), b"12345678")
    future = good.__dlpack__(**NEW)
    inside(future)[0].major = 2
    with pytest.raises(BufferError, match="DLPack of version 2"):
        _core.dlpack_info(future)
    inside(future)[0].major = 1
    with pytest.raises(BufferError, match="9 dimensions, at most 8"):
        _core.dlpack_info(torch.zeros([1] * 9).__dlpack__())
    elsewhere = good.__dlpack__(**NEW)
    inside(elsewhere)[0].tensor.kind = 8
    with pytest.raises(ValueError, match=r"device \(8, 0\), which the model's, \(1, 0\), does not reach"):
        _core.dlpack_read(device, elsewhere, out)
    inside(elsewhere)[0].tensor.kind = 1


# ---- on a GPU -------------------------------------------------------------------------------------


def widened(one: Parameter) -> np.ndarray:
    """The numbers behind a view on the GPU, read as somebody else's array."""
    held = Producer(one.__dlpack__, one.__dlpack_device__())
    fresh = Model(one._model.config, dtype="float32", device="cuda").parameters()[one.name]
    fresh.load(held)
    return np.asarray(fresh)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpus_parameters(gpu: Callable[[int], None], dtype: str, frozen: bool) -> None:
    model = make("qwen3_moe", dtype=dtype, device="cuda")
    model = model.freeze() if frozen else model
    state, parameters = model.state_dict(), model.parameters()
    number, stream = model.device.place[1:]
    for key in (VECTOR, "model.layers.3.mlp.experts.3.down_proj.weight", "model.layers.3.mlp.gate.weight"):
        one = parameters[key]
        half = frozen and dtype == "bfloat16" and ".experts." in key
        assert one.dtype == ("bfloat16" if half else "float32") and one.__dlpack_device__() == (2, number)
        view, _ = inside(capsule := one.__dlpack__(stream=-1, **NEW))
        t = view.tensor
        assert (t.kind, t.number, t.code, t.bits) == (2, number, 4 if half else 2, 16 if half else 32)
        assert view.flags == READ_ONLY and tuple(t.shape[:t.dims]) == one.shape
        assert t.stride[t.dims - 1] == 1 and (t.dims == 1 or t.stride[0] == one.shape[1])
        assert bits([widened(one)]) == bits([state[key]]) == bits([np.asarray(one)])
        if half:
            assert not hasattr(one, "__cuda_array_interface__")
        else:
            assert one.__cuda_array_interface__ == {
                "shape": one.shape, "typestr": "<f4", "data": (t.data, True), "strides": None, "version": 3,
                "stream": stream}
        assert not hasattr(one, "__array_interface__")
        other, name = inside(copy := one.__dlpack__(stream=2))
        assert name == b"dltensor" and other.tensor.kind == 2 and other.tensor.data != t.data
        on_host = torch.from_dlpack(one.__dlpack__(dl_device=(1, 0), **NEW))
        assert str(on_host.dtype) == f"torch.{one.dtype}"
        assert bits([on_host.float().numpy()]) == bits([state[key]])
        with pytest.raises(BufferError, match="needs a copy: it is on device"):
            one.__dlpack__(dl_device=(1, 0), copy=False)
        for wrong in (0, -2):
            with pytest.raises(ValueError, match="stream is"):
                one.__dlpack__(stream=wrong, **NEW)
        del capsule, copy


def test_a_gpus_arrays_in(gpu: Callable[[int], None]) -> None:
    model = make("dense", device="cuda")
    one = model.parameters()[MATRIX]
    want = torch.randn(*one.shape).bfloat16()
    one.load(want)
    assert bits([np.asarray(one)]) == bits([want.float().numpy()])
    cpu = make("dense")
    cpu.load_state_dict(model.parameters())  # a state dict of arrays on the GPU
    assert bits(cpu.state_dict().values()) == bits(model.state_dict().values())

    def turned(**options: Any) -> object:
        capsule = one.__dlpack__(**options)
        t = inside(capsule)[0].tensor
        t.shape[0], t.shape[1], t.stride[0], t.stride[1] = one.shape[1], one.shape[0], 1, one.shape[1]
        return capsule
    with pytest.raises(ValueError, match="on a GPU arrays must be contiguous"):
        model.parameters()[MATRIX.replace("down", "gate")].load(Producer(turned, one.__dlpack_device__()))


def test_the_gpu_that_is_open_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever mode: no second device is opened for it."""
    backend = emulated_backend()
    monkeypatch.setitem(sys.modules, "r1grpo._cuda", backend)
    monkeypatch.setattr("r1grpo.device._gpu", opened := {})
    model, cpu = make("dense", device="cuda/fast"), make("dense")
    asked = []
    parameters = {name: Producer(lambda one=one, **o: asked.append(o["stream"]) or one.__dlpack__(**o),
                                 one.__dlpack_device__()) for name, one in model.parameters().items()}
    cpu.load_state_dict(parameters)
    assert bits(cpu.state_dict().values()) == bits(model.state_dict().values())
    assert list(opened) == ["cuda/fast"] and set(asked) == {model.device.place[2]}


def test_python_goes_on_while_a_copy_on_the_gpu_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU first does all that it was given."""
    backend = emulated_backend()
    monkeypatch.setattr("r1grpo.device._gpu", {"cuda": _core.Device(ops=backend.ops)})
    one = make("dense", device="cuda").parameters()[MATRIX]
    ask, python = ctypes.CDLL(backend.__file__).emulated_ask_at_free, ctypes.pythonapi
    for question, answers in ((python.Py_IsInitialized, 1), (python.PyGILState_Check, 0)):
        capsule = one.__dlpack__(copy=True, **NEW)
        ask(ctypes.cast(question, ctypes.c_void_p))
        del capsule
        assert ask(None) == answers
