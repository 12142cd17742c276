"""warden.py - the process inside the sandbox that starts the programs of a model, one test each.

Its source is handed to a bare interpreter (python -sSP -c); sandbox.py, outside, talks to it through
standard input and output in frames: four bytes of length, then the body.

    in      the settings, a Python literal             out   a description of what holds the programs
    in      request: one letter, then what it needs    out   exit code (4 bytes, signed), 1 where the
                                                             output was over its limit, the output
    b"c"    compile the program (C, C++)                     what the compiler says
    b"s"    run it with the rest as standard input           its standard output
    b"f"    call (name, args, kwargs), a literal             b"=" and JSON of the value; b"!" and JSON of
                                                             the exception, as _raised says; or b"?" and
                                                             why there is neither, as text
    b"t"    run the rest, tests, as _test says               its own frames come first

Every program runs in a child of its own, forked here, that gives up its user, its rights and its files
before it reads a line of the program. What comes out of a child is bytes, which the warden neither
reads nor believes; how it ended is what the kernel says. The child is the program's: it may change all
that it finds there, and has its own inputs alone to find.

What leaves a call is JSON, of plain values only: {"t": [...]} is a tuple, "s" a set, "d" a dict's pairs,
"i" an int in hex, "f" nan or inf, "b" bytes in hex, "c" the parts of a complex number.

No json, no re, nothing that takes long to import. Knows nothing about right answers.
"""

import builtins
import ctypes
import os
import resource
import select
import sys

from _signal import SIG_DFL, SIGKILL, SIGPIPE, signal  # the module signal takes 5 ms to import

RESULT = 3              # a child's file descriptor for results; a tester's for answers
_READ_AND_RUN = 0b1101  # Landlock: execute, read_file, read_dir
_WRITE = 1 << 1 | 1 << 5 | 1 << 8 | 1 << 14  # write_file, remove_file, make_reg, truncate
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 1, 4, 22, 38, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446


def read_frame(fd):
    """The next frame; None at the end."""
    head = _read(fd, 4)
    return None if len(head) < 4 else _read(fd, int.from_bytes(head, "big"))


def _read(fd, size):
    data = bytearray()
    while len(data) < size and (piece := os.read(fd, min(size - len(data), 1 << 20))):
        data += piece
    return bytes(data)


def write_frame(fd, body):
    """Send a frame."""
    write_all(fd, len(body).to_bytes(4, "big") + body)


def write_all(fd, data):
    """os.write until all is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


# ---- what holds a program -----------------------------------------------------------------------

class _Jail:
    """The walls between a child and the rest. settings: uid (None: as it is), paths that may be read,
    work (None, or the folder that a compiler may write), filters (profile -> BPF), and limits; walls:
    False at the level "none"."""

    def __init__(self, settings):
        self.settings = settings
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.landlock = 0
        if settings["walls"]:
            self.landlock = max(0, self.libc.syscall(_CREATE_RULESET, None, 0, 1))
            if settings["landlock"] and not self.landlock:
                raise OSError("Landlock: not in this kernel")

    def describe(self):
        """What the children are held by, for people."""
        if not self.settings["walls"]:
            return "no walls"
        return ", ".join(["seccomp", *([f"Landlock {self.landlock}"] * (self.landlock > 0)),
                          *(["its own user"] * (self.settings["uid"] is not None))])

    def enter(self, profile, keep, seconds):
        """Lock up this process for good; files from descriptor `keep` on are closed."""
        limits = self.settings["limits"]
        compiling = profile == "compile"
        bounds = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, int(seconds) + 1),
                  (resource.RLIMIT_AS, limits["compiler_memory" if compiling else "memory"]),
                  (resource.RLIMIT_FSIZE, limits["files"] if compiling else 0),
                  (resource.RLIMIT_STACK, 64 << 20), (resource.RLIMIT_NOFILE, 64)]
        if limits["threads"]:
            bounds.append((resource.RLIMIT_NPROC, limits["threads"]))
        for which, value in bounds:
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))
        if self.settings["walls"]:
            self._call("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if self.landlock:
                self._restrict_files(compiling)
            if (uid := self.settings["uid"]) is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
        parent = os.getppid()
        self._call("prctl", _SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        os.closerange(keep, 1 << 16)
        if self.settings["walls"]:
            self._call("prctl", _SET_DUMPABLE, 0, 0, 0, 0)
            code = self.settings["filters"][profile]
            memory = ctypes.create_string_buffer(code, len(code))
            program = (ctypes.c_uint64 * 2)(len(code) // 8, ctypes.addressof(memory))
            self._call("prctl", _SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)

    def _restrict_files(self, compiling):
        version = self.landlock
        rights = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
        attributes = (ctypes.c_uint64 * 3)(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
        size = 8 if version < 4 else 16 if version < 6 else 24
        ruleset = self._call("syscall", _CREATE_RULESET, ctypes.byref(attributes), size, 0)
        rules = dict.fromkeys(self.settings["paths"], _READ_AND_RUN)
        if work := self.settings["work"]:
            rules[work] = (_READ_AND_RUN | _WRITE * compiling) & rights
        for path, allowed in rules.items():
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                allowed &= 0b111  # what a file has: execute, write, read
            if path == "/dev/null":
                allowed |= 0b10
            rule = allowed.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
            self._call("syscall", _ADD_RULE, ruleset, 1, rule, 0)
            os.close(fd)
        self._call("syscall", _RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)

    def _call(self, name, *arguments):
        """A libc function; every integer as a long, as its variable arguments are read."""
        result = getattr(self.libc, name)(*(ctypes.c_long(int(one)) if isinstance(one, int) else one
                                            for one in arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
        return result


# ---- in the child -------------------------------------------------------------------------------

def _module(source, name, known=()):
    """The names that a program defines when it runs as the module `name`."""
    module = type(sys)(name)
    module.__dict__.update(known)
    builtins.exit = builtins.quit = sys.exit  # else brought by site, which is not loaded
    sys.modules[name] = module
    exec(compile(source, "program.py", "exec"), module.__dict__)
    return module.__dict__


def _call_function(source, request):
    name, arguments, keywords = literal(request)
    try:
        found = _module(source, "program")
        first, *rest = name.split(".")
        if first not in found:
            raise NameError(f"the program defines no {first}")
        function = found[first]
        for attribute in rest:  # of an instance, as in Solution.method
            function = getattr(function() if isinstance(function, type) else function, attribute)
        try:
            value = function(*arguments, **keywords)
        except Exception as error:
            answer = b"!" + _raised(error).encode("ascii")
        else:
            answer = b"=" + encode(value).encode("ascii")
    except BaseException as error:  # of the program's own text, of its end, of a value that is not plain
        answer = b"?" + _words(error).encode("utf-8", "replace")
    write_all(RESULT, answer)
    os._exit(0)


def _raised(error):
    """JSON of [name of the nearest of Python's own exceptions, arguments, in words]."""
    kind = next(one.__name__ for one in type(error).__mro__ if one.__module__ == "builtins")
    try:
        return encode([kind, list(error.args), _words(error)])
    except TypeError:  # an argument that is not plain
        return encode([kind, [str(error)], _words(error)])


def _words(error):
    return f"{type(error).__name__}: {error}"[:200]


def _run_program(source):
    """As `python program.py`: with what is done at its end."""
    status = 0
    try:
        _module(source, "__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        status = 1
    try:
        if threading := sys.modules.get("threading"):
            threading._shutdown()
        if atexit := sys.modules.get("atexit"):
            atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        status = 1
    os._exit(status & 255)


def _test(request, calls_in=RESULT, calls_out=RESULT + 1):
    """Run tests whose functions are elsewhere. request: (source, names) as a literal; Class.method is
    called as Class().method. A call of one of the names is a frame b"call " and JSON of [name, args,
    kwargs]; its answer is b"=" and a literal, or b"!" and what _raised says, as a literal. Ends with
    b"right", b"wrong <why>" or, where these are no tests of any program, b"error <why>". Until a call
    has been answered nothing of the program is here, so that all that goes wrong is the tests' own
    fault; after that it may be the program's."""
    source, names = literal(request)
    answered = False

    class NotPlain(Exception):
        pass

    def proxy(name):
        def call(*arguments, **keywords):
            nonlocal answered
            try:
                text = encode([name, list(arguments), keywords])
            except TypeError as error:
                raise NotPlain(f"{name}: {error}") from None
            write_frame(calls_out, b"call " + text.encode("ascii"))
            answer = read_frame(calls_in)
            if answer is None:
                os._exit(1)
            answered = True  # whatever it holds: too much of it for this process is the program's fault
            value = literal(answer[1:])
            if answer[:1] == b"!":
                raise _as_raised(*value)
            return value
        return call

    known = {}
    for name in names:
        first, _, method = name.partition(".")
        if method:
            setattr(known.setdefault(first, type(first, (), {})), method, staticmethod(proxy(name)))
        else:
            known[name] = proxy(name)
    try:
        _module(source, "tests", known)
        outcome = "right" if answered or not names else f"error calls none of {', '.join(names)}"
    except NotPlain as error:
        outcome = f"error {error}"
    except BaseException as error:
        outcome = f"{'wrong' if answered else 'error'} {_words(error)}"
    write_frame(calls_out, outcome.encode("utf-8", "replace"))
    os._exit(0)


def _as_raised(kind, arguments, words):
    """An exception to raise in the tests in place of the program's. None that ends a loop in silence:
    all(map(check, cases)) is true where the first check raises StopIteration."""
    made = getattr(builtins, kind, None)
    if isinstance(made, type) and issubclass(made, Exception) \
            and not issubclass(made, (StopIteration, StopAsyncIteration)):
        try:
            return made(*arguments)
        except Exception:  # other arguments than this class takes
            pass
    return RuntimeError(words)


def literal(data):
    """The value of a Python literal that plain_values.render wrote."""
    return eval(data.decode("utf-8", "surrogatepass"),
                {"__builtins__": {"set": set, "complex": complex, "inf": float("inf"), "nan": float("nan")}})


def encode(value):
    """ASCII JSON of a plain value, as the head of the file says. TypeError for any other."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _quoted(str.__str__(value))
    if isinstance(value, int):
        number = int.__index__(value)
        return int.__repr__(number) if abs(number) < 1 << 53 else f'{{"i": "{number:x}"}}'
    if isinstance(value, float):
        number = float.__float__(value)
        return float.__repr__(number) if number - number == 0 else f'{{"f": "{number}"}}'
    if isinstance(value, list):
        return f"[{', '.join(map(encode, list.__iter__(value)))}]"
    if isinstance(value, tuple):
        return f'{{"t": [{", ".join(map(encode, tuple.__iter__(value)))}]}}'
    if isinstance(value, (set, frozenset)):
        return f'{{"s": [{", ".join(map(encode, value))}]}}'
    if isinstance(value, dict):
        pairs = ", ".join(f"[{encode(key)}, {encode(one)}]" for key, one in dict.items(value))
        return f'{{"d": [{pairs}]}}'
    if isinstance(value, (bytes, bytearray)):
        return f'{{"b": "{value.hex()}"}}'
    if isinstance(value, complex):
        return f'{{"c": [{encode(value.real)}, {encode(value.imag)}]}}'
    raise TypeError(f"{type(value).__name__} is no plain value")


def _quoted(text):
    pieces = []
    for one in text:
        code = ord(one)
        if one in '"\\':
            pieces.append("\\" + one)
        elif 32 <= code < 127:
            pieces.append(one)
        elif code < 0x10000:
            pieces.append(f"\\u{code:04x}")
        else:
            pieces.append(f"\\u{0xD7C0 + (code >> 10):04x}\\u{0xDC00 | code & 0x3FF:04x}")
    return f'"{"".join(pieces)}"'


# ---- outside the child --------------------------------------------------------------------------

class _Warden:
    """Starts a child for a request and reports what became of it."""

    def __init__(self, settings, requests, replies, null):
        self.settings, self.jail = settings, _Jail(settings)
        self.requests, self.replies, self.null = requests, replies, null
        self.program = settings["program"]
        self.binary = None
        if settings["compiler"]:
            self.binary = os.path.join(settings["work"], "program")
            source = os.path.join(settings["work"], settings["source_name"])
            with open(source, "wb") as file:
                file.write(self.program)
            self.compiler = [*settings["compiler"], "-o", self.binary, source, *settings["libraries"]]
            if settings["uid"] is not None:
                os.chown(settings["work"], settings["uid"], settings["uid"])

    def serve(self, request):
        kind, body = request[:1], request[1:]
        out, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._become(kind, body, end)
            except BaseException as error:
                write_all(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(126)
        os.close(end)
        code, over, output = self._watch(pid, out, kind)
        if kind == b"c" and self.settings["uid"] is not None:
            for path in (self.settings["work"], self.binary):
                if os.path.exists(path):
                    os.chown(path, 0, 0)
        write_frame(self.replies, code.to_bytes(4, "big", signed=True) + bytes([over]) + output)

    def _become(self, kind, body, end):
        """The child: never returns."""
        seconds = self.settings["limits"]["seconds"]
        os.dup2(self.null, 0)
        if kind == b"t":
            os.dup2(self.requests, 9), os.dup2(self.replies, 10)
            os.dup2(9, RESULT), os.dup2(10, RESULT + 1)
            keep, profile = RESULT + 2, "python"
        elif kind == b"f":
            os.dup2(end, RESULT)
            os.dup2(self.null, 1)
            keep, profile = RESULT + 1, "python"
        else:
            if kind == b"s":
                given = os.memfd_create("input")
                write_all(given, body)
                os.lseek(given, 0, os.SEEK_SET)
                os.dup2(given, 0)
            os.dup2(end, 1)
            keep, profile = 3, "binary" if self.binary else "python"
            if kind == b"c":
                profile, seconds = "compile", self.settings["limits"]["compile_seconds"]
        os.dup2(1 if kind == b"c" else self.null, 2)
        self.jail.enter(profile, keep, seconds)
        if kind == b"t":
            _test(body)
        if kind == b"f":
            _call_function(self.program, body)
        if self.binary is None:
            _run_program(self.program)
        signal(SIGPIPE, SIG_DFL)
        command = self.compiler if kind == b"c" else [self.binary]
        os.execve(command[0], command, {"PATH": "/usr/bin:/bin", "TMPDIR": self.settings["work"]})

    def _watch(self, pid, out, kind):
        """(exit code, over its limit, output) of a child. Where the other side has gone meanwhile, the
        child is killed and the warden ends: a deadline is over."""
        limit = self.settings["limits"]["output"]
        output, over, ended = bytearray(), False, False
        child = os.pidfd_open(pid)
        os.set_blocking(out, False)
        poll = select.poll()
        poll.register(out, select.POLLIN)
        poll.register(child, select.POLLIN)
        poll.register(self.requests, 0 if kind == b"t" else select.POLLIN)  # 0: its end alone
        while not ended:
            ready = {fd for fd, _ in poll.poll()}
            if self.requests in ready:
                os.kill(pid, SIGKILL)
                os.waitpid(pid, 0)
                os._exit(0)
            ended = child in ready  # all that it wrote is in the pipe by now
            if out in ready and not self._receive(out, output, limit):
                poll.unregister(out)
                over = len(output) > limit
                if over and not ended:
                    os.kill(pid, SIGKILL)
        status = os.waitpid(pid, 0)[1]
        os.close(out)
        os.close(child)
        return os.waitstatus_to_exitcode(status), over, bytes(output[:limit])

    @staticmethod
    def _receive(out, output, limit):
        """Add what there is; False at the end, and above the limit."""
        try:
            while len(output) <= limit:
                if not (piece := os.read(out, 1 << 16)):
                    return False
                output += piece
        except BlockingIOError:
            return True
        return False


def main():
    requests, replies = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    warden = _Warden(literal(read_frame(requests)), requests, replies, null)
    write_frame(replies, warden.jail.describe().encode())
    while (request := read_frame(requests)) is not None:
        warden.serve(request)


if __name__ == "__main__":
    main()
