"""Functions for the workers of a VerifierPool: honest ones, and every kind that is not.

Top level and importable, since a worker finds them by name.
"""

import ctypes
import os
import resource
import signal
import sys
import time
from pathlib import Path

from r1grpo.verifiers import Verdict

_calls = 0


def same(text, gold):
    return Verdict(text == gold, "correct" if text == gold else "wrong", f"{text} for {gold}")


def calls():
    """How often this process was asked."""
    global _calls
    _calls += 1
    return _calls


def surroundings():
    return {"env": sorted(os.environ), "cwd": os.getcwd(), "path": sys.path, "stdin": sys.stdin.read(),
            "fds": len(os.listdir("/proc/self/fd")), "hash": hash("text")}


def hang(where=None):
    """Forever; with a file that says in whose hands it is."""
    if where:
        Path(where).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def spin():
    while True:
        pass


def out_of_cpu_time():
    """What the kernel does to threads that spin together."""
    os.kill(os.getpid(), signal.SIGXCPU)


def limits():
    return {name: resource.getrlimit(getattr(resource, name))[0]
            for name in ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU")}


def ignore_signals():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGIO, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hang()


def flood(gigabytes=1):
    line = b"x" * (1 << 20)
    for _ in range(gigabytes << 10):
        os.write(1, line)
        os.write(2, line)
    print("and more")
    return True


def segfault():
    ctypes.string_at(0)


def exhaust():
    return len([bytes(1 << 27) for _ in range(1 << 10)])


def recurse(n=0):
    return recurse(n + 1)


def raise_exit():
    raise SystemExit(0)


def raise_interrupt():
    raise KeyboardInterrupt


class Unshowable(Exception):
    def __str__(self):
        raise ValueError("no words")


def raise_unshowable():
    raise Unshowable


def much():
    return "x" * (1 << 21)


def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


def big_integer():
    return 10 ** 10_000


def numbers():
    import numpy as np
    return [np.float32(0.5), np.int64(3), np.array([1.0, 2.0]), np.bool_(True), None, float("nan")]


def fork_and_return():
    """Both halves come back to the worker's loop."""
    return os.fork() == 0


def leave_child(where, seconds=60.0, own_session=False):
    """A child that outlives the call, its number in a file; with own_session a daemon."""
    if os.fork() == 0:
        if own_session:
            os.setsid()
            if os.fork():
                os._exit(0)
        with open(where, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(seconds)
        os._exit(0)
    while not (os.path.exists(where) and open(where).read()):
        time.sleep(0.001)
    return True


def leave_child_and_crash(where):
    leave_child(where, own_session=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def write_to_pipes():
    """Rubbish on every descriptor there is."""
    for fd in range(3, 100):
        try:
            os.write(fd, b"\x00\x00\x00\x04nope")
        except OSError:
            pass
    return True


def own_number():
    return os.getpid()
