"""code_tests.py - the tests of a program: read, taken apart, compared with what came out.

    {"input": text, "output": text}                          standard input, expected standard output
    {"function": name, "args": [...], "kwargs": {...}, "expected": value}       (kwargs may be left out)
    "assert f(2) == 4"                                       Python text that raises where f is wrong

Text that is nothing but `assert name(literals) == literal` is taken apart into calls and expected
values; the name may be Solution().method, of an instance made for each call. Other text becomes a Script: it runs in a sandbox of its own, in which the functions that it
does not define itself are stand-ins that ask the program's. Either way an expected value is never where
the program is, and what the program answers is plain data (plain_values.py). A stand-in raises what the
call raised: of Python's own exceptions the nearest, with its arguments; none of iteration's, which would
end a loop. A Script that imports more than the standard library, catches an exception that the program is
to define, or could run what the program answers (eval, exec, pickle: it would run where the verdict is
made), is refused.

Output is compared line by line, white space at the ends of lines and empty lines at the end aside. In a
line that differs, numbers that the test writes with a point or an exponent are compared as floats; all
else, spaces too, must be the same.
Knows nothing about processes.
"""

from __future__ import annotations

import ast
import builtins
import math
import re
import symtable
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..brief import brief
from .plain_values import check_depth, close, render, same

_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_RUN_TEXT = {"eval", "exec", "pickle"}
_FORMS = ('{"input", "output"}, {"function", "args", "expected"} or Python text; see '
          "r1grpo/verifiers/code_tests.py")


class InputOutput(NamedTuple):
    """A run of the whole program."""

    input: str
    output: str

    def passes(self, data: bytes) -> bool:
        """Whether this is the output that was expected."""
        try:
            return same_output(data.decode("utf-8"), self.output)
        except UnicodeDecodeError:
            return False


class FunctionCall(NamedTuple):
    """A call. tuples_are_lists: the expected value comes from JSON, which has no tuples."""

    function: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    expected: Any
    tuples_are_lists: bool

    def passes(self, value: Any) -> bool:
        """Whether this is the value that was expected."""
        return same(value, self.expected, self.tuples_are_lists)


class Script(NamedTuple):
    """Python text, and the names in it that the program is to define; Class.method for Class().method."""

    text: str
    names: tuple[str, ...]


Test = InputOutput | FunctionCall | Script


def read_tests(tests: Sequence[Any], language: str = "python") -> list[Test]:
    """The tests of a row of data. ValueError with the number of the one that is none, so call it on
    all data before a run."""
    if isinstance(tests, (str, Mapping)) or not tests:
        raise ValueError(f"tests: a list of at least one test, not {brief(tests)}")
    found: list[Test] = []
    for i, test in enumerate(tests):
        try:
            found += _read(test)
        except (ValueError, TypeError, SyntaxError, RecursionError) as error:
            raise ValueError(f"tests[{i}]: {error}") from None
    if all(isinstance(one, Script) and not one.names for one in found):
        raise ValueError("tests: none of them asks the program anything, so any program would pass")
    if language != "python" and not all(isinstance(one, InputOutput) for one in found):
        raise ValueError(f"tests: a {language} program is tested by input and output alone")
    return found


def _read(test: Any) -> list[Test]:
    if isinstance(test, str):
        return _split(test)
    if isinstance(test, Mapping) and test.keys() == {"input", "output"}:
        if isinstance(test["input"], str) and isinstance(test["output"], str):
            return [InputOutput(test["input"], test["output"])]
        raise ValueError("input and output are text")
    if isinstance(test, Mapping) and {"function", "args", "expected"} <= test.keys() <= {
            "function", "args", "kwargs", "expected"}:
        call = FunctionCall(test["function"], test["args"], test.get("kwargs", {}), test["expected"], True)
        if not isinstance(call.function, str) or not isinstance(call.args, (list, tuple)) or not isinstance(
                call.kwargs, Mapping) or not all(isinstance(name, str) for name in call.kwargs):
            raise ValueError("function is a name, args a list, kwargs a dict of names")
        render([call.args, dict(call.kwargs), call.expected])  # plain values, or TypeError
        check_depth([call.args, call.kwargs, call.expected])
        return [call]
    raise ValueError(f"{brief(test)} is none of {_FORMS}")


def _split(text: str) -> list[Test]:
    tree = ast.parse(text)
    if not tree.body:
        raise ValueError("no test in this text")
    calls = [_assertion(statement) for statement in tree.body]
    if all(calls):
        return calls
    names = _missing_names(text)
    for node in ast.walk(tree):
        _refuse(node, names)
    methods = {name for node in ast.walk(tree) if "." in (name := _callee(node))}
    classes = {name.partition(".")[0] for name in methods}
    return [Script(text, tuple(sorted({*names} - classes | {
        name for name in methods if name.partition(".")[0] in names})))]


def _refuse(node: ast.AST, missing: Sequence[str]) -> None:
    """ValueError where a Script with this in it would judge no program."""
    modules: list[str] = []
    if isinstance(node, ast.Import):
        modules = [one.name for one in node.names]
    elif isinstance(node, ast.ImportFrom):
        modules = ["." * node.level + (node.module or "")]
    elif isinstance(node, ast.Name) and node.id in _RUN_TEXT:
        raise ValueError(f"uses {node.id}, which could run what the program answers where the tests run")
    elif isinstance(node, ast.ExceptHandler) and node.type:
        for one in ast.walk(node.type):
            if isinstance(one, ast.Name) and one.id in missing:
                raise ValueError(f"catches {one.id}, which the program is to define: of what a program "
                                 "raises, only Python's own exceptions can be told apart")
    for name in modules:
        if name in _RUN_TEXT:
            raise ValueError(f"imports {name}, which could run what the program answers where the tests run")
        if name.partition(".")[0] not in sys.stdlib_module_names:
            raise ValueError(f"imports {name}; a sandbox has the standard library alone")


def _assertion(statement: ast.stmt) -> FunctionCall | None:
    """assert f(literals) == literal, as a call; None for any other statement."""
    match statement:
        case ast.Assert(test=ast.Compare(left=ast.Call(func=function, args=args, keywords=keywords),
                                         ops=[ast.Eq()], comparators=[expected])
                        ) if (name := _callee(function)) and all(one.arg for one in keywords):  # no **
            try:
                return FunctionCall(name, [ast.literal_eval(one) for one in args],
                                    {str(one.arg): ast.literal_eval(one.value) for one in keywords},
                                    ast.literal_eval(expected), False)
            except (ValueError, TypeError):
                return None
    return None


def _callee(node: ast.AST) -> str:
    """name, or Class.method for Class().method; empty for any other expression."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Call(func=ast.Name(id=name), args=[], keywords=[]), attr=method):
            return f"{name}.{method}"
    return ""


def _missing_names(text: str) -> tuple[str, ...]:
    """Names that a text reads and nobody in it makes."""
    module = symtable.symtable(text, "tests", "exec")
    made = {one.get_name() for one in module.get_symbols()
            if one.is_assigned() or one.is_imported() or one.is_namespace()}
    read: set[str] = set()
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {one.get_name() for one in table.get_symbols()
                 if one.is_referenced() and (one.is_global() or table is module)}
    return tuple(sorted(read - made - set(dir(builtins))))


def same_output(got: str, want: str) -> bool:
    """Whether a text is the expected output, see the head of the file."""
    ours, theirs = _lines(got), _lines(want)
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_line(got: str, want: str) -> bool:
    if got == want:
        return True
    ours, theirs = re.split(r"(\s+)", got), re.split(r"(\s+)", want)
    return len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(got: str, want: str) -> bool:
    if got == want:
        return True
    if len(got) > 100 or not _FLOAT.fullmatch(want) or not _NUMBER.fullmatch(got):
        return False
    return math.isfinite(float(got)) and close(float(got), float(want))
