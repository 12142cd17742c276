"""The emulated GPU itself: what its instructions compute, and that it catches what it is there to catch."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import cuda_emulation
from op_testing import F32, assert_same_bits, bf16, ints, nan, normal
from r1grpo import _core

OK = 0  # r1_code


@pytest.fixture(scope="module")
def probes() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(cuda_emulation.build_probes()))
    except FileNotFoundError as error:
        pytest.skip(f"no emulated GPU: {error}")


Probe = Callable[..., F32]


@pytest.fixture
def probe(probes: ctypes.CDLL) -> Probe:
    def call(name: str, given: F32, device: int = 0, says: str = "") -> F32:
        """What the kernel wrote, or its message must hold `says`."""
        out, pointer = np.full_like(given, np.nan), ctypes.POINTER(ctypes.c_float)
        code = getattr(probes, f"probe_{name}")(device, given.ctypes.data_as(pointer),
                                                out.ctypes.data_as(pointer), ctypes.c_size_t(given.size))
        message = bytes((ctypes.c_char * 320).in_dll(probes, "probe_message")).rstrip(b"\0").decode()
        assert (code == OK) == (says == "") and says in message, (code, message)
        return out
    return call


@pytest.mark.parametrize("device", range(4))
def test_warps(probe: Probe, rng: np.random.Generator, device: int) -> None:
    given = np.zeros(576, np.float32)
    given[:64] = v = rng.integers(-3, 4, 64).astype(np.float32)
    total, block, most, up, down, one, positive, equal, pairs = probe("warp", given, device).reshape(9, 64)
    w = v.reshape(2, 32)
    assert_same_bits([total, block, most], [np.repeat(w.sum(1), 32), np.full(64, v.sum(), np.float32),
                                            np.repeat(w.max(1), 32)])
    assert_same_bits([up.reshape(2, 32)], [np.hstack([w[:, :3], w[:, :-3]])])
    eights = v.reshape(8, 8)
    assert_same_bits([down.reshape(8, 8)], [np.hstack([eights[:, 1:], eights[:, -1:]])])
    assert_same_bits([one], [np.repeat(v.reshape(4, 16)[:, 5], 16)])
    assert_same_bits([positive], [np.repeat((w > 0).sum(1), 32).astype(np.float32)])
    assert_same_bits([equal.reshape(2, 32)], [(w[:, :, None] == w[:, None]).sum(2).astype(np.float32)])
    first = np.arange(64).reshape(2, 32)[:, :8].ravel()
    assert_same_bits([pairs[first]], [v[first ^ 1]])
    assert np.all(np.delete(pairs, first) == 0.0)


@pytest.mark.parametrize("device", range(4))
def test_tensor_cores(probe: Probe, rng: np.random.Generator, device: int) -> None:
    given = bf16(normal(rng, 512))
    a, b, c = given[:256].reshape(16, 16), given[256:384].reshape(16, 8), given[384:].reshape(16, 8)
    got = probe("mma", given, device)[:128].reshape(16, 8)
    np.testing.assert_allclose(got, c + a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)


def test_a_missing_barrier_shows(probe: Probe) -> None:
    given = np.arange(256, dtype=np.float32)
    assert all(np.array_equal(probe("barrier", given, i), given[::-1]) for i in range(4))
    wrong = [probe("race", given, i) for i in range(4)]
    assert all(np.isnan(one).any() for one in wrong)
    assert len({one.tobytes() for one in wrong}) > 2
    assert len({probe("block_race", given, i)[0] for i in range(4)}) > 2


def test_a_copy_that_nobody_waits_for_has_not_arrived(probe: Probe, rng: np.random.Generator) -> None:
    assert np.isnan(probe("no_wait", bf16(normal(rng, 512)))[:128]).all()


def test_a_gpu_that_is_lost_says_so_at_every_call(probe: Probe) -> None:
    said = probe("lost", np.zeros(4, np.float32), 0, "this GPU is lost to this process, start a new one")
    assert said[0] == 1.0


def test_a_deadlock_says_where_the_threads_stand(probe: Probe) -> None:
    probe("deadlock", np.zeros(64, np.float32), 1, "deadlock_kernel: block (0, 0, 0) of 64 threads: 4 have"
          " returned, 40 wait at the block's barrier, 20 at one of their warp (the first: thread 40, mask 000f0000)")


def test_a_refused_launch_is_no_later_ones_failure(probe: Probe) -> None:
    given = np.arange(256, dtype=np.float32)
    assert np.array_equal(probe("goes_on", given), given[::-1])


def test_shared_memory_beyond_48_kib_has_to_be_asked_for(probe: Probe) -> None:
    assert probe("much_shared", np.zeros(4, np.float32))[0] == 2.0
    probe("unasked_shared", np.zeros(4, np.float32), says="more than 48 KiB of shared memory, for which nobody has")


@pytest.mark.parametrize("name", ["host_pointer", "too_long"])
def test_memory_that_is_not_the_devices_is_refused(probe: Probe, name: str) -> None:
    probe(name, np.zeros(256, np.float32), 0, "is no memory of the device")


def test_fresh_memory_is_nan(probe: Probe) -> None:
    assert np.isnan(probe("fresh", np.zeros(8, np.float32))[:3]).all()


def test_a_graph_reads_memory_when_it_runs(probe: Probe) -> None:
    got = probe("graph", np.arange(8, dtype=np.float32))
    assert_same_bits([got], [np.array([0, 32, 64, 96, 0, 0, 0, 0], np.float32)])


@pytest.mark.parametrize("what, says", [
    ("upload", "mem_upload while ops are recorded"), ("download", "mem_download while ops are recorded"),
    ("scratch", "scratch memory grows while ops are recorded"), ("alloc", "mem_alloc while ops are recorded"),
    ("alloc_host", "mem_alloc_host while ops are recorded"), ("fetch", "mem_fetch while ops are recorded"),
    ("join", "mem_join while ops are recorded"), ("share", "mem_share while ops are recorded")])
def test_what_a_graph_cannot_hold_is_refused(probe: Probe, what: str, says: str) -> None:
    probe(f"graph_{what}", np.zeros(8, np.float32), says=says)


@pytest.mark.parametrize("freed", [0, 1])
def test_freed_memory_takes_no_neighbour_along(freed: int) -> None:
    """Some of these small matrices begin a page that others are in too."""
    device, row = _core.Device(ops=cuda_emulation.load().ops), nan(1, 16)
    weights = [_core.Weight(device, np.full((4, 16), i, np.float32), 1) for i in range(64)]
    weights[freed::2] = [None] * 32
    for i, weight in enumerate(weights):
        if weight is not None:
            _core.embed_fwd(device, row, weight, ints(3))
            assert np.all(row == i)


def run_alone(probes: ctypes.CDLL, name: str) -> subprocess.CompletedProcess[str]:
    script = ("import ctypes, sys; x = (ctypes.c_float * 256)();"
              "getattr(ctypes.CDLL(sys.argv[1]), 'probe_' + sys.argv[2])(0, x, x, ctypes.c_size_t(256))")
    return subprocess.run([sys.executable, "-c", script, probes._name, name], capture_output=True, text=True)


def test_the_host_cannot_read_device_memory(probes: ctypes.CDLL) -> None:
    assert run_alone(probes, "barrier").returncode == 0
    assert run_alone(probes, "host_reads").returncode != 0


@pytest.mark.skipif("address" not in cuda_emulation.SANITIZE, reason="needs R1GRPO_SANITIZE=address")
@pytest.mark.parametrize("name", ["overrun_shared", "overrun_global"])
def test_the_sanitizer_sees_what_lies_beyond(probes: ctypes.CDLL, name: str) -> None:
    done = run_alone(probes, name)
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr and "overrun_kernel" in done.stderr
