"""Tests of programs, and the values that come back: what none of them may be."""

import pytest

from r1grpo.verifiers.code_tests import read_tests
from r1grpo.verifiers.plain_values import decode


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
