"""VerifierPool: whatever a function does, every other result is right and nothing is left behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import judges
import pytest

from r1grpo.verifiers import Verdict, VerifierPool, pool as pool_module
from r1grpo.verifiers.pool import import_name
from r1grpo.verifiers.sandbox import try_level

FAULTS = {  # what a function does: the reason, and a word of the detail
    "hang": ("timeout", "no result in 0.3 s"), "spin": ("timeout", ""), "out_of_cpu_time": ("timeout", "SIGXCPU"),
    "ignore_signals": ("timeout", ""), "segfault": ("crash", "SIGSEGV"),
    "exhaust": ("error", "MemoryError"), "recurse": ("error", "RecursionError"),
    "raise_exit": ("error", "SystemExit: 0"), "raise_interrupt": ("error", "KeyboardInterrupt"),
    "raise_unshowable": ("error", "Unshowable"), "much": ("error", "at most"),
    "deep": ("error", "RecursionError"), "big_integer": ("error", "ValueError"),
    "write_to_pipes": ("crash", "no reply"), "missing": ("error", "AttributeError")}

WORKER = b"verifiers/worker.py"


def children() -> list[tuple[int, str]]:
    """(number, state) of the processes that this one has started, zombies too."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                after = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(after[1]) == os.getpid():
                found.append((int(name), after[0]))
    return found


def alive(number: int) -> bool:
    """Whether a process runs; one that nobody has reaped does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(number: int, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while alive(number) and time.monotonic() < until:
        time.sleep(0.01)
    return not alive(number)


def processes(*words: bytes) -> set[int]:
    """Every process whose command has one of these words in it."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        found |= {int(name)} if any(word in command for word in words) else set()
    return found


@pytest.fixture
def nothing_left():
    before, files = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() == before
    until = time.monotonic() + 10.0  # the pool's thread closes its pipe after its work is told to be over
    while len(os.listdir("/proc/self/fd")) != files and time.monotonic() < until:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == files


def test_results_are_those_of_a_call(nothing_left):
    pairs = [(str(i % 4), str(i % 3)) for i in range(60)]
    with VerifierPool(workers=3) as pool:
        tickets = [pool.submit("judges:same", text, gold=gold) for text, gold in pairs]
        found = [pool.result(ticket) for ticket in reversed(tickets)][::-1]
        assert found == [judges.same(*pair) for pair in pairs]
        assert [one.detail for one in found] == [judges.same(*pair).detail for pair in pairs]
        text = "\ud800 \0 \u2028 " + "x" * 3_000_000  # longer than a pipe holds
        assert pool.result(pool.submit("builtins:len", text)) == len(text)
        half, three, array, yes, nothing, nan = pool.result(pool.submit("judges:numbers"))
        assert (half, three, array, yes, nothing) == (0.5, 3, [1.0, 2.0], True, None) and nan != nan


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_a_verdict_and_the_pool_goes_on(name, nothing_left):
    reason, word = FAULTS[name]
    with VerifierPool(workers=1, deadline=0.3, memory=1 << 30) as pool:
        first = pool.submit(f"judges:{name}")
        second = pool.submit("judges:same", "a", "a")
        found = pool.result(first)
        assert (found.correct, found.reason) == (False, reason) and word in found.detail
        assert pool.result(second) == Verdict(True, "correct")


def test_output_leads_nowhere(nothing_left, capfd):
    with VerifierPool(workers=1, deadline=60.0) as pool:
        assert pool.result(pool.submit("judges:flood")) is True
    assert capfd.readouterr() == ("", "")


def test_200_hanging_items_leave_nothing(nothing_left):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with VerifierPool(workers=2, deadline=0.01) as pool:
        sizes = []
        for _ in range(4):
            tickets = [pool.submit("time:sleep", 600) for _ in range(50)]
            assert {pool.result(ticket).reason for ticket in tickets} == {"timeout"}
            sizes.append(resident())
            assert len(children()) <= 2 and all(state != "Z" for _, state in children())
        assert sizes[-1] - sizes[0] < 1 << 20
        assert pool.result(pool.submit("judges:same", "a", "b", deadline=60.0)).reason == "wrong"


def test_a_poisoned_item_changes_no_other_verdict(nothing_left, tmp_path):
    poison = [("hang",), ("segfault",), ("raise_exit",), ("exhaust",), ("fork_and_return",),
              ("write_to_pipes",), ("leave_child_and_crash", str(tmp_path / "n"))]
    honest = [("same", str(i % 5), "3") for i in range(40)]
    want = {item: judges.same(*item[1:]) for item in honest}
    for order, workers in ((0, 1), (1, 2), (2, 3)):
        items = random.Random(order).sample(poison + honest, len(poison + honest))
        with VerifierPool(workers=workers, deadline=0.5, memory=1 << 30) as pool:
            tickets = [pool.submit(f"judges:{name}", *rest) for name, *rest in items]
            found = dict(zip(items, map(pool.result, tickets)))
        assert {item: found[item] for item in honest} == want
        assert all(found[item].failed for item in poison if item != ("fork_and_return",))


def test_a_worker_killed_by_an_outsider(nothing_left, tmp_path):
    with VerifierPool(workers=1, deadline=60.0) as pool:
        hanging = pool.submit("judges:hang", str(tmp_path / "number"))
        while not ((tmp_path / "number").exists() and (tmp_path / "number").read_text()):
            time.sleep(0.01)
        os.kill(int((tmp_path / "number").read_text()), signal.SIGKILL)  # at work
        assert pool.result(hanging) == Verdict(False, "crash")
        number = pool.result(pool.submit("judges:own_number"))
        os.kill(number, signal.SIGKILL)  # idle
        assert gone(number)
        assert pool.result(pool.submit("judges:same", "a", "a")) == Verdict(True, "correct")


@pytest.mark.parametrize("how", ["child", "daemon", "crash"])
def test_what_a_function_leaves_behind_is_ended(how, nothing_left, tmp_path):
    """A daemon is no child any more: it ends with its worker at the latest."""
    where = tmp_path / "number"
    with VerifierPool(workers=1) as pool:
        if how == "crash":
            assert pool.result(pool.submit("judges:leave_child_and_crash", str(where))).reason == "crash"
        else:
            assert pool.result(pool.submit("judges:leave_child", str(where), own_session=how == "daemon"))
        if how != "daemon":
            assert gone(int(where.read_text()))
    assert gone(int(where.read_text()), 0.5)


def test_only_the_worker_itself_answers(nothing_left):
    """A fork that came back from the call is there, for a while; it says nothing."""
    with VerifierPool(workers=1) as pool:
        assert {pool.result(pool.submit("judges:fork_and_return")) for _ in range(20)} == {False}


@pytest.mark.parametrize("level", ["full", "restricted"])
def test_a_program_in_its_sandbox_ends_with_the_worker(level, nothing_left):
    found, works = try_level(level)
    if not works:
        pytest.skip(f"no sandbox level {level} on this machine: {found}")
    tests = [{"input": "1", "output": "2"}]
    with VerifierPool(workers=1, deadline=60.0) as pool:
        ask = "r1grpo.verifiers.code:verify_code"
        assert pool.result(pool.submit(ask, "print(int(input()) + 1)", tests, level=level)).correct
        before = processes(b"bwrap", b"warden")
        endless = pool.submit(ask, "while True: pass", tests, level=level, limits={"seconds": 50.0},
                              deadline=1.0)
        assert pool.result(endless) == Verdict(False, "timeout")
        assert all(map(gone, processes(b"bwrap", b"warden") - before))


def test_a_worker_is_replaced_after_its_tasks(nothing_left):
    with VerifierPool(workers=1, tasks=3) as pool:
        assert [pool.result(pool.submit("judges:calls")) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]
        assert pool.result(pool.submit("judges:raise_exit")).reason == "error"  # who knows what it left
        assert pool.result(pool.submit("judges:calls")) == 1


def test_what_a_worker_sees(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    with VerifierPool(workers=1) as pool:
        seen = pool.result(pool.submit("judges:surroundings"))
    with VerifierPool(workers=1) as pool:
        again = pool.result(pool.submit("judges:surroundings"))
    assert "SECRET_TOKEN" not in seen["env"] and "PATH" in seen["env"]
    assert seen["path"] == sys.path and seen["cwd"] == os.getcwd() and seen["stdin"] == ""
    assert seen["fds"] == 3 + 3 + 1  # standard, ours, and the listing itself
    assert seen["hash"] == again["hash"]


def test_limits():
    with VerifierPool(workers=1, memory=1 << 30, deadline=7.0) as pool:
        found = pool.result(pool.submit("judges:limits"))
        assert found["RLIMIT_AS"] == 1 << 30 and found["RLIMIT_CORE"] == 0
        assert 8 <= found["RLIMIT_CPU"] <= 10  # of the process, which has begun before the item
        assert pool.result(pool.submit("judges:limits", deadline=100.0))["RLIMIT_CPU"] >= 101


def test_an_import_has_no_part_in_the_deadline(tmp_path, monkeypatch):
    (tmp_path / "slowly.py").write_text("import time\ntime.sleep(0.5)\ndef go(): return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with VerifierPool(workers=1, deadline=0.25) as pool:
        assert pool.result(pool.submit("slowly:go")) == 1


def test_close_forgets_and_a_submit_begins_anew(nothing_left):
    pool = VerifierPool(workers=2)
    tickets = [pool.submit("judges:hang") for _ in range(5)]
    pool.close()
    with pytest.raises(KeyError, match="ticket 0: its result was taken before, or the pool was closed"):
        pool.result(tickets[0])
    assert pool.result(pool.submit("judges:same", "a", "a")).correct
    pool.close()
    pool.close()


def test_the_end_of_the_object_is_the_end_of_its_processes(nothing_left):
    pool = VerifierPool(workers=1)
    number = pool.result(pool.submit("judges:own_number"))
    for _ in range(100):  # its thread may not have ended yet
        if pool._thread is None:
            break
        time.sleep(0.01)
    del pool
    assert gone(number)


SCRIPT = """
import sys, time
sys.path[:0] = {path!r}
from r1grpo.verifiers import VerifierPool
with VerifierPool(workers=2, deadline=600.0) as pool:
    print(*[pool.result(pool.submit("judges:own_number")) for _ in range(1)], flush=True)
    tickets = [pool.submit("judges:ignore_signals"), pool.submit("judges:spin")]
    print("waiting", flush=True)
    try:
        pool.result(tickets[0])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(number):
    """Ctrl-C in a wait, and a parent that is killed without a word."""
    before = processes(WORKER)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(path=sys.path)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = int(process.stdout.readline())
    assert process.stdout.readline() == "waiting\n" and alive(first)
    while len(processes(WORKER) - before) < 2:
        time.sleep(0.01)
    started = processes(WORKER) - before
    time.sleep(0.1)  # they are at it
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert all(map(gone, started))
    if number == signal.SIGINT:
        assert out == "interrupted\n" and err.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode in (-number, 130)


def test_workers_that_cannot_begin_are_said_so(nothing_left, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with VerifierPool(workers=2) as pool, \
            pytest.raises(ChildProcessError, match="3 workers in a row did not begin, the last with exit status 1"):
        pool.result(pool.submit("judges:calls"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with VerifierPool(workers=2) as pool, pytest.raises(ChildProcessError, match="/nowhere/python"):
        pool.result(pool.submit("judges:calls"))


def test_bad_input():
    for options, word in (({"workers": 0}, "workers"), ({"workers": 1.5}, "workers"), ({"memory": 0}, "memory"),
                          ({"tasks": True}, "tasks"), ({"deadline": 0}, "deadline"),
                          ({"deadline": float("nan")}, "deadline")):
        with pytest.raises(ValueError, match=word):
            VerifierPool(**options)
    pool = VerifierPool()
    for name in ("judges", "judges:", ":same", judges.same, None):
        with pytest.raises(ValueError, match="package.module:name"):
            pool.submit(name)
    with pytest.raises(TypeError, match="not JSON serializable"):
        pool.submit("judges:same", object(), "a")
    with pytest.raises(ValueError, match="a deadline is"):
        pool.submit("judges:same", "a", "a", deadline=-1)
    with pytest.raises(KeyError, match="ticket 7"):
        pool.result(7)
    assert not pool._processes


def test_import_name():
    assert import_name(judges.same) == "judges:same"
    assert import_name(Verdict) == "r1grpo.verifiers.verdict:Verdict"

    def local():
        pass
    for one in (local, lambda: None):
        with pytest.raises(ValueError, match="put it at the top level of a file"):
            import_name(one)
    assert pool_module.MAX_REPLY == (1 << 20)
