"""pooled.py - a reward function that is called in worker processes (verifiers/pool.py).

    @Pooled                                       at the top level of a module, so that a worker finds it
    def passes_tests(prompts, completions, completion_ids, *, tests, **columns): ...

    rewards = [format_reward, Pooled(graded, level="full")]      with options, as plain data

A trainer asks it about each completion as it ends, while others are still being sampled, and always one
at a time: every list that it is handed has one entry, and so has the list that it returns. The entry is
a number, None or a Verdict. For what is slow, or may hang or crash. Called itself, it is the function.
Knows nothing about processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..verifiers.pool import import_name


class Pooled:
    """function: one at the top level of a module (ValueError for any other); options: its keywords."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.import_name = import_name(function)
        self.options = options
        self._function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **columns: Any) -> Any:
        return self._function(*args, **columns, **self.options)
