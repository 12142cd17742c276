"""How problems and thoughts are said, in English and in Chinese: the closed set of words.

Everything that is ever written about Countdown and arithmetic comes from these tables, so the
vocabulary is closed, and TRANSLATION maps each connective to its counterpart word by word.
Chinese sentences are written with their words separated (the segmentation is ours).
Knows nothing about which problem or which answer; `general.py` has its own sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_NUMBER = 199                    # integers 0..199 are one token each

# Questions. The sorted numbers come first, the target last, in every wording: our choice, it
# makes the problem easy to find for a small model.
COUNTDOWN_QUESTIONS = {
    "en": ("numbers {numbers} target {target}",
           "use {numbers} to make {target}",
           "with {numbers} reach {target}"),
    "zh": ("数字 {numbers} 目标 {target}",
           "用 {numbers} 得到 {target}",
           "把 {numbers} 变成 {target}"),
}
ARITHMETIC_QUESTIONS = {            # (opening with the first number, closing)
    "en": (("start with {first}", "what is the result ?"),
           ("take {first}", "how much is it ?")),
    "zh": (("从 {first} 开始", "结果 是 多少 ？"),
           ("先 取 {first}", "等于 多少 ？")),
}
ARITHMETIC_STEPS = {
    "en": {"+": ("add {n}", "plus {n}"), "-": ("subtract {n}", "minus {n}"),
           "*": ("times {n}", "multiply by {n}")},
    "zh": {"+": ("加 {n}", "再加 {n}"), "-": ("减 {n}", "再减 {n}"),
           "*": ("乘 {n}", "乘以 {n}")},
}
COMMA = {"en": ",", "zh": "，"}
STOP = {"en": ".", "zh": "。"}

# Thoughts. A retry is marked by "wait": this is in the corpus from the start, and said openly.
CONNECTIVES = {
    "en": {"try": ("try",), "no": ("no",), "yes": ("yes",), "give_up": ("stop",),
           "retry": ("wait", "hmm wait", "but wait"), "compute": ("compute",)},
    "zh": {"try": ("试",), "no": ("不对",), "yes": ("对",), "give_up": ("停",),
           "retry": ("等等", "嗯 等等", "但是 等等"), "compute": ("计算",)},
}
RETRY_WEIGHTS = (0.7, 0.15, 0.15)
TRANSLATION = {"en": {"试": "try", "不对": "no", "对": "yes", "停": "stop", "等等": "wait",
                      "嗯": "hmm", "但是": "but", "计算": "compute", "，": ",", "。": "."}}
TRANSLATION["zh"] = {english: chinese for chinese, english in TRANSLATION["en"].items()}
SUMMARY = {"en": "the answer is {box} .", "zh": "答案 是 {box} 。"}

# Words of reflection: the paper's list (arXiv 2501.12948 v2, C.2) and our Chinese counterparts.
REFLECTION_WORDS = frozenset((
    "wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check",
    "等等", "等一下", "错误", "然而", "但是", "重试", "验证", "错", "评估", "检查"))


def reflection_count(text: str) -> int:
    """Number of reflection words in a response, both languages.

    >>> reflection_count("no but wait 等等")
    3
    """
    return sum(word in REFLECTION_WORDS for word in text.lower().split())


def word_language(word: str) -> str | None:
    """"zh" for a word with a Chinese character, "en" for an alphabetic ASCII word, else None
    (digits, operators, punctuation, tags)."""
    if any("\u4e00" <= letter <= "\u9fff" for letter in word):
        return "zh"
    return "en" if word.isascii() and word.isalpha() else None


def translate_connectives(text: str, language: str) -> str:
    """Every connective of the other language replaced by its counterpart; other words stay."""
    table = TRANSLATION[language]
    return " ".join([table.get(word, word) for word in text.split()])


def countdown_questions(numbers: Sequence[int], target: int, language: str) -> tuple[str, ...]:
    """A Countdown problem in every wording of a language."""
    joined = " ".join(map(str, numbers))
    return tuple(form.format(numbers=joined, target=target)
                 for form in COUNTDOWN_QUESTIONS[language])


def arithmetic_question(chain: str, language: str, wording: int) -> str:
    """"30 + 5 * 3" as a question; `wording` picks the frame and, bit by bit, the verbs."""
    words = chain.split()
    frames = ARITHMETIC_QUESTIONS[language]
    opening, closing = frames[wording % len(frames)]
    wording //= len(frames)
    parts = [opening.format(first=words[0])]
    for operator, number in zip(words[1::2], words[2::2]):
        verbs = ARITHMETIC_STEPS[language][operator]
        parts.append(verbs[wording % len(verbs)].format(n=number))
        wording //= len(verbs)
    return f" {COMMA[language]} ".join((*parts, closing))


def words_of(tables: Any) -> list[str]:
    """The words of all sentences in nested tables, placeholders left out; keys are no sentences."""
    if isinstance(tables, str):
        return [word for word in tables.split() if "{" not in word]
    if isinstance(tables, dict):
        tables = tables.values()
    return [word for item in tables for word in words_of(item)]


def task_words() -> list[str]:
    """Every word that Countdown and arithmetic texts can contain, numbers first."""
    tables = (COUNTDOWN_QUESTIONS, ARITHMETIC_QUESTIONS, ARITHMETIC_STEPS, COMMA, STOP,
              CONNECTIVES, SUMMARY)
    return [*map(str, range(MAX_NUMBER + 1)), *"+-*=();", *words_of(tables)]
