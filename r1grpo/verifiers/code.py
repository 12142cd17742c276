"""code.py - whether a program does what its tests ask for: it is run, in the sandbox.

    verify_code(text, tests, level="full", language="python", partial=False) -> Verdict

    program   the last block in ``` fences after </think>, of this language or of none named; a text
              without fences is the program
    verdict   correct where every test passes. wrong, with the number of the test and what it did:
              another value, an exception, a signal, too much output, no end before its deadline.
              unparsed where there is no program, or it does not compile. error where the sandbox or the
              tests failed, and nothing is known about the program

A program that hangs or crashes is a wrong program, and its reward is 0: to leave it out of the baseline,
as a verdict of a verifier that hangs or crashes is (verdict.py), would make hanging better than being
wrong. After the first failure nothing more is run, unless partial=True, which gives the share of the
tests that pass: then a model learns to pass those whose answers it can see (arXiv 2501.12948 and others
take all or nothing).

Every test runs in a process of its own, forked from one sandbox per program; expected values stay here,
and here alone are answers compared (code_tests.py). Nothing that a program writes, and no way of ending,
is a sign of success. A program can still answer known tests by a table: keep tests hidden.

Total time is bounded: compiling, then limits.total_seconds. Knows nothing about rewards.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from ..brief import brief
from .code_tests import FunctionCall, InputOutput, Script, Test, read_tests
from .plain_values import decode, render
from .sandbox import LANGUAGES, Limits, Outcome, Sandbox, SandboxUnavailable, TimedOut, require_level
from .verdict import Verdict

_TAGS = {"python": ("python", "py", "python3"), "c": ("c",), "c++": ("c++", "cpp", "cc", "cxx")}
_FENCE = re.compile(r" {0,3}```+[ \t]*([^\s`]*)[^`]*")
MAX_PROGRAM = 1 << 18  # characters


def verify_code(program: str, tests: Sequence[Any], *, level: str = "full", language: str = "python",
                partial: bool = False, limits: Limits | Mapping[str, float] | None = None,
                accept_no_sandbox: bool = False, inside: bool = False) -> Verdict:
    """The verdict on a program, see the head of the file. inside: the text begins inside the thought.
    SandboxUnavailable where the machine lacks the level; ValueError for a language, tests or limits
    that are none."""
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is none of {', '.join(LANGUAGES)}")
    if isinstance(limits, Mapping):
        known = [one.name for one in fields(Limits)]
        if strange := [name for name in limits if name not in known]:
            raise ValueError(f"limit {strange[0]!r} is none of {', '.join(known)}")
        limits = Limits(**limits)
    wanted = read_tests(tests, language)
    require_level(level, accept_no_sandbox)
    source = extract_program(program, language, inside)
    nothing = 0.0 if partial else None
    if source is None:
        return Verdict(False, "unparsed", "no program", nothing)
    with _Trial(level, language, source, limits or Limits()) as trial:
        try:
            failures = trial.failures(wanted, partial)
        except _Unparsed as error:
            return Verdict(False, "unparsed", f"{error}; sandbox {level}", nothing)
        except (_BadTest, SandboxUnavailable, OSError) as error:
            return Verdict(False, "error", f"sandbox {level}: {error}")
    share = 1.0 - len(failures) / len(wanted) if partial else None
    if failures:
        return Verdict(False, "wrong", f"{failures[0]}; sandbox {level}", share)
    return Verdict(True, "correct", f"{len(wanted)} tests; sandbox {level}", share)


def extract_program(text: str, language: str = "python", inside: bool = False) -> str | None:
    """The program in a completion; None where there is none, or no end of it."""
    _, end, rest = text.rpartition("</think>")
    if not end and (inside or "<think>" in rest):
        return None
    found, block, tag, fenced = None, None, "", False
    for line in rest.split("\n"):
        match = _FENCE.fullmatch(line.rstrip())
        if match is None:
            if block is not None:
                block.append(line)
        elif block is None:
            block, tag, fenced = [], match[1].lower(), True
        elif not match[1]:
            if not tag or tag in _TAGS[language]:
                found = "\n".join(block)
            block = None
        else:
            block.append(line)
    if not fenced:
        found = rest
    return found if found and found.strip() and len(found) <= MAX_PROGRAM else None


class _Unparsed(Exception):
    """The program does not compile."""


class _BadTest(Exception):
    """A test that no program can be judged by."""


class _Trial:
    """One program against its tests. The sandbox opens with the first test, and again for the next one
    after a test that ran out of time, which ended it."""

    def __init__(self, level: str, language: str, source: str, limits: Limits) -> None:
        self.level, self.language, self.source, self.limits = level, language, source, limits
        self.sandbox: Sandbox | None = None
        self.until = 0.0

    def __enter__(self) -> _Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self.sandbox is not None:
            self.sandbox.close()
            self.sandbox = None

    def failures(self, tests: Sequence[Test], partial: bool) -> list[str]:
        """What the tests that do not pass say; only the first unless partial."""
        self._open()
        self.until = time.monotonic() + self.limits.total_seconds
        found = []
        for i, test in enumerate(tests):
            try:
                failure = self._run(test)
            except TimedOut:
                self._close()
                failure = f"no end in {self.limits.seconds:g} s"
                if self._left() <= 0:
                    failure = f"no end of all tests in {self.limits.total_seconds:g} s"
            if failure is not None:
                found.append(f"test {i + 1} of {len(tests)}: {failure}")
                if not partial:
                    break
        return found

    def _left(self) -> float:
        return self.until - time.monotonic()

    def _open(self) -> Sandbox:
        if self.sandbox is None:
            self.sandbox = Sandbox(self.level, self.language, self.source, self.limits)
            if self.language != "python":
                self._compile()
        return self.sandbox

    def _compile(self) -> None:
        try:
            said = self.sandbox.run(b"c", b"", self.limits.compile_seconds)
        except TimedOut:
            raise _Unparsed(f"does not compile in {self.limits.compile_seconds:g} s") from None
        if said.code != 0 or said.over:
            words = said.output.decode("utf-8", "replace")
            raise _Unparsed("does not compile: " + next(
                (line for line in words.splitlines() if "error" in line), words)[:200])

    def _ask(self, kind: bytes, body: str) -> Outcome:
        left = min(self.limits.seconds, self._left())
        if left <= 0:
            raise TimedOut
        return self._open().run(kind, body.encode("utf-8", "surrogatepass"), left)

    def _run(self, test: Test) -> str | None:
        """Why a test does not pass; None where it does."""
        if self._left() <= 0:  # before a tester is started in vain
            raise TimedOut
        if isinstance(test, InputOutput):
            ended = self._ask(b"s", test.input)
            if (failure := _how_it_ended(ended)) or test.passes(ended.output):
                return failure
            return f"another output, {_instead(ended.output.decode('utf-8', 'replace'), test.output)}"
        if isinstance(test, FunctionCall):
            answer = self._call(test.function, test.args, test.kwargs)
            if isinstance(answer, _Returned):
                return None if test.passes(answer.value) else \
                    f"another value, {_instead(answer.value, test.expected)}"
            return answer if isinstance(answer, str) else answer.words
        return self._run_script(test)

    def _call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Returned | _Raised | str:
        """What a call returned or raised, or what happened instead."""
        ended = self._ask(b"f", render([name, list(args), dict(kwargs)]))
        if failure := _how_it_ended(ended):
            return failure
        kind, body = ended.output[:1], ended.output[1:]
        try:
            if kind == b"=":
                return _Returned(decode(body))
            if kind == b"!":
                return _raised(decode(body))
        except ValueError:
            return "an answer that is no value"
        words = _line(body.decode("utf-8", "replace")) if kind == b"?" else "no answer"
        if words.startswith(("SyntaxError", "IndentationError", "TabError")):
            raise _Unparsed(words)
        return words

    def _run_script(self, test: Script) -> str | None:
        """Run a test's text in a sandbox of its own, and its calls in the program's. It learns what a
        call returned or raised; a program that did neither is wrong, whatever the test would catch."""
        with Sandbox(self.level, "python", "", self.limits) as tester:
            tester.send(b"t" + render([test.text, list(test.names)]).encode("utf-8", "surrogatepass"),
                        self._left())
            until = time.monotonic() + self.limits.seconds
            while True:
                frame = tester.receive(min(until - time.monotonic(), self._left()))
                word, _, rest = frame.partition(b" ")
                if word != b"call":
                    break
                began = time.monotonic()
                try:
                    name, args, kwargs = decode(rest)
                except ValueError:  # made of earlier answers
                    return "an answer that makes no argument"
                answer = self._call(name, args, kwargs)
                if isinstance(answer, str):
                    return answer
                reply = "=" + render(answer.value) if isinstance(answer, _Returned) else "!" + render([*answer])
                tester.send(reply.encode("utf-8", "surrogatepass"), self._left())
                until += time.monotonic() - began  # the program's time is its own
        if word == b"error":
            raise _BadTest(rest.decode("utf-8", "replace"))
        return None if word == b"right" else _line(rest.decode("utf-8", "replace")) or "the tests ended"


def _instead(got: Any, want: Any) -> str:
    """What came out where something else was expected, for people."""
    return f"{brief(got)}, expected {brief(want)}"


class _Returned(NamedTuple):
    """What a call returned."""

    value: Any


class _Raised(NamedTuple):
    """What a call raised: the name of the nearest of Python's own exceptions, its arguments, in words."""

    kind: str
    arguments: list[Any]
    words: str


def _raised(said: Any) -> _Raised:
    """What warden.py's _raised says, which the program may have written; ValueError for anything else."""
    if not (type(said) is list and list(map(type, said)) == [str, list, str]):
        raise ValueError("no exception")
    kind, arguments, words = said
    return _Raised(kind, arguments, _line(words))


def _line(words: str) -> str:
    """What a program says, on one line that any file can hold."""
    return " ".join(words[:200].encode("utf-8", "replace").decode("utf-8").split())


def _how_it_ended(ended: Outcome) -> str | None:
    """What the end of a run says against it; an end in order says nothing."""
    if ended.over:
        return "too much output"
    if ended.code < 0:
        return f"ended by signal {-ended.code} ({signal.strsignal(-ended.code)})"
    return f"exit status {ended.code}" if ended.code else None
