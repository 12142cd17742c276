"""Which words of free text are in a language's script. What text is not prose is left out: fenced and
inline code, LaTeX, tags, addresses, digits. Only what is closed is: an opening mark without its end
hides nothing.

A word is a run of letters of one script with its marks and inner apostrophes; in scripts that are
written without spaces every letter is one (our reading of arXiv 2501.12948 v2, eq. 7, which does
not say what a word is). A single letter of an alphabet is a symbol, x or n, and no word.

    share = words in a script of the language / words

Linear in the text. Knows no language from another that shares its script: language.py.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# the first word of a letter's Unicode name -> its script; other names are scripts themselves
_SCRIPTS = {"CJK": "HAN", "IDEOGRAPHIC": "HAN", "MODIFIER": "", "MATHEMATICAL": ""}
_WIDTHS = ("FULLWIDTH", "HALFWIDTH")
UNSPACED = {"HAN", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}

_LATIN = ("af az ca cs cy da de en es et eu fi fr ga hr hu id is it lt lv ms nb nl nn no pl pt ro sk sl "
          "so sq sv sw tl tr vi").split()
SCRIPTS: dict[str, frozenset[str]] = {
    **{name: frozenset({"LATIN"}) for name in _LATIN},
    **{name: frozenset({"CYRILLIC"}) for name in ("be", "bg", "kk", "mk", "mn", "ru", "uk")},
    **{name: frozenset({"ARABIC"}) for name in ("ar", "fa", "ur")},
    **{name: frozenset({"DEVANAGARI"}) for name in ("hi", "mr", "ne")},
    "zh": frozenset({"HAN"}), "ja": frozenset({"HAN", "HIRAGANA", "KATAKANA"}),
    "ko": frozenset({"HANGUL"}), "el": frozenset({"GREEK"}), "he": frozenset({"HEBREW"}),
    "hy": frozenset({"ARMENIAN"}), "ka": frozenset({"GEORGIAN"}), "bn": frozenset({"BENGALI"}),
    "gu": frozenset({"GUJARATI"}), "kn": frozenset({"KANNADA"}), "ml": frozenset({"MALAYALAM"}),
    "pa": frozenset({"GURMUKHI"}), "ta": frozenset({"TAMIL"}), "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}), "lo": frozenset({"LAO"}), "km": frozenset({"KHMER"}),
    "my": frozenset({"MYANMAR"}), "am": frozenset({"ETHIOPIC"})}

_CLOSED = (("```", "```"), ("~~~", "~~~"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"))
_ENVIRONMENT = re.compile(r"\\begin\{([A-Za-z]{1,20}\*?)\}")
_INLINE = re.compile(r"`[^`\n]{1,400}`|(?<![\\$])\$(?![\s$])[^$\n]{0,400}(?<=[^\s\\])\$(?!\d)")
_MARKS = re.compile(r"</?[A-Za-z][^<>\n]{0,100}>|\b(?:https?://|www\.)\S+"
                    r"|\\(?:begin|end)\{[^{}\n]{0,30}\}|\\[A-Za-z]+\*?")
_LETTERS = re.compile(r"[^\W\d_](?:[^\W\d_]|['’](?=[^\W\d_]))*")


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """LATIN, HAN, CYRILLIC ...; "" for what is no letter.

    >>> script_of("д"), script_of("中"), script_of("7")
    ('CYRILLIC', 'HAN', '')
    """
    if not letter.isalpha():
        return ""
    first, *rest = re.split("[ -]", unicodedata.name(letter, ""))
    name = rest[0] if first in _WIDTHS else first
    return _SCRIPTS.get(name, name)


def prose(text: str) -> str:
    r"""The text without code, LaTeX, tags and addresses.

    >>> prose("so $x^2$ is `f(x)` in <b>short</b> \\frac{1}{2}").split()
    ['so', 'is', 'in', 'short', '{1}{2}']
    """
    for opening, closing in _CLOSED:
        text = _without(text, opening, closing)
    return _MARKS.sub(" ", _INLINE.sub(" ", _without_environments(text)))


def _without(text: str, opening: str, closing: str) -> str:
    """Without what stands between two marks, and them."""
    kept, at = [], 0
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept.append(text[at:start])
        at = end + len(closing)
    return " ".join([*kept, text[at:]])


def _without_environments(text: str) -> str:
    r"""Without \begin{name} ... \end{name}, by the first end of that name."""
    kept, at, endless = [], 0, set()
    while match := _ENVIRONMENT.search(text, at):
        closing = f"\\end{{{match[1]}}}"
        end = -1 if match[1] in endless else text.find(closing, match.end())
        if end < 0:
            endless.add(match[1])
            kept.append(text[at:match.end()])
            at = match.end()
        else:
            kept.append(text[at:match.start()])
            at = end + len(closing)
    return " ".join([*kept, text[at:]])


def words(text: str) -> list[tuple[str, str]]:
    """(word, script) of each word of prose, in order.

    >>> words("don't 不对 x")
    [("don't", 'LATIN'), ('不', 'HAN'), ('对', 'HAN')]
    """
    if not text.isascii():  # marks that are no part of a letter would cut words
        text = "".join([one for one in unicodedata.normalize("NFC", text)
                        if unicodedata.category(one)[0] != "M"])
    found = []
    for run in _LETTERS.findall(text):
        for word, script in _by_script(run):
            if script in UNSPACED:
                found += [(letter, script) for letter in word]
            elif script and len(word) > 1:
                found.append((word, script))
    return found


def _by_script(run: str) -> list[tuple[str, str]]:
    """A run of letters cut where its script changes; an apostrophe changes nothing."""
    cut, first, script = [], 0, script_of(run[0])
    for at, letter in enumerate(run):
        new = script if letter in "'’" else script_of(letter)
        if new != script:
            cut.append((run[first:at], script))
            first, script = at, new
    return [*cut, (run[first:], script)]


def scripts_of(language: str) -> frozenset[str]:
    """The scripts that a language (ISO 639-1) is written in; ValueError for one we do not know."""
    if language not in SCRIPTS:
        raise ValueError(f"language {language!r} is none that a script is known for: "
                         f"{', '.join(sorted(SCRIPTS))}")
    return SCRIPTS[language]


def script_share(text: str, language: str) -> float | None:
    """Share of the words of a text that are in a language's script; None without words."""
    wanted = scripts_of(language)
    found = [script in wanted for _, script in words(prose(text))]
    return sum(found) / len(found) if found else None
