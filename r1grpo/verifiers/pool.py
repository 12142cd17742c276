"""pool.py - the worker pool: what may hang, crash or answer nonsense runs in processes of its own.

    with VerifierPool(workers=2, deadline=5.0) as pool:
        tickets = [pool.submit("r1grpo.verifiers:verify_answer", text, gold) for text, gold in pairs]
        verdicts = [pool.result(ticket) for ticket in tickets]

submit returns at once; result waits for its own item alone (in asyncio: await
asyncio.to_thread(pool.result, ticket)). An item is the import name of a function, "package.module:name"
or "/folder/file.py:name", and arguments of plain data: numbers, text, None, lists, dicts with text as
keys. It travels as JSON, never as pickle. The result is what the function returned, a Verdict or plain data;
where it returned nothing of the kind, a Verdict whose reason is

    timeout     no result before its deadline, or more CPU time than that
    crash       the process died, or sent what is no reply
    error       the function raised an exception, could not be imported, or returned something else

A result depends on its item alone: not on the order, the number of workers, or what became of others.

- A worker is a new interpreter (worker.py), never a fork: a fork of a process with threads may hang. It
  gets its parent's sys.path and current folder, and of the environment KEPT and nothing else.
- It has one item at a time. The deadline, in seconds of the clock, runs from when a worker that has the
  function is given the item. Then the parent ends the worker, by SIGKILL to the process and to all that
  it started, and begins another. So it does after every failure, and after `tasks` items.
- Address space (`memory`, bytes), CPU time and the size of a reply are limited; there are no core dumps;
  standard output and error lead nowhere.
- When the parent dies, by SIGKILL too, the kernel kills its workers (Linux).

Verifiers are trusted code, to which what a model wrote is data. A program that a model wrote belongs
into a sandbox, which a worker may start. Ctrl-C in a wait leaves the pool as it is; the end of the with
block, close() and the end of the object end its processes. After close() a submit begins anew.

While there is work, a thread hands out items and watches deadlines. Knows nothing about models, rewards
or answers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .verdict import Verdict

__all__ = ["VerifierPool", "import_name"]

START_SECONDS = 120.0  # for a worker to begin, and for the import of a function
START_ATTEMPTS = 3     # workers in a row that may fail to begin
MAX_REPLY = 1 << 20    # bytes, as in worker.py
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
PLAIN = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0",  # the order of a set is the same in every worker
         "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
MARK = "R1GRPO_WORKER"  # in the environment of a worker and of all that it starts
_WAITING = object()


class VerifierPool:
    """workers: processes at a time; they start when there are items. deadline: seconds of an item.
    memory: bytes of address space of a worker. tasks: items after which a worker is replaced."""

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory: int = 2 << 30,
                 tasks: int = 1000) -> None:
        for name, value in (("workers", workers), ("memory", memory), ("tasks", tasks)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"VerifierPool: {name} must be a whole number above 0, not {value!r}")
        self.workers, self.memory, self.tasks = workers, memory, tasks
        self.deadline = _seconds(deadline)
        self._pid = os.getpid()
        self._tickets = itertools.count()
        self._processes: list[_Worker] = []  # the thread's, while it runs
        self._failed_starts = 0  # in a row
        weakref.finalize(self, _end_all, self._processes, self._pid)
        self._changed = threading.Condition()  # guards what follows
        self._queue: deque[_Item] = deque()
        self._results: dict[int, Any] = {}  # by ticket: _WAITING, or the result until it is taken
        self._thread: threading.Thread | None = None  # runs while there is work
        self._wake = -1  # writing end of the pipe that ends the thread's wait
        self._closing = False

    def submit(self, function: str, *args: Any, deadline: float | None = None, **kwargs: Any) -> int:
        """Have function(*args, **kwargs) called; the ticket of its result. deadline: seconds for this
        item, if not the pool's. TypeError or ValueError where an argument is not plain data."""
        if os.getpid() != self._pid:
            raise RuntimeError("a VerifierPool belongs to the process that made it")
        if not isinstance(function, str) or not all(function.rpartition(":")):
            raise ValueError(f"a function is given as 'package.module:name', not {function!r}")
        seconds = self.deadline if deadline is None else _seconds(deadline)
        ticket = next(self._tickets)
        item = _Item(ticket, function, seconds, _message({
            "id": ticket, "function": function, "args": args, "kwargs": kwargs, "cpu": seconds + 1.0}))
        with self._changed:
            self._results[ticket] = _WAITING
            self._queue.append(item)
            if self._thread is None:
                self._begin()
            else:
                self._nudge()
        return ticket

    def result(self, ticket: int) -> Any:
        """What became of an item; waits for it. It can be taken once."""
        with self._changed:
            while self._results.get(ticket) is _WAITING:
                self._changed.wait()
            if ticket not in self._results:
                raise KeyError(f"ticket {ticket}: its result was taken before, or the pool was closed")
            result = self._results.pop(ticket)
        if isinstance(result, BaseException):
            raise ChildProcessError(f"the pool cannot work: {result}") from result
        return result

    def close(self) -> None:
        """Forget every item and end every process; they are gone when this returns."""
        with self._changed:
            self._queue.clear()
            self._results.clear()
            self._changed.notify_all()
            thread = self._thread
            if thread is not None:
                self._closing = True
                self._nudge()
        if thread is not None:
            thread.join()
        _end_all(self._processes, self._pid)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the thread ----

    def _begin(self) -> None:
        look, self._wake = os.pipe()
        for fd in (look, self._wake):
            os.set_blocking(fd, False)
        thread = threading.Thread(target=self._work, args=(look,), daemon=True, name="VerifierPool")
        thread.start()
        self._thread = thread

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of nudges
            os.write(self._wake, b"x")

    def _work(self, look: int) -> None:
        try:
            while self._hand_out():
                self._serve(look)
        except BaseException as error:  # no more processes, files or memory
            _end_all(self._processes, self._pid)
            with self._changed:
                self._queue.clear()
                for ticket, result in self._results.items():
                    if result is _WAITING:
                        self._results[ticket] = error
                self._over()
                self._changed.notify_all()
        os.close(look)

    def _hand_out(self) -> bool:
        """Give items to free workers; False, and the thread is over, where there is no work."""
        with self._changed:
            for one in [one for one in self._processes if self._queue and not one.item]:
                one.step()  # it may have died since
            self._processes[:] = [one for one in self._processes if not one.ended]
            free = [one for one in self._processes if not one.item]
            while self._queue and not self._closing and (free or len(self._processes) < self.workers):
                if not free:
                    free.append(_Worker(self.memory, self.tasks))
                    self._processes.append(free[-1])
                free.pop().take(self._queue.popleft())
            if any(one.item for one in self._processes) and not self._closing:
                return True
            self._over()
            return False

    def _over(self) -> None:
        self._thread, self._closing = None, False
        os.close(self._wake)

    def _serve(self, look: int) -> None:
        """Wait until a worker can go on, a deadline is over or there is something new; go on."""
        poll = select.poll()
        poll.register(look, select.POLLIN)
        for worker in self._processes:
            worker.register(poll)
        soonest = min(one.until for one in self._processes if one.item)
        poll.poll(max(0, math.ceil(1000 * (soonest - time.monotonic()))))
        with contextlib.suppress(BlockingIOError):
            os.read(look, 4096)
        for worker in list(self._processes):
            item, result = worker.item, worker.step()
            if worker.ended:
                self._processes.remove(worker)
            self._failed_starts = 0 if worker.ready else self._failed_starts + worker.ended
            if self._failed_starts == START_ATTEMPTS:
                self._failed_starts = 0
                raise ChildProcessError(f"{START_ATTEMPTS} workers in a row did not begin, the last "
                                        f"with {worker.how_it_ended()}")
            with self._changed:
                if not item or item.ticket not in self._results:
                    continue
                if worker.ended and not worker.ready:
                    self._queue.appendleft(item)
                elif result is not _WAITING:
                    self._results[item.ticket] = result
                    self._changed.notify_all()


class _Item(NamedTuple):
    """One call: its ticket, the function's import name, the seconds it may take, and the request."""

    ticket: int
    function: str
    deadline: float
    request: bytes


class _Worker:
    """One process, its pipes, and the item that it works at. until: on the clock of time.monotonic."""

    def __init__(self, memory: int, tasks: int) -> None:
        self.item: _Item | None = None
        self.until = math.inf
        self.ready = self.ended = False
        self._left = tasks
        self._functions: set[str] = set()  # that the process has imported
        self._inbox = bytearray()
        self._outbox = bytearray(_message({"path": sys.path, "memory": memory}))
        self._mark = f"{MARK}={os.getpid()}.{os.urandom(8).hex()}"
        request, self._request = os.pipe()
        self._reply, reply = os.pipe()
        life, self._life = os.pipe()
        theirs = (request, reply, life)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", Path(__file__).with_name("worker.py"), *map(str, theirs)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=theirs,
                start_new_session=True, env={**environment, **PLAIN, **dict([self._mark.split("=")])})
            # a child that it leaves behind holds its pipes open: their end is not the end of it
            self._exit = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else -1
        except BaseException:
            for fd in (self._request, self._reply, self._life):
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        os.set_blocking(self._request, False)
        os.set_blocking(self._reply, False)

    def take(self, item: _Item) -> None:
        """Begin an item."""
        self.item = item
        known = self.ready and item.function in self._functions
        self.until = time.monotonic() + (item.deadline if known else START_SECONDS)
        self._outbox += item.request
        self._send()

    def register(self, poll: select.poll) -> None:
        """What this worker waits for."""
        for fd in (self._reply, self._exit):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        if self._outbox:
            poll.register(self._request, select.POLLOUT)

    def step(self) -> Any:
        """Go on with the item: its result, or _WAITING. Ends the process where it is of no more use."""
        result, clean, alive = _WAITING, True, True
        try:
            self._send()
            alive = self._runs()
            alive = self._receive() and alive  # what it said before it died counts
            for message in self._messages():
                if "ready" in message:
                    self.ready = True
                elif self.item is None or message["id"] != self.item.ticket:
                    raise ValueError("a reply without a request")
                elif "loaded" in message:
                    self._functions.add(self.item.function)
                    self.until = time.monotonic() + self.item.deadline
                elif "error" in message:
                    result = Verdict(False, "error", str(message["error"]))
                else:
                    result, clean = message["value"], message["clean"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            result = Verdict(False, "crash", f"sent what is no reply: {error}")
        if self.item and result is _WAITING:
            if not alive:
                self.end()
                over = self._process.returncode == -signal.SIGXCPU
                result = Verdict(False, "timeout" if over else "crash", self.how_it_ended())
            elif time.monotonic() >= self.until:
                result = Verdict(False, "timeout", f"no result in {self.item.deadline:g} s")
        if result is not _WAITING:
            self.item, self.until = None, math.inf
            self._left -= 1
        failed = isinstance(result, Verdict) and result.failed
        if failed or not (clean and alive and self._left):
            self.end()
        return result

    def _send(self) -> None:
        try:
            while self._outbox:
                del self._outbox[:os.write(self._request, self._outbox)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._outbox.clear()  # it has died, which its other pipe tells

    def _runs(self) -> bool:
        return self._exit < 0 or os.waitid(os.P_PIDFD, self._exit, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def _receive(self) -> bool:
        """Read what there is; False at the end of the pipe."""
        try:
            data = os.read(self._reply, 1 << 16)
        except BlockingIOError:
            return True
        self._inbox += data
        return bool(data)

    def _messages(self) -> Iterator[dict[str, Any]]:
        while len(self._inbox) >= 4:
            size = int.from_bytes(self._inbox[:4], "big")
            if size > MAX_REPLY:
                raise ValueError(f"{size} bytes")
            if len(self._inbox) < 4 + size:
                return
            body = bytes(self._inbox[4:4 + size])
            del self._inbox[:4 + size]
            yield json.loads(body, object_hook=_verdict)

    def end(self) -> None:
        """SIGKILL to the process and to all that it started; nothing is left when this returns."""
        if self.ended:
            return
        self.ended = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
        self._process.wait()
        _kill_marked(self._mark.encode())
        for fd in (self._request, self._reply, self._life, self._exit):
            if fd >= 0:
                os.close(fd)

    def how_it_ended(self) -> str:
        """'signal SIGSEGV' or 'exit status 3'."""
        code = self._process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def import_name(function: Callable[..., Any]) -> str:
    """The name by which a worker finds a function: 'package.module:name'. ValueError for one that has
    none: a lambda, one that stands inside another, or in a script or notebook itself."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or module == "__main__" or not name or "<" in name:
        raise ValueError(f"{getattr(function, '__name__', function)!r} cannot be imported by a worker "
                         f"process: put it at the top level of a file of its own, and import it from there")
    return f"{module}:{name}"


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e6:
        raise ValueError(f"a deadline is a number of seconds above 0, not {value!r}")
    return float(value)


def _message(content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    return len(body).to_bytes(4, "big") + body


def _verdict(found: dict[str, Any]) -> Any:
    """JSON's dict, or the Verdict that worker.py wrote as one."""
    if found.keys() != {"__verdict__"}:
        return found
    correct, reason, detail, share = found["__verdict__"]
    if not (isinstance(correct, bool) and isinstance(reason, str) and isinstance(detail, str)
            and (share is None or isinstance(share, float))):
        raise ValueError(f"a Verdict of {found['__verdict__']!r}"[:200])
    return Verdict(correct, reason, detail, share)


def _end_all(workers: list[_Worker], pid: int) -> None:
    if os.getpid() == pid:  # not in a fork of the parent
        while workers:
            workers.pop().end()


def _kill_marked(mark: bytes) -> None:
    """SIGKILL to every process with this mark in its environment. The group of a worker does not hold
    one that made a group of its own, nor does its family tree one whose parent is gone."""
    until = time.monotonic() + 1.0
    while (found := _marked(mark)) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _marked(mark: bytes) -> list[int]:
    found = []
    with contextlib.suppress(FileNotFoundError):  # a system without /proc
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                    if mark in file.read().split(b"\0"):
                        found.append(int(name))
    return found
