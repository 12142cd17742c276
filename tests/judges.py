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
    """Both halves come back to the worker's loop, the new one first."""
    if os.fork() == 0:
        return True
    time.sleep(0.01)
    return False


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


# ---- reward functions ---------------------------------------------------------------------------


def wish(prompts, completions, completion_ids, wish, seconds=0.0, **columns):
    """Whether a completion has the wish in it, after a while that depends on it alone."""
    [text], [wanted] = completions, wish
    time.sleep(seconds * (len(text) % 3))
    right = wanted in text.split()
    return [Verdict(right, "correct" if right else "missing" if len(text) < 3 else "wrong")]


def faulty_wish(prompts, completions, completion_ids, wish, fault, **columns):
    """As wish; completions that begin with this word meet something else."""
    if completions[0].startswith(fault[0]):
        return {"e": lambda: [None], "f": lambda: [1.0, 2.0], "g": lambda: [float("nan")],
                "h": lambda: "text"}.get(fault[0], segfault)()
    return [float(wish[0] in completions[0].split())]


def words_seen(prompts, completions, completion_ids, finish_reasons, num_generations, wish, bonus=0.0,
               **columns):
    """All that a pooled function is told, in a number."""
    assert len(prompts) == len(completions) == len(completion_ids) == len(finish_reasons) == 1
    assert num_generations == 1 and wish[0] in "ef" and not columns
    return [bonus + len(completion_ids[0]) / 16 + (finish_reasons[0] == "length")]


def broken(prompts, completions, completion_ids, **columns):
    raise OSError("no such compiler")


def late_crash(prompts, completions, completion_ids, **columns):
    """Nothing wrong while completions are short, as those of the trial are."""
    if len(completion_ids[0]) >= 3:
        segfault()
    return [1.0]
