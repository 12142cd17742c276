"""Language by script: what is prose, what is a word, which script; passages and a detector."""

import random
import sys
import unicodedata

import pytest

from r1grpo.rewards import (get_language_reward, language_reward, language_shares,
                            script_share)
from r1grpo.rewards.language import detected_share
from r1grpo.rewards.script import SCRIPTS, prose, script_of, words


def share(thought, language, **columns):
    text = f"<think>{thought}</think> The answer is four."
    return language_reward(["p"], [text], [[1]], language=[language], **columns)[0]


@pytest.mark.parametrize("thought, language, want", [
    ("So the answer, I think, isn't 4.", "en", 1.0),
    ("Let's see: 所以 ok", "en", 3 / 5), ("所以 x = 4，答案是 y", "zh", 1.0),
    ("这是 four", "zh", 2 / 3), ("Это ответ: four", "ru", 2 / 3), ("τὸ ἀποτέλεσμα", "el", 1.0),
    ("東京タワーへ行く", "ja", 1.0), ("東京タワーへ行く", "zh", 3 / 8), ("한국어 문장 okay", "ko", 2 / 3),
    ("नमस्ते दुनिया", "hi", 1.0), ("naïve cafe\u0301 façade", "fr", 1.0)])
def test_words_by_script(thought, language, want):
    assert share(thought, language) == pytest.approx(want)


@pytest.mark.parametrize("hidden", [
    "```python\nprint('你好 世界')\n```", "`你好`", "$你好$", "$$\n你 好\n$$", r"\( 你 \)", r"\[ 你好 \]",
    r"\begin{align*} 你好 \\ 世界 \end{align*}", "<tag 你好>", "https://例子.com/你好", "12 345 3.5%"])
def test_what_is_no_prose_is_left_out(hidden):
    assert share(f"three words here {hidden} and three more", "en") == 1.0
    assert share(hidden, "en") == 0.0  # nothing said: nothing earned


@pytest.mark.parametrize("opening", ["```", "`", "$", "$$", "\\(", "\\[", "\\begin{align}", "<"])
def test_an_opening_mark_alone_hides_nothing(opening):
    assert script_share(f"one two {opening} 你好", "en") == pytest.approx(0.5)


def test_prices_are_no_formulas():
    assert prose("from $5 to $6 a piece").split() == ["from", "$5", "to", "$6", "a", "piece"]


def test_an_empty_chain_scores_nothing_and_has_no_share():
    assert share("", "en") == 0.0 and share("7 + 5 = 12", "zh") == 0.0
    assert script_share("", "en") is None and script_share("x + 1", "en") is None


def test_the_share_is_that_of_the_words_put_in_whatever_stands_between():
    """Against counting: words of three scripts, and between them what is no word, in any order."""
    said = {"en": ["first", "we", "add", "don't"], "ru": ["сначала", "мы", "сложим"], "zh": ["先", "相加", "所以我们"]}
    hidden = ["`x = 你好`", r"$\frac{ab}{слово}$", "12,345.6", "<b>", "</b>", r"\alpha", "```py\nprint('да')\n```",
              "x", r"\[ слово \]", r"\begin{align} two &= 二 \end{align}", "https://a.example/два", "=", "5%", "¿"]
    rng = random.Random(0)
    for _ in range(300):
        counts, pieces = dict.fromkeys(said, 0), []
        for _ in range(rng.randint(0, 25)):
            language = rng.choice([*said, None])
            pieces.append(rng.choice(hidden if language is None else said[language]))
            if language is not None:
                counts[language] += len(pieces[-1]) if language == "zh" else 1
        total = sum(counts.values())
        for language, count in counts.items():
            assert share(" ".join(pieces), language) == (count / total if total else 0.0), pieces


def test_an_unknown_language_is_refused_as_a_reward_and_left_out_as_a_figure():
    call = (["p"], ["<think>one two</think>"], [[1]])
    with pytest.raises(ValueError, match="'python'"):
        language_reward(*call, language=["python"])
    assert language_shares(*call, language=["python"]) == [None]
    assert language_reward(*call, language=[None]) == [None]


def test_scripts_are_those_of_the_letters_names():
    for letter in map(chr, range(0x10000)):
        name = unicodedata.name(letter, "")
        if letter.isalpha() and name.split()[0] in ("LATIN", "CYRILLIC", "GREEK", "HANGUL", "ARABIC"):
            assert script_of(letter) == name.split()[0]
        if not letter.isalpha():
            assert script_of(letter) == ""
    assert [script_of(one) for one in "中々ーﾃＡ"] == ["HAN", "HAN", "KATAKANA", "KATAKANA", "LATIN"]
    known = {script_of(chr(code)) for code in range(0x10000)}
    assert {script for scripts in SCRIPTS.values() for script in scripts} <= known


def test_words_of_mixed_runs():
    assert words("don't stop我们go x 3D") == [("don't", "LATIN"), ("stop", "LATIN"), ("我", "HAN"),
                                           ("们", "HAN"), ("go", "LATIN")]


@pytest.mark.parametrize("text", [
    "$a " * 60_000, "`" * 200_000, "\\begin{a}" * 20_000, "\\begin{a}\\begin{b}" * 10_000,
    "<a" * 100_000, "a'" * 100_000, "\\[" * 100_000, "." * 200_000, "aд" * 100_000])
def test_hostile_text_has_its_answer(text):
    """Within the test's patience: every step is linear in the text."""
    assert detected_share(text, "en", lambda passage: None) in (None, 0.0, 1.0)


# ---- a detector ---------------------------------------------------------------------------------

ENGLISH = "We first add the two numbers and then we divide the sum by three."
GERMAN = "Zuerst addieren wir die beiden Zahlen und dann teilen wir die Summe durch drei."


def by_words(passage):
    found = {word.lower() for word, _ in words(passage)}
    return "de" if found & {"wir", "und"} else "en" if found & {"we", "the"} else None


def test_a_detector_tells_languages_of_one_script_apart():
    n, m = len(words(ENGLISH)), len(words(GERMAN))
    assert detected_share(f"{ENGLISH} {GERMAN}", "en", by_words) == pytest.approx(n / (n + m))
    assert detected_share(f"{ENGLISH} {GERMAN}", "de", by_words) == pytest.approx(m / (n + m))
    assert detected_share(f"{ENGLISH} 你好", "en", by_words) == pytest.approx(n / (n + 2))
    assert detected_share("hm so okay", "fr", by_words) == 1.0  # it cannot say: the script decides
    assert detected_share("", "en", by_words) is None


def test_short_sentences_are_asked_about_together():
    asked = []
    detected_share("So. Yes. Then 4. " * 10 + "End.", "en", lambda one: asked.append(one))
    assert all(len(words(one)) >= 8 for one in asked) and len(asked) == 3


def test_without_candidates_it_is_the_script_and_lingua_is_not_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    assert get_language_reward() is language_reward
    with pytest.raises(ImportError, match=r"r1grpo\[languages\]"):
        get_language_reward(["en", "de"])


@pytest.mark.parametrize("candidates, words_", [(["en", "xx"], "'xx'"), (["en"], "at least two")])
def test_candidates_that_cannot_be(candidates, words_):
    with pytest.raises(ValueError, match=words_):
        get_language_reward(candidates)


def test_lingua():
    pytest.importorskip("lingua")
    reward = get_language_reward(["en", "de", "fr"])
    assert reward.__name__ == "language_reward"
    text = f"<think>{ENGLISH} {GERMAN}</think>"
    got = reward(["p"] * 3, [text] * 3, [[1]] * 3, language=["en", "de", "fr"])
    n, m = len(words(ENGLISH)), len(words(GERMAN))
    assert got == pytest.approx([n / (n + m), m / (n + m), 0.0])
