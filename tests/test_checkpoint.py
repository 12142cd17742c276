"""Checkpoints: round trip, damage, and a fault or a kill at every single I/O call of a save."""

import errno
import json
import os
import tracemalloc
import warnings

import numpy as np
import pytest

from r1grpo import safe_files
from r1grpo.checkpoint import (ARRAYS, load_checkpoint, load_newest, prune_checkpoints, save_checkpoint,
                               step_name)
from r1grpo.safe_files import CheckpointError, CheckpointWarning, remove_stray_temps, write_atomic

CALLS = ("open", "write", "fsync", "mkdir", "replace")


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": rng.standard_normal((5, 7)).astype(np.float32),
            "adam.m": rng.standard_normal((5, 7)).astype(np.float32).T,  # not in C order
            "step": np.array(2**62 + 1, np.int64), "key": np.array([2**64 - 1], np.uint64),
            "big_endian": np.arange(3, dtype=">f4"), "empty": np.zeros((0, 4), np.float32)}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].shape == b[name].shape, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def fork():
    """A child that runs plain Python only; threads of other tests do not matter to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Faults:
    """Counts the I/O calls of the module and lets the k-th one go wrong."""

    def __init__(self, monkeypatch, k=None, act=None):
        self.count = 0
        for call in CALLS:
            real = getattr(os, call)

            def fake(*args, _real=real, **kwargs):
                self.count += 1
                if self.count == k:
                    act()
                return _real(*args, **kwargs)

            monkeypatch.setattr(safe_files.os, call, fake)


def disk_full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_round_trip_is_bit_exact_and_writable(tmp_path):
    state = make_state()
    sha = save_checkpoint(tmp_path, "r1", state, {"step": 3, "lr": 0.1 + 0.2, "shape": (1, 2)},
                          files={"config.json": b"{}"})
    back = load_checkpoint(tmp_path / "r1")
    assert_same(back.arrays, state)
    assert back.meta == {"step": 3, "lr": 0.1 + 0.2, "shape": [1, 2]}
    assert back.sha256 == sha and (tmp_path / "r1/config.json").read_bytes() == b"{}"
    assert back.arrays["w"].dtype == np.float32 and back.arrays["key"].dtype == np.uint64
    back.arrays["w"][0, 0] = 1  # a caller may go on training in place
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r1"]


def test_hash_is_of_content(tmp_path):
    state = make_state()
    one = save_checkpoint(tmp_path, "a", state, {"step": 1})
    assert save_checkpoint(tmp_path, "b", dict(reversed(state.items())), {"step": 1}) == one
    assert save_checkpoint(tmp_path, "c", state, {"step": 2}) != one
    state["w"].view(np.uint32)[0, 0] ^= 1
    assert save_checkpoint(tmp_path, "d", state, {"step": 1}) != one


def test_saving_again_is_a_no_op_and_another_state_replaces(tmp_path):
    save_checkpoint(tmp_path, "r1", make_state(), {})
    before = (tmp_path / "r1").stat().st_ino
    save_checkpoint(tmp_path, "r1", make_state(), {})
    assert (tmp_path / "r1").stat().st_ino == before
    save_checkpoint(tmp_path, "r1", make_state(1), {})
    assert_same(load_checkpoint(tmp_path / "r1").arrays, make_state(1))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("file", ["model.safetensors", "checkpoint.json", "config.json"])
def test_one_flipped_bit_is_found_and_named(tmp_path, file):
    save_checkpoint(tmp_path, "r1", make_state(), {"step": 1}, files={"config.json": b"{ }"})
    path = tmp_path / "r1" / file
    whole = path.read_bytes()
    for place in {0, len(whole) // 2, len(whole) - 2}:
        bad = bytearray(whole)
        bad[place] ^= 4
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=file) as caught:
            load_checkpoint(tmp_path / "r1")
        assert caught.value.path == path
    path.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(tmp_path / "r1")
    path.unlink()
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(tmp_path / "r1")


def test_newest_valid_wins_by_number(tmp_path):
    assert load_newest(tmp_path) is None
    for step in (9, 10, 123456789):
        save_checkpoint(tmp_path, step_name(step), make_state(step), {"step": step})
    assert load_newest(tmp_path).meta["step"] == 123456789
    (tmp_path / step_name(123456789) / "model.safetensors").write_bytes(b"x")
    with pytest.warns(CheckpointWarning, match="model.safetensors"):
        assert load_newest(tmp_path).meta["step"] == 10


def test_prune_never_takes_the_newest_that_loads(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step_name(step), make_state(step), {"step": step})
    prune_checkpoints(tmp_path, keep=3)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [step_name(s) for s in (3, 4, 5)]
    for step in (4, 5):
        (tmp_path / step_name(step) / "checkpoint.json").unlink()
    with pytest.warns(CheckpointWarning):
        prune_checkpoints(tmp_path, keep=1)
    assert (tmp_path / step_name(3)).exists() and not (tmp_path / step_name(4)).exists()
    with pytest.raises(ValueError, match="keep is 0"):
        prune_checkpoints(tmp_path, keep=0)


def test_prune_keeps_what_was_just_saved(tmp_path):
    """Beside later states too, which a run that went on from an earlier one has left behind."""
    for step in (10, 20, 30, 15):
        save_checkpoint(tmp_path, step_name(step), make_state(step), {"step": step})
    prune_checkpoints(tmp_path, keep=2, saved=step_name(15))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [step_name(s) for s in (15, 30)]
    prune_checkpoints(tmp_path, keep=1, saved=step_name(15))
    assert [p.name for p in tmp_path.iterdir()] == [step_name(15)]


def save_new(tmp_path):
    save_checkpoint(tmp_path, step_name(2), make_state(2), {"step": 2}, {"config.json": b"{}"})


def replace_old(tmp_path):
    save_checkpoint(tmp_path, step_name(1), make_state(2), {"step": 2})


@pytest.mark.parametrize("save", [save_new, replace_old])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_every_call_fails_once(tmp_path, monkeypatch, save, code):
    """After a failure at call k the old state loads and nothing half-written is left."""
    def fail():
        raise OSError(code, os.strerror(code))

    for k in range(1, 100):
        directory = tmp_path / str(k)
        save_checkpoint(directory, step_name(1), make_state(1), {"step": 1})
        with monkeypatch.context() as patch:
            faults, raised = Faults(patch, k, fail), False
            try:
                save(directory)
            except CheckpointError as error:
                raised = True
                assert error.errno == code and str(directory) in str(error)
                assert ("bytes wanted" in str(error)) == (code == errno.ENOSPC)
            failed = faults.count >= k
        newest = load_newest(directory)
        assert_same(newest.arrays, make_state(newest.meta["step"]))
        left = [p.name for p in directory.iterdir() if p.name.startswith(".tmp")]
        # the fault may also hit the deletion of the replaced state: then the save has succeeded
        assert not left or (failed and not raised and newest.meta["step"] == 2), left
        if not failed:
            break
    assert newest.meta["step"] == 2 and k > 8


def test_everything_is_synced_before_it_is_visible(tmp_path, monkeypatch):
    """Power loss keeps only what was synced: all files and their folder before the rename, the
    parent after it, checkpoint.json last."""
    trace, names = [], {}
    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

    def traced_open(path, flags, *args, **kwargs):
        descriptor = real_open(path, flags, *args, **kwargs)
        names[descriptor] = os.path.basename(path)
        return descriptor

    monkeypatch.setattr(safe_files.os, "open", traced_open)
    monkeypatch.setattr(safe_files.os, "fsync", lambda fd: (trace.append(names[fd]), real_fsync(fd)))
    monkeypatch.setattr(safe_files.os, "replace", lambda a, b: (trace.append("rename"), real_replace(a, b)))
    save_checkpoint(tmp_path, "r1", make_state(), {}, {"config.json": b"{}"})
    temp = trace[3]
    assert temp.startswith(".tmp-") and temp.endswith("-r1")
    assert trace == ["model.safetensors", "config.json", "checkpoint.json", temp, "rename",
                     tmp_path.name]
    trace.clear()
    write_atomic(tmp_path / "x.json", b"{}")
    assert trace[0].endswith("-x.json") and trace[1:] == ["rename", tmp_path.name]


@pytest.mark.parametrize("save", [save_new, replace_old])
def test_killed_at_every_call(tmp_path, monkeypatch, save):
    """A process that dies at call k leaves the old or the new state, and the temps go next time."""
    for k in range(1, 100):
        directory = tmp_path / str(k)
        save_checkpoint(directory, step_name(1), make_state(1), {"step": 1})
        save_checkpoint(directory, step_name(0), make_state(0), {"step": 0})
        child = fork()
        if child == 0:
            try:
                Faults(monkeypatch, k, lambda: os._exit(9))
                save(directory)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        remove_stray_temps(directory)
        assert not [p for p in directory.iterdir() if p.name.startswith(".tmp")]
        newest = load_newest(directory)
        assert_same(newest.arrays, make_state(newest.meta["step"]))
        assert newest.meta["step"] >= (1 if save is save_new else 0)
        if code == 0:
            break
    assert newest.meta["step"] == 2 and k > 8


def test_disk_full_says_how_many_bytes_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_files, "_free_bytes", lambda directory: 100)
    with pytest.raises(CheckpointError, match="1000 bytes wanted, 900 missing") as caught:
        write_atomic(tmp_path / "x", bytes(1000))
    assert caught.value.missing_bytes == 900 and caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value, OSError) and not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="missing"):
        save_checkpoint(tmp_path, "r1", make_state(), {})
    assert not list(tmp_path.iterdir())


def test_write_atomic_keeps_the_old_bytes_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_atomic(path, b"old")
    for k in range(1, 5):  # open, write, fsync, replace
        with monkeypatch.context() as patch:
            Faults(patch, k, disk_full)
            with pytest.raises(CheckpointError, match="summary.json"):
                write_atomic(path, b"new!")
        assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    write_atomic(path, b"new!")
    assert path.read_bytes() == b"new!"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(safe_files.os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    write_atomic(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/sub/r1"):
        save_checkpoint(tmp_path / "file" / "sub", "r1", make_state(), {})


def test_temps_of_living_processes_stay(tmp_path):
    child = fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    parent = tmp_path / f".tmp-{os.getppid()}-abcd-step"
    dead, dead_file = tmp_path / f".tmp-{child}-00ff-step", tmp_path / f".tmp-{child}-00fe-x.json"
    other = tmp_path / ".tmp-notes"
    parent.mkdir(), dead.mkdir(), dead_file.write_text("x"), other.mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    assert remove_stray_temps(tmp_path) == sorted([dead.name, dead_file.name])
    assert parent.exists() and other.exists()


@pytest.mark.parametrize("arrays, meta, name, error, match", [
    ({"w": [1.0]}, {}, "a", TypeError, "'w' is list"),
    ({"w": np.array([None])}, {}, "a", TypeError, "'w' is object"),
    ({}, {"loss": float("nan")}, "a", ValueError, "not JSON"),
    ({}, {"x": object()}, "a", ValueError, "not JSON"),
    ({}, {}, "../a", ValueError, r"'\.\./a' is not a usable"),
    ({}, {}, ".tmp-1-a", ValueError, "usable"),
])
def test_bad_input(tmp_path, arrays, meta, name, error, match):
    with pytest.raises(error, match=match):
        save_checkpoint(tmp_path, name, arrays, meta)
    assert not list(tmp_path.iterdir())


def test_reserved_file_names(tmp_path):
    for file in ("checkpoint.json", "model.safetensors", "a/b"):
        with pytest.raises(ValueError, match=file):
            save_checkpoint(tmp_path, "r1", {}, {}, files={file: b""})


def test_a_later_format_is_refused_by_number(tmp_path):
    save_checkpoint(tmp_path, "r1", {}, {})
    path = tmp_path / "r1" / "checkpoint.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(tmp_path / "r1")


def test_saving_and_loading_take_no_memory_beside_the_arrays(tmp_path):
    arrays = {name: np.full((500, 1000), i, np.float32) for i, name in enumerate("abcd")}
    size = sum(one.nbytes for one in arrays.values())
    tracemalloc.start()
    try:
        save_checkpoint(tmp_path, "x", arrays, {})
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        back = load_checkpoint(tmp_path / "x")
        loading = tracemalloc.get_traced_memory()[1]
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        save_checkpoint(tmp_path, "x", arrays, {})  # which is there
        for step in (1, 2, 3):
            save_checkpoint(tmp_path, step_name(step), arrays, {})
        prune_checkpoints(tmp_path, keep=1)
        again = tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()
    assert saving < size / 10 and loading < 1.1 * size and again < size / 10
    assert all(np.array_equal(back.arrays[name], arrays[name]) for name in "abcd")


def test_every_kind_of_array_is_what_the_library_would_read(tmp_path):
    import safetensors.numpy
    arrays = {f"{kind} {shape}": np.arange(int(np.prod(shape))).reshape(shape).astype(kind)
              for kind in ("bool", "int8", "uint16", "int32", "uint64", "float16", "float64")
              for shape in ((), (0, 3), (2, 3))}
    arrays["turned"] = np.arange(12.0).reshape(3, 4).T
    arrays["swapped"] = np.arange(5, dtype=">f4")
    save_checkpoint(tmp_path, "x", arrays, {})
    theirs = safetensors.numpy.load_file(tmp_path / "x" / ARRAYS)
    ours = load_checkpoint(tmp_path / "x").arrays
    for name, array in arrays.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype.name == array.dtype.name and found.shape == array.shape
            assert np.array_equal(found, array), name
