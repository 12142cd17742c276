"""verify_code: honest programs pass, in every form of test; hacks do not, in any."""

import ast

import pytest
from grader_hacks import IMPORTS, PIPES, PROGRAMS
from honest_programs import C, CXX, PYTHON, WHOLE

from r1grpo.verifiers import VerifierPool, verify_code
from r1grpo.verifiers.code import extract_program
from r1grpo.verifiers.code_tests import FunctionCall, InputOutput, Script, read_tests, same_output
from r1grpo.verifiers.plain_values import decode, render, same
from r1grpo.verifiers.sandbox import Sandbox, SandboxUnavailable, require_level

# ---- hacks --------------------------------------------------------------------------------------

FORMS = {
    "call": [{"function": "solve", "args": [a, b], "expected": a * b + 1} for a, b in ((2, 3), (3, 4))],
    "assert": ["assert solve(2, 3) == 7", "assert solve(3, 4) == 13"],
    "check": ["def check(f):\n    for a, b in ((2, 3), (3, 4)):\n        assert f(a, b) == a * b + 1\n"
              "check(solve)"],
    "all": ["assert all(map(lambda case: solve(*case) == case[0] * case[1] + 1, [(2, 3), (3, 4)]))"],
    "output": [{"input": "2\n3\n", "output": "7\n"}, {"input": "3\n4\n", "output": "13\n"}],
}
HONEST = "def solve(a, b): return a * b + 1\nif __name__ == '__main__': print(solve(int(input()), int(input())))"


def test_an_honest_program_passes_in_every_form(level):
    for tests in FORMS.values():
        verdict = verify_code(IMPORTS + PIPES + HONEST, tests, level=level)
        assert verdict.correct, verdict


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_hack_is_rewarded(level, name):
    for form, tests in FORMS.items():
        verdict = verify_code(IMPORTS + PIPES + PROGRAMS[name], tests, level=level,
                              limits={"seconds": 1.0, "memory": 1 << 29})
        if name == "right, and a bad end" and form != "output":
            assert verdict.correct or verdict.reason == "wrong"  # its function is right
        else:
            assert not verdict.correct and verdict.reason == "wrong", (form, verdict)


def test_a_program_that_says_the_value_itself_is_right_only_if_it_knows_it(level):
    program = IMPORTS + "def solve(a, b):\n    os.write(3, b'=%d' % (a * b + 1)); os._exit(0)"
    assert verify_code(program, FORMS["call"], level=level).correct
    assert not verify_code(program.replace("+ 1", "+ 2"), FORMS["call"], level=level).correct


# ---- honest programs ----------------------------------------------------------------------------

def test_there_are_a_hundred():
    assert len(PYTHON) + len(WHOLE) + len(C) + len(CXX) >= 100


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_a_function_passes(level, number):
    program, *tests = PYTHON[number]
    verdict = verify_code(program, tests, level=level)
    assert verdict.correct, verdict


@pytest.mark.parametrize("number", range(len(WHOLE)))
def test_a_program_passes(level, number):
    program, given, expected = WHOLE[number]
    verdict = verify_code(program, [{"input": given, "output": expected}], level=level)
    assert verdict.correct, verdict


@pytest.mark.parametrize(("language", "number"), [*(("c", i) for i in range(len(C))),
                                                  *(("c++", i) for i in range(len(CXX)))])
def test_a_compiled_program_passes(level, language, number):
    program, given, expected = (C if language == "c" else CXX)[number]
    tests = [{"input": given, "output": expected}] * 2
    try:
        verdict = verify_code(program, tests, level=level, language=language)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    assert verdict.correct, verdict


# ---- the rules ----------------------------------------------------------------------------------

def test_reasons(level):
    def judged(program, tests=("assert f(1) == 2",), **options):
        return verify_code(program, list(tests), level=level, **options)

    assert judged("def f(x): return 2").reason == "correct"
    assert judged("def f(x): return 3").reason == "wrong"
    assert judged("def f(x): return 1 / 0").detail.startswith("test 1 of 1: ZeroDivisionError: division by")
    assert judged("def f(x): raise ValueError('a\\n=== b\\ud800')").detail.startswith("test 1 of 1: ValueError: a === b?;")
    hanging = judged("def f(x):\n    while True: pass", limits={"seconds": 0.2})
    assert hanging.reason == "wrong" and "no end in 0.2 s" in hanging.detail and not hanging.failed
    assert judged("").reason == "unparsed"
    broken = judged("def f(x) return 2")
    assert broken.reason == "unparsed" and broken.detail.endswith(f"; sandbox {level}")
    assert judged("<think>def f(x): return 2").reason == "unparsed"
    assert judged("def f(x): return 2", inside=True).reason == "unparsed"
    assert judged("so: </think>\n```python\ndef f(x): return 2\n```", inside=True).correct
    error = judged("def f(x): return 2", ["def check(f):\n    assert f(int)\ncheck(f)"])
    assert error.reason == "error" and "no plain value" in error.detail and error.failed
    assert level in judged("def f(x): return 2").detail
    text = [{"input": "", "output": "1"}]
    assert judged("int main() {", text, language="c").reason == "unparsed"
    assert judged("print(2)", text).detail.startswith("test 1 of 1: another output, '2\\n', expected '")
    assert judged("def f(x): return [3] * 999", ["assert f(1) == 2"]).detail.startswith(
        "test 1 of 1: another value, [3, 3, 3, 3, 3, 3, 3, 3, ...], expected 2; sandbox ")
    assert judged("import sys; print(1); sys.exit(2)", text).detail.startswith("test 1 of 1: exit status 2")


def test_all_or_nothing_unless_asked(level):
    tests = [f"assert f({i}) == {i}" for i in range(4)]
    program = "def f(x):\n    while x == 1: pass\n    return min(x, 2)"
    whole = verify_code(program, tests, level=level, limits={"seconds": 0.2})
    assert not whole.correct and whole.share is None
    part = verify_code(program, tests, level=level, partial=True, limits={"seconds": 0.2})
    assert not part.correct and part.share == 0.5
    assert verify_code("def f(x): return x", tests, level=level, partial=True).share == 1.0


def test_time_is_bounded_over_all_tests(level):
    tests = [f"assert f({i}) == {i}" for i in range(50)]
    verdict = verify_code("import time\ndef f(x): time.sleep(0.1); return x", tests, level=level,
                          limits={"total_seconds": 0.5})
    assert "no end of all tests in 0.5 s" in verdict.detail


def test_no_tester_is_started_when_the_time_is_over(level, monkeypatch):
    """A hundred in vain are seconds, and then the pool's deadline says timeout, which is no wrong answer."""
    started = []

    class Counted(Sandbox):
        def __init__(self, *more):
            started.append(more)
            super().__init__(*more)

    monkeypatch.setattr("r1grpo.verifiers.code.Sandbox", Counted)
    found = verify_code("def f(x):\n    while True: pass", ["def check(f): assert f(1) == 1\ncheck(f)"] * 9,
                        level=level, partial=True, limits={"total_seconds": 0.5})
    assert found.reason == "wrong" and found.share == 0.0 and len(started) == 2


def test_in_the_pool(level):
    with VerifierPool(workers=1, deadline=60.0) as pool:
        tickets = [pool.submit("r1grpo.verifiers:verify_code", program, ["assert f(2) == 3"], level=level,
                               partial=True, limits={"seconds": 0.5})
                   for program in ("def f(x): return x + 1", "while True: pass", "def f(x): return x + 1")]
        verdicts = [pool.result(one) for one in tickets]
    assert [(one.reason, one.share) for one in verdicts] == [("correct", 1.0), ("wrong", 0.0), ("correct", 1.0)]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="language 'cobol' is none of python, c, c"):
        verify_code("x", ["assert 1"], language="cobol")
    with pytest.raises(ValueError, match=r"tests\[1\]: \{'in': 'x'\} is none of \{"):
        verify_code("x", ["assert f(1) == 2", {"in": "x"}])
    with pytest.raises(ValueError, match="by input and output alone"):
        verify_code("x", ["assert f(1) == 2"], language="c")
    for tests, words in (("assert f(1) == 2", "at least one test, not 'assert f"),
                         ([{"inputs": ["1"], "outputs": ["2"]}], r"tests\[0\]: \{'inputs': .* is none of")):
        with pytest.raises(ValueError, match=words):
            read_tests(tests)
    with pytest.raises(ValueError, match="at least one test"):
        verify_code("x", [])
    with pytest.raises(ValueError, match=r"tests\[0\]: no test"):
        verify_code("x", ["# nothing"])
    with pytest.raises(ValueError, match="Limits: seconds"):
        verify_code("x", ["assert f(1) == 2"], limits={"seconds": 0})
    with pytest.raises(ValueError, match="limit 'secs' is none of seconds, total_seconds, .*threads"):
        verify_code("x", ["assert f(1) == 2"], limits={"secs": 3})
    with pytest.raises(ValueError, match="accept_no_sandbox"):
        verify_code("x", ["assert f(1) == 2"], level="none")


def test_tests_are_taken_apart():
    assert read_tests(["assert f(1, k=-2) == [3]"]) == [FunctionCall("f", [1], {"k": -2}, [3], False)]
    assert read_tests([{"input": "a", "output": "b"}]) == [InputOutput("a", "b")]
    for text in ("assert f(1)", "assert f(x) == 2", "import math\nassert f(1) == math.pi",
                 "assert abs(f(1) - 2) < 3", "assert f(*[1]) == 2", "assert f(**{'a': 1}) == 2"):
        script, = read_tests([text])
        assert isinstance(script, Script) and "f" in script.names and "math" not in script.names
    script, = read_tests(["def check(c):\n    assert c(3) == sort_it(3)\ncheck(solve)"])
    assert script.names == ("solve", "sort_it")


def test_the_program_of_a_text():
    block = "```python\nx = 1\n```"
    assert extract_program("x = 1") == "x = 1"
    assert extract_program(f"First\n{block}\nthen\n```py\nx = 2\n```\nand\n```text\nout\n```") == "x = 2"
    assert extract_program(f"{block}\n```c++\nint x;\n```", "c++") == "int x;"
    assert extract_program("<think>\n```python\nx\n```") is None
    assert extract_program(f"<think>\n```python\ny\n```\n</think>\n{block}") == "x = 1"
    assert extract_program("```python\nx = 1") is None
    assert extract_program("```text\nx = 1\n```") is None


VALUES = [None, True, 0, -1, 2**200, 1.5, -0.0, 1e300, "", 'é"\\\n\x00 \U0001f600\ud800', b"\x00\xff", [], [1, [2]],
          (), (1,), ((), []), set(), {1, "a"}, {}, {"a": [1], (1, 2): {"b": None}}, 1 + 2j,
          complex(float("inf"), -0.0), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_survive_the_way_in_and_out(value):
    from r1grpo.verifiers import warden
    found = warden.literal(render(value).encode("utf-8", "surrogatepass"))
    assert repr(found) == repr(value) or found == value
    back = decode(warden.encode(found).encode("ascii"))
    assert type(back) is type(value) and same(back, value)


def test_only_values_come_out():
    for data in (b"", b"NaN", b"Infinity", b"1e400", b"[1", b"1 2", b'{"x": [1]}', b'{"s": [[1]]}', b"{}",
                 b'{"d": [[1, 2], [1, 3]]}', b'{"d": [[[1], 2]]}', b"[" * 100_000, b"7" * 10_000, b"\xff",
                 b'{"i": "zz"}', b'{"c": ["a", 1]}', b'{"t": 5}', b'{"s": [1, 1]}'):
        with pytest.raises(ValueError):
            decode(data)


def test_what_is_equal():
    for got, want in ((3.0, 3), (3, 3.0), (1 / 3, 0.33333333), (-0.0, 0.0), (float("nan"), float("nan")),
                      ([1, 2.0], [1, 2]), ({"a": 0.1 + 0.2}, {"a": 0.3}), ({1, 2}, {2, 1})):
        assert same(got, want), (got, want)
    for got, want in ((True, 1), (1, True), ("1", 1), (1, "1"), (None, 0), ([1], (1,)), ((1,), [1]),
                      (2.0**53, 2**53 + 1), (float("nan"), 1.0), (1.0, float("nan")), (10**400, 1.0),
                      (float("inf"), 1e308), (1.00001, 1.0), (0.0, 1e-8), ([1, 2], [1, 2, 3]), ({1: 2}, {True: 2}),
                      ({True}, {1}), ("7 ", "7"), (b"7", "7"), ({}, []), (1.5, 1)):
        assert not same(got, want), (got, want)
    assert same((1, [2]), [1, (2,)], tuples_are_lists=True)


def test_what_output_is_equal():
    for got, want in (("7", "7\n"), ("7 \r\n8\n\n", "7\n8"), ("0.3333333", "0.33333333"), ("1.0", "1.00"), ("2", "2.0"),
                      ("a 0.50 b", "a 0.5 b"), ("", "\n")):
        assert same_output(got, want), (got, want)
    for got, want in (("7 8", "7\n8"), (" 7", "7"), ("7.0", "7"), ("nan", "1.0"), ("inf", "1.0"), ("1_0", "10.0"),
                      ("\uff17", "7"), ("\uff17.0", "7.0"), ("1.1", "1.0"), ("1.0 1.0", "1.0"), ("yes", "Yes"),
                      ("1e999", "1.0")):
        assert not same_output(got, want), (got, want)


def test_no_test_of_the_hacks_is_empty():
    for program in PROGRAMS.values():
        ast.parse(IMPORTS + PIPES + program)


def test_a_level_that_is_not_there_is_refused_before_a_program_runs(monkeypatch):
    monkeypatch.setattr("r1grpo.verifiers.sandbox.try_level", lambda level: ("no kernel", False))
    with pytest.raises(SandboxUnavailable, match="no kernel"):
        verify_code("x = 1", ["assert f() == 1"])
    with pytest.raises(SandboxUnavailable, match="'restricted'"):
        require_level("restricted")
