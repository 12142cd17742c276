"""The sandbox: nothing gets out, nothing is left, at every level that this machine has. A level that
it lacks is skipped, with the reason; what `full` alone contains is said where it is tested."""

import ast
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from escapes import HEAVY, PYTHON, SOURCES, C

from r1grpo.verifiers import sandbox as module
from r1grpo.verifiers.plain_values import decode, render
from r1grpo.verifiers.sandbox import (
    Limits,
    Sandbox,
    SandboxUnavailable,
    TimedOut,
    require_level,
    try_level,
)
from r1grpo.verifiers.seccomp import NUMBERS

SECRET = "20250120"


@pytest.fixture(params=["full", "restricted"])
def level(request):
    found, works = try_level(request.param)
    if not works:
        pytest.skip(f"no sandbox level {request.param} on this machine: {found}")
    return request.param


@pytest.fixture
def outside(tmp_path_factory, monkeypatch):
    """What a program could reach, and the check that it did not."""
    monkeypatch.setenv("R1GRPO_SECRET", SECRET)
    folder = tmp_path_factory.mktemp("outside")
    for one in (folder, folder.parent, folder.parent.parent):
        one.chmod(0o777)
    file = folder / "secret"
    file.write_text(SECRET)
    file.chmod(0o666)
    (folder / "planted.py").write_text("escaped = True")
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    name = f"r1grpo-{os.getpid()}"
    path = str(folder / "socket")
    listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX),
                 socket.socket(socket.AF_UNIX)]
    listeners[1].bind(path)
    listeners[2].bind("\0" + name)
    os.chmod(path, 0o777)
    for one in listeners[1:]:
        one.listen()
    before = sorted(os.listdir(folder))
    yield {"file": str(file), "folder": str(folder), "process": victim.pid, "path": path, "name": name,
           "port": listeners[0].getsockname()[1]}
    for one in listeners:
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            one.accept()
        one.close()
    assert victim.poll() is None, "the process outside has ended"
    victim.kill()
    victim.wait()
    assert file.read_text() == SECRET
    assert file.stat().st_mode & 0o777 == 0o666
    assert file.stat().st_mtime > 1e9
    assert sorted(os.listdir(folder)) == before
    assert not list(Path("/tmp").glob("r1grpo-escape*")) and not list(Path("/dev/shm").glob("r1grpo-escape*"))


def members(session):
    """The processes of a session: a program cannot leave its own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append((stat.parent.name, fields[0]))
    return found


def gone(sandbox):
    """Whether all of a sandbox has ended; the kernel may need a moment for what it killed."""
    until = time.monotonic() + 5.0
    while members(sandbox._process.pid) and time.monotonic() < until:
        time.sleep(0.005)
    return not members(sandbox._process.pid)


ATTEMPTS = [node.name for node in ast.parse(PYTHON).body if isinstance(node, ast.FunctionDef)
            and [one.arg for one in node.args.args] == ["outside"]]


def test_there_are_many_attempts():
    assert len(ATTEMPTS) + len(HEAVY) + len(C) + len(SOURCES) >= 100


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_attempt_gets_out(level, outside, name):
    with Sandbox(level, "python", PYTHON, Limits(memory=1 << 29)) as sandbox:
        ended = sandbox.run(b"f", render([name, [outside], {}]).encode(), 20.0)
        # the one that signals would also be held if it could signal itself alone
        refused = ended.output[:1] == b"!" and not ended.output.startswith((b"!NameError", b"!SyntaxError"))
        assert refused or ended.code, f"{name} got out: {ended}"
        assert b"ended" not in sandbox.run(b"f", b"['become_root', [{}], {}]", 20.0).output  # still there
    assert gone(sandbox)


@pytest.mark.parametrize("name", HEAVY)
def test_what_never_ends_is_ended(level, outside, name):
    sandbox = Sandbox(level, "python", HEAVY[name], Limits(seconds=0.4, memory=1 << 28))
    began = time.monotonic()
    try:
        ended = sandbox.run(b"s", b"", 0.4)
        assert ended.over or ended.code or name in ("recurse", "read for ever")
        assert len(ended.output) <= 1 << 20
    except TimedOut:
        assert time.monotonic() - began < 10.0
    sandbox.close()
    assert gone(sandbox)


@pytest.fixture(scope="module")
def compiler():
    if not Path("/usr/bin/cc").exists():
        pytest.skip("no /usr/bin/cc")


def built(level, source):
    sandbox = Sandbox(level, "c", source, Limits(memory=1 << 28))
    return sandbox, sandbox.run(b"c", b"", 20.0)


@pytest.mark.parametrize("name", C)
def test_no_c_program_gets_out(level, outside, compiler, name):
    sandbox, said = built(level, C[name])
    with sandbox:
        assert said.code == 0, said.output.decode()
        for _ in range(2):
            assert b"escaped" not in sandbox.run(b"s", b"", 10.0).output
    assert gone(sandbox)


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_uses_the_compiler_to_get_out(level, outside, compiler, name):
    sandbox = Sandbox(level, "c", SOURCES[name].replace("SECRET", outside["file"]))
    with sandbox:
        try:
            said = sandbox.run(b"c", b"", 3.0)
        except TimedOut:
            said = None
        if said and said.code == 0:
            assert SECRET not in sandbox.run(b"s", b"", 10.0).output.decode()
        elif said:
            assert SECRET not in said.output.decode("utf-8", "replace")
    assert gone(sandbox)
    assert not list(Path("/tmp").glob("r1grpo-program-*"))


def test_an_attempt_is_able_to_get_out(outside):
    """The same attempts without walls: the tests above can fail."""
    with Sandbox("none", "python", PYTHON) as sandbox:
        for name in ("read_a_secret", "read_the_users", "make_a_process", "run_a_program",
                     "use_keys", "make_memory_files", "signal_the_group", "make_a_pair_of_datagrams"):
            ended = sandbox.run(b"f", render([name, [outside], {}]).encode(), 20.0)
            assert ended.output[:1] != b"!" and not ended.code, (name, ended)


def test_a_program_finds_an_empty_room(level):
    """What `full` adds: a program that Landlock or seccomp let through would find nothing there."""
    program = "import os\ndef look(): return [p for p in ('/home', '/proc', '/sys', '/tmp', '/var') " \
              "if os.access(p, os.F_OK)]"
    with Sandbox(level, "python", program) as sandbox:
        found = decode(sandbox.run(b"f", b"['look', [], {}]", 20.0).output[1:])
    assert found == [] or level == "restricted"


def test_runs_of_one_program_do_not_meet(level):
    program = "import os, builtins\ndef f(x):\n    old = getattr(builtins, 'kept', None)\n" \
              "    builtins.kept = x\n    os.environ['kept'] = 'x'\n    return old, len(os.environ)"
    with Sandbox(level, "python", program) as sandbox:
        first, second = (sandbox.run(b"f", f"['f', [{x}], {{}}]".encode(), 20.0) for x in (1, 2))
    assert first == second
    assert decode(first.output[1:])[0] is None


def test_two_hundred_hanging_programs_leave_nothing(level):
    sandboxes = []
    descriptors = len(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    for _ in range(200):
        sandboxes.append(Sandbox(level, "python", "while True: pass"))
        with pytest.raises(TimedOut):
            sandboxes[-1].run(b"s", b"", 0.01)
        if time.monotonic() - began > 40.0 and len(sandboxes) >= 50:
            break  # a slow machine; fifty show it
    assert all(map(gone, sandboxes))
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    with pytest.raises(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def test_threads_do_not_disturb_each_other(level):
    results = {}

    def run(i):
        with Sandbox(level, "python", "def f(x): return x * x") as sandbox:
            results[i] = decode(sandbox.run(b"f", f"['f', [{i}], {{}}]".encode(), 30.0).output[1:])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert results == {i: i * i for i in range(8)}


def test_when_the_caller_is_killed_the_program_ends_too(level):
    code = ("from r1grpo.verifiers.sandbox import Sandbox\n"
            f"s = Sandbox({level!r}, 'python', 'while True: pass')\n"
            "print(s._process.pid, flush=True)\ns.run(b's', b'', 100.0)")
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                              cwd=Path(__file__).parent.parent)
    session = int(caller.stdout.readline())
    time.sleep(0.05)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    until = time.monotonic() + 5.0
    while any(state != "Z" for _, state in members(session)) and time.monotonic() < until:
        time.sleep(0.005)
    assert all(state == "Z" for _, state in members(session))


# ---- levels -------------------------------------------------------------------------------------

def test_no_level_is_taken_for_another(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    try_level.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="'full'.*bubblewrap is not installed"):
            require_level("full")
    finally:
        try_level.cache_clear()


def test_a_level_whose_walls_have_a_hole_is_refused(monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", "def escape(outside): return ['read_outside']")
    try_level.cache_clear()
    try:
        with pytest.raises(SandboxUnavailable, match="programs escape: read_outside"):
            require_level("restricted")
    finally:
        try_level.cache_clear()


def test_none_must_be_asked_for_twice():
    with pytest.raises(ValueError, match="accept_no_sandbox"):
        require_level("none")
    assert require_level("none", accept_no_sandbox=True) == "no walls"
    with pytest.raises(ValueError, match="'half' is none of full, restricted, none"):
        require_level("half")


def test_limits_are_numbers_above_zero():
    for bad in ({"seconds": 0}, {"memory": -1}, {"threads": True}, {"output": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Limits(**bad)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the header of another machine")
def test_the_numbers_of_calls_are_the_kernels():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    kernel = dict(re.findall(r"__NR_(\w+) (\d+)", header.read_text()))
    words = NUMBERS["x86_64"].split()
    for name, number in zip(words[::2], words[1::2], strict=True):
        assert kernel[name] == number, name


def test_a_signal_ends_as_a_signal(level):
    with Sandbox(level, "python", "import ctypes\nctypes.string_at(0)") as sandbox:
        assert sandbox.run(b"s", b"", 20.0).code == -signal.SIGSEGV
