r"""latex.py - an answer as written -> the same answer with one spelling for each thing.

    looks only         \left \right \! \displaystyle \boxed, $ signs, ** of Markdown, full stop, spaces   gone
    several spellings  \dfrac \tfrac \cfrac -> \frac   \cdot \times -> *   \le -> \leq   \% -> %
                       signs of Unicode (minus, pi, degree, wide brackets, ...) -> LaTeX's
    thousands          1,\!000   1{,}000   1\,000   1 000   1,000 -> 1000; the last in no bracket, where it
                       would be two numbers, as (1, 000) and 1, 000 are
    slips              \\frac of a text whose backslashes were doubled -> \frac   \quadx -> \quad x
    words              \mbox{...} \textbf{...} \mathrm{...} ... -> \text{...}; without a word in it
                       (\text{B}, \mathbf{7}) it is what it holds

The space in 1 2 stays: it is not 12, and 2 100/101 is a mixed number. A currency sign is \$. Digits are
ASCII. Knows nothing about what the things mean.
"""

from __future__ import annotations

import re

_UNICODE = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u2010": "-", "\u00d7": "*", "\u00b7": "*", "\u22c5": "*",
    "\u00f7": "/", "\u03c0": "\\pi ", "\u221a": "\\sqrt ", "\u00b0": "^\\circ ",
    "\u221e": "\\infty ", "\u2264": "\\leq ", "\u2265": "\\geq ", "\u2260": "\\neq ",
    "\u00b1": "\\pm ", "\u222a": "\\cup ", "\u2208": "\\in ", "\u2248": "\\approx ",
    "\u03b8": "\\theta ", "\u00b2": "^2 ", "\u00b3": "^3 ", "\u00a0": " ", "\u2009": " ",
    "\u20ac": "\\text{euro}", "\u2205": "\\emptyset ", "\u211d": "\\mathbb{R}",
    "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}",
    "\uff08": "(", "\uff09": ")", "\uff0c": ",", "\uff1b": ";", "\uff1a": ":", "\uff1d": "=", "\uff0d": "-"})
_NAMES = {
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "bigg", "Bigg",
                     "displaystyle", "textstyle", "limits", "!", "-", "nolimits", "boxed", "fbox"), ""),
    **dict.fromkeys((",", ";", ":", " ", ">", "quad", "qquad", "enspace", "thinspace"), " "),
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac"),
    **dict.fromkeys(("cdot", "times", "ast"), "*"),
    **dict.fromkeys(("mbox", "textbf", "textnormal", "textrm", "textit", "mathrm", "mathbf",
                     "mathit", "mathsf", "operatorname", "hbox", "texttt", "emph"), "\\text"),
    **dict.fromkeys(("lvert", "rvert", "vert"), "|"),
    **dict.fromkeys(("le", "leqslant"), "\\leq"), **dict.fromkeys(("ge", "geqslant"), "\\geq"),
    "div": "/", "lt": "<", "gt": ">", "ne": "\\neq", "%": "%", "degree": "^\\circ",
    "lbrace": "\\{", "rbrace": "\\}", "varnothing": "\\emptyset", "colon": ":",
    "lbrack": "[", "rbrack": "]", "langle": "(", "rangle": ")",
    "infin": "\\infty", "dbinom": "\\binom", "tbinom": "\\binom"}
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.S)
_THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:(?:(?:,\\! ?|\{,\}|\\,|,)\d{3})+(?!,?\d)"
                        r"|(?: \d{3})+(?![ ,]?\d| ?/| ?\\[dtc]?frac))", re.ASCII)
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z{}%$,!()\[\]])")
_QUAD = re.compile(r"\\q?quad(?=[A-Za-z])")
_TEXT = re.compile(r"\\text *\{([^{}]{0,200})\}")
_WORD = re.compile(r"[A-Za-z]{2}|[A-Za-z]\.[A-Za-z]")
_SPACE = re.compile(r"[\s~]+")
_IDLE = re.compile(r"(?<![^\W_]) | (?![^\W_])")  # any space but that between two words or numbers
_SIGNS = (("**", "**"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_PLAIN_RELATION = (("<=", "\\leq "), (">=", "\\geq "), ("!=", "\\neq "))


def spelling(text: str) -> str:
    r"""The text in one spelling, see the head of the file.

    >>> spelling(r"$\left( 1, \dfrac{1}{2} \right)$.")
    '(1,\\frac{1}{2})'
    """
    text = _stripped(text.translate(_UNICODE))
    if "\\\\" in text and ("\\begin" not in text or "\\\\begin" in text):  # else it ends a row
        text = _DOUBLED.sub(r"\\", text)
    text = _QUAD.sub(r"\\quad ", text)
    for left, right in _SIGNS:
        if text.startswith(left) and text.endswith(right) and len(text) > len(left):
            text = _stripped(text[len(left):-len(right)])
    text = _THOUSANDS.sub(_joined, text)
    for plain, command in _PLAIN_RELATION:
        text = text.replace(plain, command)
    text = _COMMAND.sub(lambda found: _NAMES.get(found[1], found[0]), text)
    text = _TEXT.sub(_words, text)
    text = _SPACE.sub(" ", _dollars(text).replace("\\phantom -", "-"))
    return _IDLE.sub("", _stripped(text))


def _stripped(text: str) -> str:
    text = text.strip()
    while text.endswith((".", ",")) and not text.endswith("\\,"):
        text = text[:-1].rstrip()
    return text


def _joined(found: re.Match[str]) -> str:
    """Digits in threes as one number; with plain commas only where no bracket is open."""
    before = found.string[:found.start()]
    if "," in re.sub(r",\\!|\{,\}|\\,", "", found[0]) \
            and sum(map(before.count, "([{")) > sum(map(before.count, ")]}")):
        return found[0]
    return re.sub(r"[^\d]", "", found[0])


def _words(found: re.Match[str]) -> str:
    """\text{...} with one space between words; its outer commas outside; nothing but what it holds
    where that is no word."""
    inside = _SPACE.sub(" ", found[1]).strip()
    before = found.string[:found.start()].rstrip()
    if len(inside) == 1 and inside.isalpha() and before[-1:].isdigit():
        return f"\\text{{{inside}}}"  # 5 m
    if not _WORD.search(inside):
        return f" {inside} "
    core = inside.strip(" ,;")
    before, _, after = inside.partition(core)
    return f"{before}\\text{{{core}}}{after}"


def _dollars(text: str) -> str:
    r"""One lone $ at either end is a currency sign, \$; others only set a formula off."""
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) == 2 and not (parts[0].strip() and parts[1].strip()):
        return "\\$".join(parts)
    return " ".join(parts)
