r"""units.py - what stands around a number: a currency sign, per cent, degrees, units, words.

    scalar ::= [sign] ["\$"] expression {unit}
    unit   ::= "%" | "^\circ" | "\$" | "\text{" words "}" [power] | words [power]

A unit becomes the set of its words: singular, long names for short ones (cm: centimeter), square and
cubic as ^2 and ^3 of the word behind them. Words of size (million, dozen) multiply the number. A word
that may change what is said (or, not, less, half, ...) is no unit. Plain words are units where they are
known ones, or stand behind a space and have four letters or more. Knows nothing about conversion.
"""

from __future__ import annotations

import re

from .expressions import FUNCTIONS, GREEK

_KNOWN = {
    "meter": "m metre", "centimeter": "cm centimetre", "millimeter": "mm millimetre",
    "kilometer": "km kilometre", "inch": "in inches", "foot": "ft feet", "yard": "yd yds",
    "mile": "mi", "gram": "g", "kilogram": "kg kgs", "milligram": "mg", "pound": "lb lbs", "ounce": "oz",
    "second": "s sec secs", "minute": "min mins", "hour": "h hr hrs", "day": "", "week": "wk",
    "month": "mo", "year": "yr yrs", "dollar": "usd bucks", "cent": "", "euro": "eur",
    "degree": "deg degs", "radian": "rad rads", "percent": "pct percentage", "liter": "l litre",
    "milliliter": "ml millilitre", "unit": "", "per": "", "gallon": "gal", "newton": "n", "joule": "j",
    "watt": "w", "volt": "v", "kelvin": "k", "hertz": "hz", "acre": "", "point": "pt pts",
    "ordinal": "th st nd rd"}
KNOWN = {word: name for name, others in _KNOWN.items()
         for one in (name, *others.split()) for word in (one, f"{one}s" if len(one) > 2 else one)}
SIZES = {"hundred": 100, "thousand": 1000, "million": 10 ** 6, "billion": 10 ** 9,
         "trillion": 10 ** 12, "quadrillion": 10 ** 15, "lakh": 10 ** 5, "crore": 10 ** 7, "dozen": 12,
         "gross": 144}
# words that say more than what is counted
_NO_UNIT = set("or and not no nor but than to more less fewer at least most about between if minus plus times "
               "over under below above except without mod modulo wrong either neither through until from "
               "unknown undefined half halves third thirds quarter quarters fourth fourths fifth fifths "
               "is are was the answer maybe possibly approximately both none every any only up down "
               "left remainder by of factorial squared cubed zero one two three four five six seven "
               "eight nine ten tens score grand couple googol doubled tripled twice negative inverse inverted "
               "reciprocal reversed permille permil basis fold kilo mega giga nope false incorrect untrue "
               "rounded estimated".split())
_NO_UNIT |= {f"{stem}{end}" for end in ("th", "ths") for stem in
             "six seven eigh nin ten eleven twelf thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
             "twentie thirtie fortie fiftie hundred thousand million billion".split()}
_NO_UNIT |= {*FUNCTIONS, *GREEK, "sqrt", "infinity"}
_TEXT = re.compile(r"\\text\{([A-Za-z][A-Za-z. /-]{0,60})\}(?:\^\{?([23])\}?)?$")
_PLAIN = re.compile(r"(?<![A-Za-z\\])([A-Za-z]+(?:[ /][A-Za-z]+){0,4}\.?)(?:\^\{?([23])\}?)?$")
_DEGREE = re.compile(r"\^(?:\{\\circ\}|\\circ)(?: ?(?:\\text\{)?([CF])\}?)?$")
_SCALES = {"C": "celsius", "F": "fahrenheit"}
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln)|\\circ")
_LEADING = re.compile(r"([+-]?)\\\$")


def split_unit(text: str) -> tuple[str, frozenset[str], int]:
    r"""(expression, words of its unit, factor by words of size) of a scalar.

    >>> split_unit(r"12\sqrt{13}\text{square cm}")
    ('12\\sqrt{13}', frozenset({'centimeter^2'}), 1)
    """
    words: set[str] = set()
    factor = 1
    if match := _LEADING.match(text):
        text, words = match[1] + text[match.end():].lstrip(), {"dollar"}
    for _ in range(3):
        body, found = _last_unit(text)
        if not found:
            break
        text, words = body, words | found
    for word in words & set(SIZES):
        factor *= SIZES[word]
    if words & {"per", "mph", "kph"}:
        words = words - {"mph", "kph"} | ({"mile", "per", "hour"} if "mph" in words else set()) \
            | ({"kilometer", "per", "hour"} if "kph" in words else set())
    return text, frozenset(words - set(SIZES)), factor


def _last_unit(text: str) -> tuple[str, set[str]]:
    """The text without its last unit, and the words of that; no words where there is none."""
    if text.endswith("%"):
        return text[:-1].rstrip(), {"percent"}
    if text.endswith("\\$"):
        return text[:-2].rstrip(), {"dollar"}
    if (match := _DEGREE.search(text)) and not _FUNCTION.search(text[:match.start()]):
        return text[:match.start()], words_of_unit(f"degree {_SCALES.get(match[1], '')}")
    match = _TEXT.search(text)
    plain = None if match else _PLAIN.search(text)
    if plain:
        body, word = text[:plain.start()], plain[1].rstrip(".").lower()
        known = len(word) > 1 and word in KNOWN
        spaced = body.endswith(" ") and len(word) > 3
        if body.rstrip()[-1:].isdigit() and (known or spaced) or body.endswith(("}", ")", "%")) \
                and (known or len(word) > 3):
            match = plain
    if not match or not text[:match.start()].strip():
        return text, set()
    words = words_of_unit(match[1], match[2])
    return (text[:match.start()].rstrip(" \\"), words) if words else (text, set())


def words_of_unit(text: str, power: str | None = None) -> set[str]:
    """Words of a unit in one form; none where a word is no unit's."""
    found: list[str] = []
    exponent = power
    if text.strip() == "times":  # they are counted; with more words it multiplies
        return {"time"}
    for word in re.split(r"[ /]+", text.replace("/", " per ").replace("-", " ").lower()):
        word = word.strip(".")
        if not word:
            continue
        if word in _NO_UNIT and word not in KNOWN:
            return set()
        if word in ("square", "sq", "cubic", "cu"):
            exponent = "3" if word.startswith("cu") else "2"
            continue
        name = KNOWN.get(word, word if word in SIZES or len(word) < 4 else word.removesuffix("s"))
        found.append(f"{name}^{exponent}" if exponent else name)
        exponent = None
    if exponent and power is None:
        return set()
    return set(found)


def same_unit(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two units agree. One may be left out; where a word is not a known unit's, one may
    say more than the other."""
    if not a or not b or a == b:
        return True
    known = all(word.partition("^")[0] in KNOWN for word in a | b)
    return not known and (a <= b or b <= a)
