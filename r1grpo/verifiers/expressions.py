r"""expressions.py - one expression, spelled as latex.py spells -> its exact value.

    sum      ::= [sign] product (sign product)*            sign: + - \pm \mp
    product  ::= power (("*" | "/") [sign] power | power)*      side by side is a product
    power    ::= primary ["!"] ["^" argument]
    primary  ::= number | letter | "(" sum ")" | "{" sum "}" | "|" sum "|"
               | \frac argument argument | \sqrt ["[" n "]"] argument | \binom argument argument
               | function [^ argument] argument
    number   ::= digits [. digits] | . digits | digits . digits \overline{digits}
    mixed    ::= whole \frac{whole}{whole} | whole whole/whole, below 1: a sum, no product
    argument ::= { sum } | one digit, letter or command; after ^ and / all digits

A letter may have a subscript; capitals side by side (AB) are one name, small letters a product. Of what
may be read in two ways (1/2x, 2^3^2, 3!!, {1}{2}, a letter before a digit) nothing is guessed: Ambiguous.
The value of a function is opaque (exact.py), f(x) for f, g too. Knows nothing about lists, units or
equations.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import comb, factorial

from .exact import (DEGREE, ONE, Ambiguous, TooLarge, Undecided, Value, add, divide, multiply, name_of,
                    number, power, rational, root, symbol)

MAX_LENGTH = 400  # characters
MAX_DEPTH = 24    # of nesting
MAX_DIGITS = 400
MAX_COUNT = 400   # n of n! and of a binomial coefficient

GREEK = ("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi "
         "rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi "
         "Omega infty emptyset ell").split()
FUNCTIONS = ("arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln lg exp max min gcd lcm "
             "deg det arg").split()
_NUMBER = re.compile(r"(\d+)(?:\.(\d*)\\overline\{(\d+)\})|\d+(?:\.\d+)?|\.\d+", re.ASCII)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_NAME = re.compile(r"[A-Za-z]+")
_MIXED = re.compile(r"(?:\\frac(?:\{(\d{1,9})\}|(\d))(?:\{(\d{1,9})\}|(\d))| (\d{1,9})/(\d{1,9})(?![\d.]))",
                    re.ASCII)
_WHOLE = re.compile(r"\d{1,9}", re.ASCII)
_BRACED_DIGIT = re.compile(r"\{[ {]*[\d.]", re.ASCII)
PLAIN = {"sqrt": "\\sqrt", "pi": "\\pi", "infinity": "\\infty", "inf": "\\infty",
          **{name: "\\" + name for name in FUNCTIONS if len(name) > 2 and name != "lcm" or name == "ln"}}
_BINARY = {"+": 1, "-": -1, "\\pm": 1, "\\mp": -1}


@lru_cache(maxsize=4096)
def evaluate(text: str, plus_minus: int = 1) -> Value:
    r"""The value of an expression; plus_minus: 1 or -1, what \pm is. Undecided where it has none."""
    if len(text) > MAX_LENGTH:
        raise TooLarge("too long an expression")
    reader = _Reader(text, plus_minus)
    value = reader.sum()
    if reader.rest():
        raise Undecided(f"{reader.rest()[:20]!r} in an expression")
    if "inf" in text and (value.den != ONE or value.num.keys() != symbol("\\infty").num.keys()):
        raise Ambiguous("infinity is no number to be reckoned with")
    return value


class _Reader:
    """A text and the place in it that is read next."""

    def __init__(self, text: str, plus_minus: int) -> None:
        self.text, self.at, self.depth, self.plus_minus = text, 0, 0, plus_minus

    def rest(self) -> str:
        return self.text[self.at:]

    def next(self) -> str:
        """The next character or command, spaces skipped; "" at the end. It is not taken."""
        while self.text.startswith(" ", self.at):
            self.at += 1
        command = _COMMAND.match(self.text, self.at)
        return command[0] if command else self.text[self.at:self.at + 1]

    def take(self, wanted: str) -> bool:
        """Take it if it is the next."""
        if self.next() != wanted:
            return False
        self.at += len(wanted)
        return True

    def expect(self, wanted: str) -> None:
        if not self.take(wanted):
            raise Undecided(f"{wanted!r} is missing before {self.rest()[:20]!r}")

    def sign(self) -> int:
        """1 or -1 of a sign, which is taken; 0 where there is none."""
        found = self.next()
        if found not in _BINARY:
            return 0
        self.at += len(found)
        return _BINARY[found] * (self.plus_minus if len(found) > 1 else 1)

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge("too many brackets in one another")
        sign = self.sign() or 1
        value = self.product()
        value = value if sign > 0 else multiply(number(-1), value)
        while sign := self.sign():
            value = add(value, self.product(), sign)
        self.depth -= 1
        return value

    def product(self) -> Value:
        value = self.mixed() or self.power()
        divided = False
        while True:
            if self.take("*"):
                value = multiply(value, self.signed_power())
            elif self.take("/"):
                value, divided = divide(value, self.signed_power()), True
            elif self.starts_a_factor():
                if divided:
                    raise Ambiguous("a product behind a / can be read in two ways")
                value = multiply(value, self.power())
            else:
                return value

    def starts_a_factor(self) -> bool:
        found = self.next()
        if found in ("(", "{"):
            if _BRACED_DIGIT.match(self.text, self.at):
                raise Ambiguous("a number right behind another thing")
            return True
        if len(found) > 1:
            return found in ("\\frac", "\\sqrt", "\\binom") or found[1:] in GREEK \
                or found[1:] in FUNCTIONS
        return found.isascii() and found.isalpha()

    def signed_power(self) -> Value:
        sign = self.sign()
        value = self.power()
        return multiply(number(sign), value) if sign else value

    def mixed(self) -> Value | None:
        """A whole number and a fraction below 1 behind it; nothing is taken where it is no such."""
        self.next()
        whole = _WHOLE.match(self.text, self.at)
        part = whole and _MIXED.match(self.text, whole.end())
        if not part:
            return None
        top, bottom = (int(one) for one in part.groups() if one)
        if not 0 < top < bottom:
            raise Ambiguous("neither a mixed number nor clearly a product")
        self.at = part.end()
        return number(int(whole[0]) + Fraction(top, bottom))

    def power(self) -> Value:
        value, last = self.primary(), ""
        while (found := self.next()) in ("^", "!"):
            if last == "^" or last == found:
                raise Ambiguous("a power of a power, or a double factorial")
            self.at, last = self.at + 1, found
            if found == "!":
                value = number(factorial(_count(value)))
            elif self.text[self.at:].lstrip(" {").startswith(DEGREE):
                self.argument()
                value = multiply(value, symbol(DEGREE))
            else:
                value = power(value, self.argument(whole=True))
        return value

    def argument(self, whole: bool = False) -> Value:
        """What a command or a ^ takes: braces, or one thing. whole: of digits all."""
        found = self.next()
        if found == "{":
            return self.primary()
        if found == DEGREE:
            self.at += len(DEGREE)
            return symbol(DEGREE)
        if whole and found == "-":  # x^-1, as it is written without braces
            return self.signed_power()
        if len(found) == 1 and found.isascii() and found.isalnum() and not whole:
            self.at += 1
            return number(int(found)) if found.isdigit() else symbol(found)
        return self.primary()

    def primary(self) -> Value:
        found = self.next()
        if found == "":
            raise Undecided("an expression ends too early")
        if match := _NUMBER.match(self.text, self.at):
            self.at = match.end()
            return _number(match)
        if found[0] == "\\":
            return self.command(found)
        for left, right in (("(", ")"), ("{", "}"), ("[", "]"), ("|", "|")):
            if self.take(left):
                value = self.sum()
                self.expect(right)
                return value if left != "|" else _absolute(value)
        if found.isascii() and found.isalpha():
            return self.letter()
        raise Undecided(f"{found!r} is no part of an expression")

    def command(self, found: str) -> Value:
        name = found[1:]
        self.at += len(found)
        if name == "frac":
            top = self.argument()
            return divide(top, self.argument())
        if name == "sqrt":
            return self.root()
        if name == "binom":
            n, k = _count(self.argument()), _count(self.argument())
            return number(comb(n, k))
        if name in FUNCTIONS:
            return self.function(found)
        if name in GREEK:
            return self.subscripted(found)
        if name == "circ":
            return symbol(DEGREE)
        raise Undecided(f"the command {found}")

    def root(self) -> Value:
        n = 2
        if self.take("["):
            n = _count(self.sum())
            self.expect("]")
            if not 2 <= n <= 100:
                raise Undecided("a root of that degree")
        return root(self.argument(), Fraction(1, n), real=True)

    def function(self, name: str) -> Value:
        r"""\sin^2 5x: the power belongs to the value, the argument is all that stands side by side up to
        the next function, sign or bracket."""
        exponent = base = None
        for _ in range(2):
            if self.take("_"):
                base = self.argument()
            elif self.take("^"):
                exponent = self.argument(whole=True)
        value = self.primary() if self.next() in ("(", "{", "|") else self.side_by_side()
        name += f"_{name_of(base)}" if base else ""
        result = symbol(f"{name}{name_of(value)}")
        return power(result, exponent) if exponent else result

    def side_by_side(self) -> Value:
        value = self.power()
        while self.starts_a_factor() and self.next() != "(" and self.next()[1:] not in FUNCTIONS \
                and not self.rest().startswith(tuple(FUNCTIONS)):
            value = multiply(value, self.power())
        if self.next() == "/":
            raise Undecided("a / behind the argument of a function")
        return value

    def letter(self) -> Value:
        run = _NAME.match(self.text, self.at)[0]
        alone = not (self.at and self.text[self.at - 1].isalpha())
        for plain, command in PLAIN.items():
            if alone and run == plain:
                self.at += len(plain)
                return self.command_of_plain(command)
        if alone and (len(run) > 3 and not run.isupper()):
            raise Undecided(f"the word {run[:20]!r}")
        if len(run) > 1 and alone and run.isupper():
            self.at += len(run)
            return self.subscripted(run)
        self.at += 1
        if run[0] in "fg" and self.text.startswith("(", self.at):
            return symbol(f"{run[0]}{name_of(self.primary())}")
        return self.subscripted(run[0])

    def command_of_plain(self, command: str) -> Value:
        r"""sqrt(2), pi, sin x: a command without its backslash."""
        if command == "\\sqrt":
            self.expect("(")
            self.at -= 1
        self.at -= len(command)  # command() steps over it
        return self.command(command)

    def subscripted(self, name: str) -> Value:
        if self.take("_"):
            start = self.at
            self.argument(whole=True)
            name += "_" + self.text[start:self.at].strip("{} ")
        follows = self.text[self.at:self.at + 1]
        if follows == "'" or follows.isdigit() and name[0] != "\\":
            raise Ambiguous("a digit or a prime right behind a letter")
        return symbol(name)


def _number(match: re.Match[str]) -> Value:
    if len(match[0]) > MAX_DIGITS:
        raise TooLarge("too many digits")
    if match[3]:  # 0.1\overline{6} = (16 - 1) / 90
        fixed, again = match[1] + match[2], match[3]
        value = Fraction(int(fixed + again) - int(fixed), 10 ** len(match[2]) * (10 ** len(again) - 1))
    else:
        value = Fraction(match[0])
    return number(value.numerator if value.denominator == 1 else value)


def _count(value: Value) -> int:
    """A whole number that things may be counted with."""
    n = rational(value)
    if n is None or n.denominator != 1 or n < 0:
        raise Undecided("a count that is no whole number")
    if n > MAX_COUNT:
        raise TooLarge("a large count")
    return int(n)


def _absolute(value: Value) -> Value:
    n = rational(value)
    return symbol(f"abs{name_of(value)}") if n is None else number(abs(n))
