"""worker.py - the other end of pool.py: a process that calls one function at a time.

    worker.py REQUEST REPLY LIFE            numbers of inherited pipes

Messages are JSON behind its length in four bytes. Requests: first {"path", "memory"}, then items {"id",
"function", "args", "kwargs", "cpu"}. Replies: {"ready": true}; {"id", "loaded": true} once a function
that is new here has been imported, since an import has another deadline than an item; {"id", "value",
"clean"} or {"id", "error"}; clean: no process is left that the function started.

What is judged cannot write to these pipes by accident: they are closed in every program that a function
starts, and standard output and error lead nowhere. LIFE never carries a byte. Its other end is open as
long as the parent lives and wants this process; when it closes, the kernel kills the process and its
group, whatever it is doing (fcntl(2), F_SETOWN and F_SETSIG; where there is no F_SETSIG, the end of the
requests ends an idle worker). Runs as a program: nothing imports it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

MAX_REPLY = 1 << 20  # bytes
MAX_ERROR = 500      # characters


def main(request: int, reply: int, life: int) -> None:
    for fd in (request, reply, life):
        os.set_inheritable(fd, False)
    die_with(life)
    hello = receive(request)
    if hello is None:
        return
    sys.path[:] = hello["path"]
    limit(resource.RLIMIT_AS, hello["memory"])
    limit(resource.RLIMIT_CORE, 0)
    send(reply, encode({"ready": True}))
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # until here the interpreter's own complaints could be seen
    functions: dict[str, Callable[..., Any]] = {}
    own = os.getpid()
    while (item := receive(request)) is not None:
        body = answer(item, functions, lambda n=item["id"]: send(reply, encode({"id": n, "loaded": True})))
        if os.getpid() != own:
            os._exit(0)  # a fork that the function left behind must not answer too
        send(reply, body)


def die_with(life: int) -> None:
    """SIGKILL for this process and its group when the other end of the pipe is closed."""
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


def answer(item: dict[str, Any], functions: dict[str, Callable[..., Any]],
           loaded: Callable[[], None]) -> bytes:
    """The reply to an item; calls loaded() where its function had to be imported."""
    name = item["function"]
    try:
        if name not in functions:
            functions[name] = load(name)
            loaded()
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + item["cpu"]))
        value = functions[name](*item["args"], **item["kwargs"])
        body = encode({"id": item["id"], "value": value, "clean": childless()})
        if len(body) <= MAX_REPLY:
            return body
        error = f"returned {len(body)} bytes, at most {MAX_REPLY} are read"
    except BaseException as raised:  # SystemExit and KeyboardInterrupt are a function's faults too
        error = type(raised).__name__
        with contextlib.suppress(BaseException):
            error = f"{error}: {raised}"[:MAX_ERROR]
    return encode({"id": item["id"], "error": error})


def load(name: str) -> Callable[..., Any]:
    """The function of an import name, "package.module:name" or "/folder/file.py:name"."""
    module, _, attribute = name.rpartition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(f"r1grpo_worker_{len(sys.modules)}", module)
        found: Any = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found
        spec.loader.exec_module(found)
    else:
        found = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} cannot be called")
    return found


def plain(value: Any) -> Any:
    """As JSON what json does not know: a Verdict; NumPy's numbers and arrays."""
    from r1grpo.verifiers.verdict import Verdict

    if isinstance(value, Verdict):
        return {"__verdict__": [value.correct, value.reason, value.detail, value.share]}
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"returned {type(value).__name__}; a result is a Verdict or plain data")


def limit(kind: int, most: int) -> None:
    """Set the soft limit of a resource, within the hard one."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def childless() -> bool:
    """No process that was started here is left; those that have ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def receive(fd: int) -> Any:
    """The next message; None at the end of the pipe."""
    head = read(fd, 4)
    body = head and read(fd, int.from_bytes(head, "big"))
    return json.loads(body) if body else None


def read(fd: int, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, default=plain).encode()


def send(fd: int, body: bytes) -> None:
    data = memoryview(len(body).to_bytes(4, "big") + body)
    while data:
        data = data[os.write(fd, data):]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
