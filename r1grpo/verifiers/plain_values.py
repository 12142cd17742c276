"""plain_values.py - plain Python values: as text for the sandbox, back out of it, and compared.

    render(value)       the literal that warden.py evaluates
    decode(data)        the value that the JSON of warden.encode spells; ValueError for anything else
    same(got, want)     whether an answer is the expected value

Plain is None, bool, int, float, str, bytes, complex, list, tuple, set and dict. What decode returns is
built here, of exactly these types: an object that claims to equal everything does not get through. It is
nested at most MAX_DEPTH deep, since Python cannot read what is much deeper, and to fail at that would be
our failure, not the program's.

Equal are values of one type: True is not 1, "1" is not 1. Numbers: against an expected int, exactly
(3.0 is 3; 2.0**53 is not 2**53 + 1); against an expected float, within RELATIVE of it or ABSOLUTE;
nan equals nan alone. A tuple is not a list unless asked for (JSON data has no tuples). What stands in a
set, or is the key of a dict, is compared exactly. Knows nothing about tests.
"""

from __future__ import annotations

import json
import math
from typing import Any

RELATIVE, ABSOLUTE = 1e-6, 1e-9
MAX_SAME_HASHES = 100  # in a set or a dict: its time grows with their square
MAX_DEPTH = 100  # Python's parser reads 200 brackets in each other


def render(value: Any) -> str:
    """The Python literal of a plain value; names set, complex, inf and nan are left in it. TypeError for others."""
    if value is None or isinstance(value, (bool, float, str, bytes)):
        return repr(value)
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"  # repr would spell infj, and drop -0.0
    if isinstance(value, int):
        return repr(value) if abs(value) < 1 << 64 else hex(value)  # repr has a limit of digits
    if isinstance(value, (list, tuple, set, frozenset)):
        inside = ", ".join(map(render, value))
        if isinstance(value, list):
            return f"[{inside}]"
        if isinstance(value, tuple):
            return f"({inside},)" if value else "()"
        return f"{{{inside}}}" if value else "set()"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{render(key)}: {render(one)}' for key, one in value.items())}}}"
    raise TypeError(f"{type(value).__name__} is no plain value")


def decode(data: bytes) -> Any:
    """The value of one JSON document, see the head of the file."""
    try:
        value = json.loads(data.decode("ascii"), object_pairs_hook=_tagged, parse_float=_finite,
                           parse_constant=_refused)
    except (RecursionError, TypeError, OverflowError) as error:
        raise ValueError(f"no plain value: {error}") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """ValueError for a value that is nested too deep to be rendered and read again."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [one for group in level if isinstance(group, (list, tuple, set, frozenset, dict))
                 for one in ([*group, *group.values()] if isinstance(group, dict) else group)]
        if not level:
            return
    raise ValueError(f"a value of more than {MAX_DEPTH} lists in each other")


def _tagged(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) != 1:
        raise ValueError("an object of more or less than one tag")
    (tag, inside), = pairs
    if tag == "t" and type(inside) is list:
        return tuple(inside)
    if tag == "s" and type(inside) is list and _hashes_differ(inside) \
            and len(found := set(inside)) == len(inside):
        return found
    if tag == "d" and type(inside) is list and all(type(one) is list and len(one) == 2 for one in inside) \
            and _hashes_differ([key for key, _ in inside]):
        if len(made := {key: one for key, one in inside}) == len(inside):
            return made
    if tag == "i" and type(inside) is str:
        return int(inside, 16)
    if tag == "f" and inside in ("nan", "inf", "-inf"):
        return float(inside)
    if tag == "b" and type(inside) is str:
        return bytes.fromhex(inside)
    if tag == "c" and type(inside) is list and len(inside) == 2:
        return complex(*inside)
    raise ValueError(f"no value has the tag {tag[:20]!r}")


def _hashes_differ(keys: list[Any]) -> bool:
    """Whether these are no keys chosen to share a hash, as multiples of 2**61 - 1 do."""
    return len(keys) - len(set(map(hash, keys))) <= MAX_SAME_HASHES


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _refused(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def same(got: Any, want: Any, tuples_are_lists: bool = False) -> bool:
    """Whether an answer is the expected value, see the head of the file."""
    if type(want) in (list, tuple):
        if type(got) is not type(want) and not (tuples_are_lists and type(got) in (list, tuple)):
            return False
        return len(got) == len(want) and all(
            same(one, other, tuples_are_lists) for one, other in zip(got, want))
    if type(want) is dict:
        return type(got) is dict and _exact(got) == _exact(want) and all(
            same(got[key], one, tuples_are_lists) for key, one in want.items())
    if isinstance(want, (set, frozenset)):
        return type(got) is set and _exact(got) == _exact(want)
    if type(want) is float:
        return type(got) in (int, float) and close(got, want)
    if type(want) is int:
        return type(got) in (int, float) and got == want
    return type(got) is type(want) and got == want


def close(got: float, want: float) -> bool:
    """Whether a number is an expected float, within the tolerance at the head of the file."""
    if math.isnan(want) or not math.isfinite(want):
        return math.isnan(got) if math.isnan(want) else got == want
    try:
        return abs(got - want) <= max(ABSOLUTE, RELATIVE * abs(want))
    except OverflowError:  # an int that no float can hold
        return False


def _exact(values: Any) -> set[tuple[bool, Any]]:
    """What a set or a dict's keys hold, with True and 1 apart."""
    return {(type(one) is bool, one) for one in values}
