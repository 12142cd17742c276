"""Tests of programs, and the values that come back: what none of them may be."""

import pytest

from r1grpo.verifiers import verify_code
from r1grpo.verifiers.code_tests import read_tests
from r1grpo.verifiers.plain_values import MAX_DEPTH, decode


@pytest.mark.parametrize("tests", [
    ["assert 1 == 1"], ["x = 1", "import math"],
    ["def check(candidate):\n    assert candidate(1) == 2\n"]])  # HumanEval's text without its last call
def test_tests_that_ask_the_program_nothing_are_refused(tests):
    with pytest.raises(ValueError, match="none of them asks the program anything"):
        read_tests(tests)
    assert len(read_tests([*tests, "assert f(1) == 2"])) == len(tests) + 1
    assert len(read_tests([*tests[:-1], tests[-1] + "\ncheck(f)"])) == len(tests)


@pytest.mark.parametrize("form", ["s", "d"])
def test_keys_that_share_a_hash_are_refused_before_they_cost_anything(form):
    def data(step, count):
        keys = [f'{{"i": "{k * step:x}"}}' for k in range(1, count)]
        return f'{{"{form}": [{", ".join(keys if form == "s" else [f"[{key}, 0]" for key in keys])}]}}'.encode()
    with pytest.raises(ValueError, match="no value"):
        decode(data((1 << 61) - 1, 20_000))
    assert len(decode(data(1 << 20, 20_000))) == 19_999
    assert len(decode(data((1 << 61) - 1, 50))) == 49


# ---- tests that expect an exception -------------------------------------------------------------

ROOT = "def root(x):\n    if x < 0: raise {}\n    return x ** 0.5\n"
EXPECTS = ["try:\n    root(-4)\n    assert False\nexcept ValueError as error:\n    assert 'negative' in str(error)",
           "import unittest\nwith unittest.TestCase().assertRaisesRegex(ValueError, 'negative'): root(-1)",
           "def raises(kind, f, *args):\n    try: f(*args)\n    except kind as error: return error\n"
           "assert raises(ValueError, root, -2).args == ('negative', -2)", "assert root(4) == 2"]


def test_the_tests_see_the_exceptions_of_python(level):
    for raised in ("ValueError('negative', x)", "Negative('negative', x)"):  # a ValueError of its own
        program = "class Negative(ValueError): pass\n" + ROOT.format(raised)
        assert verify_code(program, EXPECTS, level=level).correct
    for raised in ("TypeError('negative', x)", "Exception('negative', x)", "ValueError", "ValueError('bad', x)",
                   "SystemExit('negative')", "Negative('negative', x)"):
        found = verify_code(ROOT.format(raised), EXPECTS, level=level)
        assert found.reason == "wrong" and found.detail.startswith("test 1 of 4: "), (raised, found)
    for raised in ("KeyError('key')", "OSError(2, 'gone')", "UnicodeDecodeError('a', b'b', 0, 1, 'c')",
                   "ZeroDivisionError()", "ValueError(object())"):  # str and arguments are the same
        test = f"try: root(-1)\nexcept {raised.partition('(')[0]} as error: assert str(error)[:8] == str({raised})[:8]"
        assert verify_code(ROOT.format(raised), [test], level=level).correct, raised


@pytest.mark.parametrize("program", [
    "import os\ndef f(x): os._exit(0)", "import os\ndef f(x): os.abort()", "def f(x): raise SystemExit",
    "def f(x): return iter(())", "def g(x): return 1", "raise ValueError", "def f(x): return 'x' * 10 ** 7",
    "import os\ndef f(x): os.write(3, b'![\"ValueError\", [], 5]'); os._exit(0)"])
def test_what_is_no_answer_is_no_exception_either(level, program):
    found = verify_code(program, ["try: f(1)\nexcept BaseException: pass"], level=level)
    assert found.reason == "wrong", found


@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
def test_no_exception_of_the_program_ends_a_loop_of_the_tests(level, kind):
    found = verify_code(f"def f(x): raise {kind}", ["assert all(map(lambda x: f(x) == 2 * x, range(9)))"], level=level)
    assert found.reason == "wrong", found
    forged = f"import os\ndef f(x): os.write(3, b'![\"{kind}\", [], \"\"]'); os._exit(0)"
    found = verify_code(forged, ["assert list(map(f, [])) == list(map(f, [1]))"], level=level)
    assert found.reason == "wrong", found


@pytest.mark.parametrize(("test", "match"), [
    ("try: f(1)\nexcept (ValueError, Bad): pass", "catches Bad, which the program is to define"),
    ("import pytest\nwith pytest.raises(ValueError): f(1)", "imports pytest; a sandbox has the standard library"),
    ("import builtins\nassert eval(f(1)) == 2", "uses eval, which could run what the program answers"),
    ("run = exec\nrun(f(1))", "uses exec"), ("from pickle import loads\nassert loads(f(1))", "imports pickle"),
    ("from solution import f\nassert f(1) == [1]", "imports solution"), ("from . import f\nassert f(1)", "imports ."),
])
def test_what_cannot_be_tested_is_refused_before_a_run(test, match):
    with pytest.raises(ValueError, match=rf"tests\[1\]: {match}"):
        read_tests(["assert f(1) == 2", test])


@pytest.mark.parametrize("tests", [
    ["assert Solution().add(1, 2) == 3", "assert Solution().add(a=3, b=4) == 7"],
    ["def check(f):\n    assert f(1, 2) == 3 and f(a=3, b=4) == 7\ncheck(Solution().add)"],
    ["for a in range(3): assert Solution().add(a, 1) == Solution().add(b=a, a=1) == twice(a) - a + 1"]])
def test_methods_of_an_instance(level, tests):
    program = "class Solution:\n    def add(self, a, b): return a + b\ndef twice(x): return 2 * x"
    assert verify_code(program, tests, level=level).correct
    assert verify_code(program.replace("a + b", "a - b"), tests, level=level).reason == "wrong"
    assert verify_code("def add(a, b): return a + b", tests, level=level).reason == "wrong"


def test_names_that_a_program_is_to_define():
    for text, names in (("assert Solution().f([1]) == g(x=2) == Box(3)", ("Box", "Solution.f", "g")),
                        ("class Solution: pass\nassert Solution().f() == g()", ("g",)),
                        ("import io\nassert io.StringIO().read() == f()", ("f",))):
        script, = read_tests([text])
        assert script.names == names


# ---- whose fault it is --------------------------------------------------------------------------

@pytest.mark.parametrize("test", ["def test_f():\n    assert f(1) == 2", "if 1 > 2: f(1)", "assert 1 == 2, f",
                                  "import sys\nsys.undefined\nassert f(1) == 2"])
def test_tests_that_never_ask_say_nothing_about_a_program(level, test):
    found = verify_code("def f(x): return x + 1", [test], level=level)
    assert found.reason == "error" and found.failed, found


@pytest.mark.parametrize(("answer", "test"), [
    ("'('", "import ast\nassert ast.literal_eval(f(1)) == 2"), ("'1 +'", "import ast\nassert ast.parse(f(1)) == 2"),
    ("'nobody'", "import importlib\nassert importlib.import_module(f(1))"),
    ("{'x' * 10 ** 6: 1}", "assert f(1) * 2"), ("10 ** 5000", "assert str(f(1)) == '2'"),
    ("'[' * 10 ** 6", "import json\nassert json.loads(f(1)) == 2")])
def test_a_program_cannot_make_its_fault_the_tests(level, answer, test):
    """As an error it would be left out of the baseline, which is better than being wrong."""
    found = verify_code(f"def f(x): return {answer}", [test], level=level)
    assert found.reason == "wrong", found


def test_an_answer_that_the_tests_have_no_memory_for_is_a_wrong_one(level):
    found = verify_code("def f(x): return [1] * 340_000", ["def check(f): assert f(1) == 2\ncheck(f)"], level=level,
                        limits={"memory": 128 << 20})
    assert found.reason == "wrong" and "MemoryError" in found.detail, found


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 250, 500, 900, 1100, 100_000])
def test_an_answer_nested_deep_is_a_wrong_one(level, depth):
    program = f"import os\ndef f(x): os.write(3, b'=' + b'[' * {depth} + b']' * {depth}); os._exit(0)"
    for test in ("assert f(1) == 2", "assert not f(1)", "assert f(f(1)) == 2"):
        found = verify_code(program, [test], level=level)
        assert found.reason == "wrong", (test, found)


def test_arguments_that_are_nested_deep_are_refused_before_a_run():
    with pytest.raises(ValueError, match="lists in each other"):
        read_tests([{"function": "f", "args": [_nested(MAX_DEPTH + 1)], "expected": 1}])


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value
