"""sandbox.py - programs that nobody has read run here, and nowhere else.

    level        what holds a program
    full         bubblewrap: a file system of nothing but the interpreter and the libraries, read-only;
                 no network, no other process in sight; and all of `restricted`
    restricted   Landlock: no file but those, no writing, no TCP; seccomp: no process, no signal, no
                 socket, no change to a file, no namespace (seccomp.py); limits on CPU time, memory,
                 threads, files and output; a user of its own where root starts it; an empty environment
    none         the limits alone: the program can read and delete what you can

What `full` adds is a second wall: a hole in Landlock or seccomp then leads to an empty room. At both,
a program has standard input, standard output, memory and threads. It has no place to write a file, on
purpose: nothing fills a disk, and nothing stays for the next program.

    with Sandbox("full", "python", program) as sandbox:
        outcome = sandbox.run(b"s", b"3 4\\n", 5.0)      # TimedOut after 5 s, and all of it is gone

A level is tried, once per process, by attempts to escape (ATTEMPTS). The level that is asked for is the
one that is used: where this machine lacks it, SandboxUnavailable says why, and nothing runs. Not
contained: faults of the kernel and of the processor, for which take a virtual machine.

Between us and the program stands the warden (warden.py), a bare interpreter inside the same walls that
forks a child for every run, so a program costs one start, its tests a fork each. Linux on x86-64 and
arm64. Sources: bwrap(1), landlock(7), seccomp(2), user_namespaces(7). Knows nothing about verdicts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from .plain_values import decode, render
from .seccomp import make_filter, supported

LEVELS = ("full", "restricted", "none")
COMPILERS = {"c": ("cc", ("-O2", "-std=c17", "-pipe", "-w"), "program.c", ("-lm",)),
             "c++": ("c++", ("-O2", "-std=c++17", "-pipe", "-w"), "program.cc", ())}
LANGUAGES = ("python", *COMPILERS)

_SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/include",
           "/usr/share/zoneinfo",  # not /usr: people keep their data in /usr/src/app and the like
           "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives",
           "/dev/null", "/dev/zero", "/dev/urandom")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1"}
_SPARE_USERS = (0x70000000, 0x0FFFFFFF)  # first, count: given to nobody by systemd's table of uids
_NOBODY = 65534
_START_SECONDS = 60.0
_GRACE_SECONDS = 1.0    # for the warden to end by itself


class SandboxUnavailable(RuntimeError):
    """This machine cannot hold programs at the level that was asked for."""


class TimedOut(Exception):
    """A run was not over at its deadline."""


@dataclass(frozen=True)
class Limits:
    """Of one run: seconds on the clock, bytes of memory and of output, threads. total_seconds: of all
    runs of a program together."""

    seconds: float = 5.0
    total_seconds: float = 30.0
    compile_seconds: float = 20.0
    memory: int = 1 << 30
    output: int = 1 << 20
    threads: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
                raise ValueError(f"Limits: {name} must be a number above 0, not {value!r}")


class Outcome(NamedTuple):
    """How a run ended: its exit code (negative: the signal), whether it wrote more than it may, and
    what it wrote."""

    code: int
    over: bool
    output: bytes


class Sandbox:
    """One program, held at a level, ready to be run any number of times."""

    def __init__(self, level: str, language: str, program: str, limits: Limits | None = None) -> None:
        self.level, limits = level, limits or Limits()
        self._work: Path | None = None
        root = os.geteuid() == 0
        user = _spare_user() if root and level != "none" else None
        interpreter, paths = _interpreter(user is not None and level == "restricted")
        compiler: list[str] = []
        work, source_name = None, ""
        if language != "python":
            name, options, source_name, libraries = COMPILERS[language]
            found = shutil.which(name, path=_ENVIRONMENT["PATH"])
            if found is None:
                raise SandboxUnavailable(f"{language}: no compiler {name} in {_ENVIRONMENT['PATH']}")
            compiler = [found, *options]
            work = "/work"
            if level != "full":
                self._work = Path(tempfile.mkdtemp(prefix="r1grpo-program-"))
                self._work.chmod(0o755)
                work = str(self._work)
        counted = user is not None or level == "full"  # threads count by user, and by namespace
        files = 64 << 20
        settings = {
            "walls": level != "none", "landlock": level == "restricted", "uid": user, "paths": paths,
            "work": work, "compiler": compiler, "libraries": list(libraries) if compiler else [],
            "source_name": source_name, "program": program.encode("utf-8", "surrogatepass"),
            "filters": {} if level == "none" else {
                profile: make_filter(platform.machine(), profile)
                for profile in ("python", *(("binary", "compile") if compiler else ()))},
            "limits": {"seconds": limits.seconds, "compile_seconds": limits.compile_seconds,
                       "memory": int(limits.memory), "compiler_memory": max(2 << 30, int(limits.memory)),
                       "output": int(limits.output), "files": files,
                       "threads": int(limits.threads) if counted else 0}}
        command = [interpreter, "-sSP", "-c", _warden_source()]
        if level == "full":
            command = [*_bubblewrap(paths, root, files if compiler else 0), *command]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
                env=_ENVIRONMENT, start_new_session=True, bufsize=0)
            self.send(render(settings).encode(), _START_SECONDS)
            self.holds = self.receive(_START_SECONDS).decode("utf-8", "replace")
        except (OSError, TimedOut) as error:
            reason = self._last_words() or str(error)
            self.close()
            raise SandboxUnavailable(reason) from None
        except BaseException:
            self.close()
            raise

    def run(self, kind: bytes, body: bytes, seconds: float) -> Outcome:
        """Run the program once, as warden.py says of a kind of request. TimedOut where it is not over
        after `seconds`; the sandbox is closed then. OSError where the sandbox itself came to an end."""
        try:
            self.send(kind + body, seconds)
            return self.outcome(self.receive(seconds))
        except (OSError, TimedOut):
            self.close()
            raise

    @staticmethod
    def outcome(frame: bytes) -> Outcome:
        """What a reply of the warden says."""
        return Outcome(int.from_bytes(frame[:4], "big", signed=True), bool(frame[4]), frame[5:])

    def send(self, body: bytes, seconds: float) -> None:
        pipe = self._process.stdin
        os.set_blocking(pipe.fileno(), False)
        data = memoryview(len(body).to_bytes(4, "big") + body)
        until = time.monotonic() + seconds
        while data:
            _wait(pipe.fileno(), select.POLLOUT, until)
            data = data[os.write(pipe.fileno(), data[:1 << 16]):]

    def receive(self, seconds: float) -> bytes:
        until = time.monotonic() + seconds
        size = int.from_bytes(self._read(4, until), "big")
        return self._read(size, until)

    def _read(self, size: int, until: float) -> bytes:
        pipe, data = self._process.stdout.fileno(), bytearray()
        while len(data) < size:
            _wait(pipe, select.POLLIN, until)
            piece = os.read(pipe, min(size - len(data), 1 << 20))
            if not piece:
                raise BrokenPipeError("the sandbox ended")
            data += piece
        return bytes(data)

    def _last_words(self) -> str:
        """What the process that did not start wrote on standard error."""
        if not hasattr(self, "_process"):
            return ""
        self._end_process()
        words = os.read(self._process.stderr.fileno(), 1 << 16).decode("utf-8", "replace").strip()
        return words.rpartition("\n")[2][:300]

    def _end_process(self) -> None:
        process = self._process
        process.stdin.close()  # the warden kills its child, reaps it and ends
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """End all of it; nothing is left when this returns."""
        if hasattr(self, "_process"):
            self._end_process()
            self._process.stdout.close()
            self._process.stderr.close()
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wait(fd: int, event: int, until: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, 1000 * (until - time.monotonic()))):
        raise TimedOut


@functools.cache
def _warden_source() -> str:
    return Path(__file__).with_name("warden.py").read_text("utf-8")


def _spare_user() -> int:
    """A user that owns nothing and, most likely, has no other process: what root's programs run as."""
    first, count = _SPARE_USERS
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    if any(start <= first and first + count <= start + size for start, _, size in ranges):
        return first + secrets.randbelow(count)
    if any(start <= _NOBODY < start + size for start, _, size in ranges):
        return _NOBODY
    raise SandboxUnavailable("this container has no user but root to run programs as")


def _interpreter(by_others: bool) -> tuple[str, list[str]]:
    """(the Python that runs programs, what it must be able to read): the one that runs us or, where a
    user that owns nothing cannot reach it, the system's."""
    own = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    folders = [os.path.join(prefix, name) for prefix in {sys.base_prefix, sys.base_exec_prefix}
               for name in ("lib", "lib64") if os.path.isdir(os.path.join(prefix, name))]
    paths = [path for path in _SYSTEM if os.path.exists(path)]
    mine = [path for path in [own, *folders] if not any(map(Path(path).is_relative_to, paths))]
    if not by_others or all(map(_open_to_others, [own, *folders])):
        return own, [*paths, *mine]
    system = os.path.realpath("/usr/bin/python3")
    if not os.path.exists(system):
        raise SandboxUnavailable(f"{own} is closed to other users, and there is no /usr/bin/python3")
    return system, paths


def _open_to_others(path: str) -> bool:
    """Whether the file or folder and all folders above it are open to every user."""
    return all(one.stat().st_mode & 0o001 for one in (Path(path), *Path(path).parents))


def _bubblewrap(paths: list[str], root: bool, work_bytes: int) -> list[str]:
    """The command that builds the room. Root needs no user namespace, and its programs run as a user of
    their own; for others the namespace is what gives them the right to build one. The warden is the
    first process of its namespace: when it ends, the kernel ends the rest, and bwrap reaps it."""
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxUnavailable("bubblewrap is not installed (bwrap)")
    command = [program, "--die-with-parent", "--unshare-pid", "--as-pid-1", "--unshare-net", "--unshare-ipc",
               "--unshare-uts", "--hostname", "sandbox"]
    if root:
        command += ["--cap-drop", "ALL"]
        for capability in ("SETUID", "SETGID", "KILL", "CHOWN"):
            command += ["--cap-add", f"CAP_{capability}"]
    else:
        command += ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    above = {folder for path in paths for folder in Path(path).parents} - {Path("/")}
    for folder in sorted(above):
        command += ["--perms", "0755", "--dir", str(folder)]  # else its own user's alone
    for path in paths:
        if os.path.islink(path) and os.path.dirname(path) == "/":
            command += ["--symlink", os.readlink(path), path]
        elif path.startswith("/dev/"):
            command += ["--dev-bind", path, path]
        else:
            command += ["--ro-bind", path, path]
    if work_bytes:
        command += ["--size", str(work_bytes), "--tmpfs", "/work"]
    return [*command, "--remount-ro", "/", "--chdir", "/"]


# ---- which levels there are ---------------------------------------------------------------------

# Each returns normally where it got out. Run inside, with the path of a file outside as `outside`.
ATTEMPTS = """
import ctypes, os, resource, socket, threading

def read_outside(outside): open(outside).read()
def read_users(outside): open("/etc/passwd").read()
def write_tmp(outside): open("/tmp/r1grpo-escape", "w").close()
def write_beside(outside): open(outside, "a").close()
def list_processes(outside): os.listdir("/proc/1")
def read_environment(outside): open("/proc/self/environ", "rb").read()
def inherit_environment(outside): os.environ["R1GRPO_SECRET"]
def open_socket(outside): socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def open_unix_socket(outside): socket.socket(socket.AF_UNIX)
def start_process(outside):
    if os.fork() == 0: os._exit(0)
def run_program(outside): os.execv("/bin/true", ["true"])
def signal_parent(outside): os.kill(os.getppid(), 0)
def raise_limits(outside): resource.setrlimit(resource.RLIMIT_CPU, (1 << 30, 1 << 30))
def use_memory(outside): bytearray(1 << 36)
def trace(outside):
    if ctypes.CDLL(None, use_errno=True).ptrace(0, 0, 0, 0) == -1: raise OSError
def make_namespace(outside):
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == -1: raise OSError
def become_root(outside):
    os.setuid(0)
    os.listdir("/root")

def escape(outside):
    escaped = []
    for attempt in (read_outside, read_users, write_tmp, write_beside, list_processes,
                    read_environment, inherit_environment, open_socket, open_unix_socket,
                    start_process, run_program, signal_parent, raise_limits, use_memory, trace,
                    make_namespace, become_root):
        try:
            attempt(outside)
        except (OSError, KeyError, MemoryError, ValueError):
            continue
        escaped.append(attempt.__name__)
    return escaped
"""


def require_level(level: str, accept_no_sandbox: bool = False) -> str:
    """What holds programs at a level here. SandboxUnavailable where the machine lacks it, with the
    reason and what can be done; ValueError where "none" was not asked for twice."""
    if level not in LEVELS:
        raise ValueError(f"sandbox level {level!r} is none of {', '.join(LEVELS)}")
    if level == "none" and not accept_no_sandbox:
        raise ValueError('sandbox level "none" lets generated programs read, change and send all that '
                         "you can; it takes accept_no_sandbox=True as well")
    found, works = try_level(level)
    if works:
        return found
    raise SandboxUnavailable(
        f"generated programs cannot be held at level {level!r} here: {found}. Install bubblewrap and run "
        "where user namespaces are allowed (in Docker: --security-opt seccomp=unconfined or a profile "
        'with unshare and mount), or ask for level="restricted" (Linux 5.13 or later with Landlock), if '
        f"that is there: {'yes' if level == 'full' and try_level('restricted')[1] else 'no'}")


@functools.cache
def try_level(level: str) -> tuple[str, bool]:
    """(what holds programs at a level, or why nothing does; whether it does), by trying to escape."""
    if sys.platform != "linux" or not supported(platform.machine()):
        return f"{sys.platform} on {platform.machine()} is not supported", False
    with tempfile.NamedTemporaryFile() as outside:
        os.chmod(outside.name, 0o666)
        try:
            attempts = ATTEMPTS if level != "none" else "def escape(outside): return []"
            with Sandbox(level, "python", attempts) as sandbox:
                call = render(["escape", [outside.name], {}]).encode()
                ended = sandbox.run(b"f", call, _START_SECONDS)
                escaped = decode(ended.output[1:]) if ended.output[:1] == b"=" else [ended.output.decode()]
        except (SandboxUnavailable, OSError, TimedOut, ValueError) as error:
            return str(error) or type(error).__name__, False
    if escaped:
        return f"programs escape: {', '.join(map(str, escaped))}", False
    return f"{'bubblewrap, ' * (level == 'full')}{sandbox.holds}", True
