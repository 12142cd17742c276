"""Rewards by name, as files of options and command lines have them: name and options -> function.

    reward = ["cosine", "language"]
    [reward_options.cosine]
    max_value_correct = 1.0

The options are the keywords of the function that makes the reward. Where one means the longest
completion and is not given, it is the run's. `correct`, of those that ask whether an answer is right,
is the name of another reward: of one of the run, whose verdicts are taken, or of one that is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..brief import brief
from ..toml import ConfigError, suggest
from .accuracy import accuracy_reward, math_reward
from .code import get_code_reward
from .format import think_format_reward
from .gym import gym_reward
from .judge import get_judge_reward
from .language import get_language_reward
from .length import (get_cosine_scaled_reward, get_group_length_reward, get_length_scaled_reward,
                     get_soft_overlong_punishment)
from .pooled import Pooled
from .repetition import DenseRepetitionPenalty, get_repetition_penalty_reward

Reward = Callable[..., list[float | None]]

MAKERS: dict[str, Callable[..., Any]] = {
    "accuracy": lambda: accuracy_reward, "math": lambda: Pooled(math_reward), "gym": lambda: Pooled(gym_reward),
    "code": get_code_reward, "format": lambda: think_format_reward, "judge": get_judge_reward,
    "language": get_language_reward, "cosine": get_cosine_scaled_reward,
    "length_scaled": get_length_scaled_reward, "soft_overlong": get_soft_overlong_punishment,
    "group_length": get_group_length_reward, "repetition": get_repetition_penalty_reward,
    "dense_repetition": DenseRepetitionPenalty}

# columns of which a row needs one
COLUMNS = {name: ("answer", "solution") for name in (
    "accuracy", "math", "cosine", "length_scaled", "group_length")} | {
        "language": ("language",), "gym": ("gym",), "code": ("tests",)}

_LIMIT = {"cosine": "max_len", "length_scaled": "max_len", "soft_overlong": "max_completion_len"}


def named_reward(name: str, options: Mapping[str, Any], longest: int | None,
                 find: Callable[[str], Reward]) -> Reward:
    """The reward of a name in MAKERS. longest: tokens of the longest completion, None where it is no
    single number; find: what a name in `correct` stands for, a function or, of a reward of the run, its
    __name__. ConfigError naming what cannot be."""
    takes = inspect.signature(MAKERS[name]).parameters
    for key in options:
        if key not in takes:
            raise ConfigError(f"reward_options.{name}.{brief(key).strip(chr(39))}: {name} takes "
                              f"{', '.join(takes) or 'no options'}{suggest(key, takes)}")
    given = dict(options)
    if name in _LIMIT and _LIMIT[name] not in given:
        if longest is None:
            raise ConfigError(f"reward {name!r} needs reward_options.{name}.{_LIMIT[name]}: this run has "
                              f"no single max_completion_length")
        given[_LIMIT[name]] = longest
    for key, one in takes.items():
        if one.default is one.empty and key not in given:
            raise ConfigError(f"reward {name!r} needs reward_options.{name}.{key}")
        if key in given and (wrong := _unlike(given[key], one.default)):
            raise ConfigError(f"reward_options.{name}.{key} is {brief(given[key])}, expected {wrong}")
    if isinstance(given.get("correct"), str):
        given["correct"] = find(given["correct"])
        if isinstance(given["correct"], Pooled):
            raise ConfigError(f"reward_options.{name}.correct: {brief(options['correct'])} works in other "
                              f"processes, so it must be among the rewards itself (its weight may be 0)")
    try:
        return MAKERS[name](**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward {name!r}: {error}") from error


def _unlike(value: Any, default: Any) -> str | None:
    """What an option with this default expects, where the value is nothing of it: "no" is true to Python."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        return None if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number"
    return None
