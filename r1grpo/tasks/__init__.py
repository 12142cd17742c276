"""The built-in problems: Countdown, arithmetic in words, and general prompts.

    sample_problems("train", 512, seed=0)       verifiable problems, a function of its arguments
    sample_general("train", 128, seed=0)        general prompts
    make_tokenizer()                            the closed vocabulary of all of them

Knows nothing about models or training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from ..tokenizer import WordTokenizer
from . import arithmetic, countdown
from .draw import shuffled
from .general import FAMILIES, draw_general, general_words, is_refusal
from .problem import LANGUAGES, SPLITS, Problem, split_of
from .wording import reflection_count, task_words, word_language

__all__ = ["DEFAULT_MIX", "FAMILIES", "LANGUAGES", "Problem", "SPLITS", "draw_general",
           "is_refusal", "make_tokenizer", "reflection_count", "sample_general",
           "sample_problems", "split_of", "word_language"]

DEFAULT_MIX = {"countdown": 0.75, "arithmetic": 0.25}
WORDINGS = 256              # more than any question has: the rest by modulo


def make_tokenizer() -> WordTokenizer:
    """The tokenizer of the built-in pipeline."""
    return WordTokenizer([*task_words(), *general_words()])


def sample_problems(split: str, n: int, seed: int, mix: Mapping[str, float] = DEFAULT_MIX,
                    zh_share: float = 0.5) -> list[Problem]:
    """n verifiable problems of a split, in random order and wording.

    `mix` is met to the nearest problem, not on average. Keys are distinct while the split lasts: a
    split that is smaller than its share is gone through again in a new order.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    unknown = set(mix) - set(DEFAULT_MIX)
    if unknown or not sum(mix.values()) > 0.0:
        raise ValueError(f"mix {dict(mix)!r} does not share out {', '.join(DEFAULT_MIX)}")
    rng = random.Random(seed)
    arithmetic_count = round(n * mix.get("arithmetic", 0.0) / sum(mix.values()))
    problems = [
        *(countdown.make_countdown(*item, _language(rng, zh_share), int(rng.random() * WORDINGS))
          for item in _countdown_items(rng, split, n - arithmetic_count)),
        *(arithmetic.make_arithmetic(chain, _language(rng, zh_share), int(rng.random() * WORDINGS))
          for chain in _arithmetic_chains(rng, split, arithmetic_count))]
    return shuffled(rng, problems)


def sample_general(split: str, n: int, seed: int, zh_share: float = 0.5) -> list[Problem]:
    """n general prompts of a split; keys may repeat in another wording or language."""
    rng = random.Random(seed)
    return [draw_general(rng, split, _language(rng, zh_share), FAMILIES[i % len(FAMILIES)])
            for i in range(n)]


def _language(rng: random.Random, zh_share: float) -> str:
    return "zh" if rng.random() < zh_share else "en"


def _countdown_items(rng: random.Random, split: str, count: int
                     ) -> list[tuple[tuple[int, ...], int]]:
    if split == "ood":
        found: dict[str, tuple[tuple[int, ...], int]] = {}
        while len(found) < count:
            item = countdown.draw_ood(rng)
            found[countdown.countdown_key(*item)] = item
        return list(found.values())
    items: list[tuple[tuple[int, ...], int]] = []
    while len(items) < count:
        items += shuffled(rng, list(countdown.split_problems(split)))
    return items[:count]


def _arithmetic_chains(rng: random.Random, split: str, count: int) -> list[str]:
    chains: dict[str, None] = {}
    while len(chains) < count:
        chains[arithmetic.draw_split_chain(rng, split)] = None
    return list(chains)
