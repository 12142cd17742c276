"""The extension itself: what it exports, devices and threads, locks, memory, errors."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from op_testing import nan
from r1grpo import _core


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="needs binutils")
def test_the_library_exports_its_init_function_alone():
    shown = subprocess.run(["nm", "-D", "--defined-only", _core.__file__], check=True,
                           capture_output=True, text=True).stdout
    assert [line.split()[-1] for line in shown.splitlines()] == ["PyInit__core"]


def test_devices():
    tiers = _core.tiers()
    assert tiers[0] == "baseline" and set(tiers) <= {"baseline", "avx2", "avx512", "avx512bf16", "amx"}
    assert _core.Device().tier in tiers[-2:]
    assert 1 <= _core.Device().threads <= os.cpu_count()
    for tier in tiers:
        device = _core.Device(threads=3, tier=tier)
        assert (device.threads, device.tier, device.name) == (3, tier, f"cpu/{tier}")
        assert repr(device) == f"Device('cpu/{tier}', threads=3)"


def test_spinning_counts_its_operations():
    """The rate is a matter of clocks; the count is not: vectors x chains x 2, all threads alike."""
    for tier in _core.tiers():
        one, three = (_core.Device(threads=n, tier=tier) for n in (1, 3))
        for dtype in ("float32", "bfloat16"):
            round_ = one.spin(dtype, 1)
            assert round_ > 0 and round_ % 2 == 0
            assert one.spin(dtype, 5) == 5 * round_ and three.spin(dtype, 5) == 15 * round_
            assert one.spin(dtype, 0) == 0
    with pytest.raises(ValueError, match="spin: argument 'dtype'"):
        one.spin("float16", 1)
    with pytest.raises(ValueError, match="rounds is more"):
        one.spin("float32", 1 << 25)
    with pytest.raises(TypeError, match="spin"):
        one.spin("float32")


def test_peak_is_measured_once_for_a_device():
    from r1grpo import device

    assert device.peak_flops("float32") == device.peak_flops() > 1e9
    device.set_num_threads(device.get_device().threads)
    assert device._peaks == {}


def test_threads_really_start_above_the_core_count():
    task = "/proc/self/task"
    if not os.path.isdir(task):
        pytest.skip("needs /proc")
    before = len(os.listdir(task))
    device = _core.Device(threads=os.cpu_count() + 5)
    assert len(os.listdir(task)) == before + os.cpu_count() + 4  # the caller is one of them
    del device
    assert len(os.listdir(task)) == before


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"threads": -1}, ValueError, "threads is -1, must be in 0"),
    ({"threads": 10 ** 6}, ValueError, "threads is 1000000"),
    ({"threads": 1.5}, TypeError, "float"),
    ({"tier": "sse"}, ValueError, "tier 'sse' is unknown"),
    ({"size": 1}, TypeError, "size"),
])
def test_bad_devices(options, error, match):
    with pytest.raises(error, match=match):
        _core.Device(**options)


def test_types_are_final_and_immutable():
    for kind in (_core.Device, _core.Weight, _core.Kv):
        with pytest.raises(TypeError):
            type("Sub", (kind,), {})
        with pytest.raises(TypeError):
            kind.extra = 1
    with pytest.raises(ValueError, match="Weight: takes no keywords"):
        _core.Weight(_core.Device(threads=1), np.ones((1, 1), np.float32), 1, size=1)


def test_a_second_thread_is_told_that_the_device_is_busy():
    device = _core.Device(threads=1, tier="baseline")
    n = 1500  # one call is long beside a switch of threads
    a, out = np.ones((n, n), np.float32), nan(n, n)
    weight, small, said = _core.Weight(device, a, 1), nan(1, 1), []
    worker = threading.Thread(target=_core.matmul_nt,
                              args=(device, out, a, weight, None, None, False))
    worker.start()
    while worker.is_alive() and not said:
        try:
            _core.fill_zero(device, small)
        except RuntimeError as error:
            said.append(str(error))
    worker.join()
    assert said == ["device is busy: another thread is computing on it"]
    assert np.all(out == n)
    _core.fill_zero(device, small)
    assert small[0, 0] == 0.0


def test_two_devices_compute_at_the_same_time():
    devices = [_core.Device(threads=2) for _ in range(3)]
    outs = [nan(64, 64) for _ in devices]

    def work(device, out):
        for _ in range(200):
            _core.add(device, out, np.ones((64, 64), np.float32), np.ones((64, 64), np.float32))
    workers = [threading.Thread(target=work, args=pair) for pair in zip(devices, outs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.all(out == 2.0) for out in outs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12 warns of fork beside threads
def test_a_forked_child_computes_alone():
    device = _core.Device(threads=3)
    a = np.ones((200, 300), np.float32)
    _core.add(device, nan(200, 300), a, a)
    child = os.fork()
    if child == 0:
        out = nan(200, 300)
        _core.add(device, out, a, a)
        os._exit(0 if np.all(out == 2.0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def every_allocation_fails(make):
    """Runs make with the first allocation failing, then the second, ... until it works."""
    for k in range(1, 50):
        _core.alloc_fail_at(k)
        try:
            result = make()
        except MemoryError:
            continue
        finally:
            _core.alloc_fail_at(0)
        return k - 1, result
    raise AssertionError("still failing")


def test_out_of_memory_is_a_memory_error():
    device, matrix = _core.Device(threads=2), np.ones((4, 3), np.float32)
    assert every_allocation_fails(lambda: _core.Device(threads=2))[0] >= 1
    assert every_allocation_fails(lambda: _core.Weight(device, matrix, 2))[0] >= 2
    assert every_allocation_fails(lambda: _core.Kv(device, 2, 1, 4, 4))[0] == 2
    logits, ids, out = np.zeros((1, 5), np.float32), np.zeros(1, np.int32), nan(1)
    failures, _ = every_allocation_fails(
        lambda: _core.logp_fwd(device, out, None, nan(1), logits, ids, (1.0, 0, 1.0, 0.0)))
    assert failures == 1
    with pytest.raises(MemoryError):
        _core.Kv(device, 2 ** 20, 1024, 256, 256)


def test_nothing_leaks():
    """References by count; memory by the peak of the process: 128 leaks of 2 MiB would show."""
    device = _core.Device(threads=1)
    matrix, small = np.ones((512, 512), np.float32), np.ones(2, np.float32)
    failing = [lambda: _core.Weight(device, matrix, 3), lambda: _core.Device(-1),
               lambda: _core.add(device, matrix, matrix, small),
               lambda: _core.add(device, matrix, matrix)]

    def cycle():
        _core.Weight(device, matrix, 2)
        _core.Kv(device, 8, 8, 64, 64)
        every_allocation_fails(lambda: _core.Weight(device, matrix, 2))
        for call in failing:
            with pytest.raises((ValueError, TypeError)):
                call()
    watched = device, matrix, small, _core.Weight, _core.Device
    cycle()
    references = [sys.getrefcount(x) for x in watched]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(128):
        cycle()
    assert [sys.getrefcount(x) for x in watched] == references
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 * 1024


MEMORY = {"dev_open", "dev_close", "dev_threads", "dev_spin", "dev_pins", "mem_alloc", "mem_free",
          "mem_upload", "mem_download", "mem_map", "mem_unmap", "mem_place", "mem_share", "mem_alloc_host", "mem_free_host",
          "mem_fetch", "mem_store", "mem_join",
          "weight_bytes", "weight_open", "weight_close", "weight_view",
          "weight_write", "weight_read", "logp_scratch",  # behind Device, Weight, Kv and the calls that need scratch
          "dev_pretend", "dev_own",  # behind plans
          "graph_begin", "graph_end", "graph_run", "graph_close"}  # behind Decode, on a GPU


def test_every_op_of_the_table_is_callable():
    header = Path(__file__).parents[1].joinpath("csrc", "ops.h").read_text()
    names = set(re.findall(r"\(\*(\w+)\)\(", header))
    assert MEMORY < names
    device = _core.Device(threads=1)
    for name in names - MEMORY:
        op = getattr(_core, name)
        assert op.__text_signature__.startswith("(device, ")
        with pytest.raises(TypeError, match=f"{name}: argument 'device': missing"):
            op()
        with pytest.raises(TypeError, match="missing"):
            op(device)
