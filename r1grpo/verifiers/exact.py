r"""exact.py - numbers and algebraic expressions in a form in which equality can be seen.

    value   ::= num / den                    den is not 0
    num     ::= sum of coefficient * monomial, coefficients rational, no term of coefficient 0
    monomial::= product of generator^exponent, exponents rational and above 0, sorted
    generator   a prime p (exponent below 1: a root), i (exponent 1), \pi, a letter,
                "(...)^" a sum of which a root is taken (exponent below 1), "\sin(...)" and the like

    a/b = c/d    if    a d - c b has no term

Every rewriting is an identity of real or complex numbers, so equal forms are equal values. Unequal
forms are unequal values where no generator is opaque: rational powers of primes are independent over
the rationals (Besicovitch 1940), so are powers of pi and of letters. Of opaque generators (roots of
sums, functions, powers with letters in the exponent) nothing is known: there `equal` says None.

Roots: sqrt(-5) = sqrt(5) i; sqrt(x^2) is not x; sqrt(x y) is not sqrt(x) sqrt(y).

The size of everything is bounded (TooLarge), in terms, bits and steps, so that no input costs more than
some milliseconds. Knows nothing about text.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import chain
from math import gcd, isqrt, lcm, pi, prod
from typing import NamedTuple

MAX_TERMS = 200
MAX_PRODUCTS = 4000  # of terms, in one multiplication
MAX_BITS = 16384     # of a coefficient
MAX_FACTOR = 10_000  # primes above it are not looked for

Number = int | Fraction
Generator = tuple[str, tuple]  # name, and of a root the sum under it as sorted terms
Monomial = tuple[tuple[Generator, Number], ...]
Sum = dict[Monomial, Number]


class Undecided(ValueError):
    """What cannot be brought into this form; the message says why."""


class TooLarge(Undecided):
    """More terms, bits or steps than are allowed."""


class Ambiguous(Undecided):
    """What can be read in two ways, or in none: nobody is to guess."""


class Value(NamedTuple):
    """num / den."""

    num: Sum
    den: Sum


ONE: Sum = {(): 1}
_I: Generator = ("i", ())
DEGREE = "\\circ"


def number(value: Number) -> Value:
    return Value({(): value} if value else {}, ONE)


def symbol(name: str) -> Value:
    """A letter, i among them, or an opaque thing, whose name then holds a parenthesis."""
    return Value({(((name, ()), 1),): 1}, ONE)


def rational(value: Value) -> Number | None:
    """The rational number that a value is, or None."""
    if value.den == ONE and not value.num:
        return 0
    return value.num.get(()) if value.den == ONE and len(value.num) == 1 else None


def letters(value: Value) -> set[str]:
    """Names of generators that are no numbers: all but primes, i and pi."""
    names = {g[0] for part in value for monomial in part for g, _ in monomial}
    return {name for name in names if not name[0].isdigit()} - {"i", "\\pi"}


def equal(a: Value, b: Value) -> bool | None:
    """Whether two values are equal; None: this form cannot tell."""
    known = not (opaque(a.den) or opaque(b.den))  # else a denominator may be 0 unseen
    if not known and a.den != b.den:
        return None
    if _add(_mul(a.num, b.den), _mul(b.num, a.den), -1) == {}:
        return True
    return False if known and not (opaque(a.num) or opaque(b.num)) else None


def approximate(value: Value) -> float | None:
    """The real number near a value; None where it has letters, i or opaque parts, or is too large."""
    parts = []
    for part in value:
        if any(not g[0].isdigit() and g[0] != "\\pi" for monomial in part for g, _ in monomial):
            return None
        try:
            parts.append(sum(float(c) * prod((pi if g[0] == "\\pi" else float(g[0])) ** float(e) for g, e in m)
                             for m, c in part.items()))
        except OverflowError:
            return None
    return parts[0] / parts[1] if parts[1] else None


def opaque(a: Sum) -> bool:
    """Whether unequal forms may be equal values."""
    return any("(" in g[0] or g[0] == DEGREE for monomial in a for g, _ in monomial)


def name_of(value: Value) -> str:
    """A text that equal forms share, for names of opaque generators."""
    return "(" + "/".join(repr(sorted(part.items(), key=repr)) for part in value) + ")"


# ---- arithmetic -----------------------------------------------------------------------------------


def add(a: Value, b: Value, sign: int = 1) -> Value:
    """a + sign b."""
    if a.den == b.den:
        return _value(_add(a.num, b.num, sign), a.den)
    return _value(_add(_mul(a.num, b.den), _mul(b.num, a.den), sign), _mul(a.den, b.den))


def multiply(a: Value, b: Value) -> Value:
    return _value(_mul(a.num, b.num), _mul(a.den, b.den))


def divide(a: Value, b: Value) -> Value:
    if not b.num:
        raise Undecided("division by zero")
    return _value(_mul(a.num, b.den), _mul(a.den, b.num))


def power(base: Value, exponent: Value) -> Value:
    """base ^ exponent; an exponent with letters makes an opaque generator of what is not a whole
    number in it."""
    e = rational(exponent)
    if e is None:
        whole = exponent.num.get((), 0) if exponent.den == ONE else 0
        whole = whole if whole.denominator == 1 else 0
        rest = add(exponent, number(whole), -1)
        atom = symbol(f"{name_of(base)}^{name_of(rest)}")
        return multiply(power(base, number(whole)), atom) if whole else atom
    if e < 0:
        return divide(number(1), power(base, number(-e)))
    whole, part = divmod(e, 1)
    result = Value(_pow(base.num, int(whole)), _pow(base.den, int(whole)))
    return multiply(result, root(base, Fraction(part))) if part else _value(*result)


def root(base: Value, e: Fraction, real: bool = False) -> Value:
    r"""base ^ e, 0 < e < 1. real: an odd root of a negative number is negative, as \sqrt[3] says."""
    if base.den != ONE:
        raise Undecided("a root of a fraction with letters or roots in its denominator")
    a = base.num
    if not a:
        return base
    sign = number(1)
    if len(a) == 1 and () in a and a[()] < 0:
        if e == Fraction(1, 2):
            sign = symbol("i")
        elif real and e.numerator == 1 and e.denominator % 2:
            sign = number(-1)
        else:
            raise Undecided("a root of a negative number")
        a = {(): -a[()]}
    content = Fraction(gcd(*(c.numerator for c in a.values())), lcm(*(c.denominator for c in a.values())))
    rest = {m: c / content for m, c in a.items()}
    rest = {m: c.numerator if c.denominator == 1 else c for m, c in rest.items()}
    result = multiply(sign, multiply(_root_of_integer(content.numerator, e),
                                     divide(number(1), _root_of_integer(content.denominator, e))))
    return result if rest == ONE else multiply(result, _root_of_sum(rest, e))


def _root_of_sum(a: Sum, e: Fraction) -> Value:
    [monomial, coefficient], *more = a.items()
    if not more and coefficient == 1:
        if all(g[0][0].isdigit() or g[0] == "\\pi" for g, _ in monomial) \
                or len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0] != _I:
            return Value({tuple((g, f * e) for g, f in monomial): 1}, ONE)
    terms = tuple(sorted(a.items(), key=repr))
    return Value({((("(" + repr(terms) + ")", terms), e),): 1}, ONE)


def _root_of_integer(n: int, e: Fraction) -> Value:
    """n ^ e of a positive integer: whole powers of its primes in the coefficient."""
    if n.bit_length() > MAX_BITS:
        raise TooLarge("a number too large to take a root of")
    coefficient, roots = 1, []
    for prime, times in _factors(n):
        whole, part = divmod(times * e, 1)
        coefficient *= prime ** int(whole)
        if part:
            roots.append(((str(prime), ()), part))
    return Value({tuple(sorted(roots)): coefficient}, ONE)


def _factors(n: int) -> list[tuple[int, int]]:
    """(prime, exponent); what is left without a factor up to MAX_FACTOR counts as prime, or as the
    square of a prime."""
    found = []
    for p in chain((2, 3), (k + d for k in range(6, MAX_FACTOR, 6) for d in (-1, 1))):
        if p * p > n:
            break
        times = 0
        while n % p == 0:
            n, times = n // p, times + 1
        if times:
            found.append((p, times))
    if n > 1:
        square = isqrt(n)
        found.append((square, 2) if square * square == n else (n, 1))
    return found


def _value(num: Sum, den: Sum) -> Value:
    """num / den, a rational denominator divided out."""
    if den != ONE and len(den) == 1 and () in den:
        by = Fraction(den[()])
        num = {m: _plain(c / by) for m, c in num.items()}
        den = ONE
    return Value(num, den)


def _plain(c: Number) -> Number:
    return c.numerator if c.denominator == 1 else c


def _add(a: Sum, b: Sum, sign: int = 1) -> Sum:
    out = dict(a)
    for monomial, c in b.items():
        _gather(out, monomial, sign * c)
    if len(out) > MAX_TERMS:
        raise TooLarge("too many terms")
    return out


def _gather(out: Sum, monomial: Monomial, c: Number) -> None:
    """out += c * monomial."""
    total = out.get(monomial, 0) + c
    if total:
        out[monomial] = total
    else:
        out.pop(monomial, None)


def _mul(a: Sum, b: Sum) -> Sum:
    if a == ONE or b == ONE:
        return a if b == ONE else b
    if len(a) * len(b) > MAX_PRODUCTS:
        raise TooLarge("too many terms to multiply")
    out: Sum = {}
    for m, c in a.items():
        for n, d in b.items():
            coefficient = c * d
            if max(abs(coefficient.numerator), coefficient.denominator).bit_length() > MAX_BITS:
                raise TooLarge("too large a number")
            for monomial, part in (_term(m, n, coefficient) if m and n else {m or n: coefficient}).items():
                _gather(out, monomial, part)
        if len(out) > MAX_TERMS:
            raise TooLarge("too many terms")
    return out


def _term(m: Monomial, n: Monomial, coefficient: Number) -> Sum:
    """coefficient * m * n, with whole powers of primes, i^2 and whole powers of roots worked out."""
    exponents = dict(m)
    for g, e in n:
        exponents[g] = exponents.get(g, 0) + e
    more: list[Sum] = []
    for g, e in list(exponents.items()):
        whole = int(e // 1)
        if g == _I and whole > 1:
            coefficient, exponents[g] = coefficient * (-1) ** (whole // 2), whole % 2
        elif whole and (g[0][0].isdigit() or g[1]):
            more.append(_pow(dict(g[1]) if g[1] else {(): int(g[0])}, whole))
            exponents[g] = e - whole
    out = {tuple(sorted((g, e) for g, e in exponents.items() if e)): coefficient}
    for one in more:
        out = _mul(out, one)
    return out


def _pow(a: Sum, n: int) -> Sum:
    """a ^ n, n >= 0; the size of the result is seen before it is made."""
    bits = max((max(abs(c.numerator), c.denominator).bit_length() for c in a.values()), default=0)
    if n > 1 and (bits - 1) * n > MAX_BITS or len(a) > 1 and n > MAX_TERMS or n > 10 ** 6:
        raise TooLarge("too large a power")
    if len(a) == 1:
        [[monomial, c]] = a.items()
        if all(not g[1] and not g[0][0].isdigit() and g != _I for g, _ in monomial):
            return {tuple((g, e * n) for g, e in monomial) if n else (): c ** n}
    out = ONE
    while n:
        out = _mul(out, a) if n & 1 else out
        n >>= 1
        a = _mul(a, a) if n else a
    return out
