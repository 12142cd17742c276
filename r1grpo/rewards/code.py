"""Code: 1 if the program in a completion passes every test of its row, 0 if not, or with partial=True the
share that it passes; None for rows without tests. The program runs in the sandbox
(verifiers/sandbox.py), at the level that is asked for and no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..verifiers import Verdict, verify_code
from ..verifiers.sandbox import LANGUAGES, Limits, SandboxUnavailable, require_level
from .pooled import Pooled
from .text import Completion, texts

_START_SECONDS = 20.0  # of a sandbox on a busy machine, and of its end


def code_reward(prompts: Sequence[Any], completions: Sequence[Completion],
                completion_ids: Sequence[Sequence[int]], *, tests: Sequence[Sequence[Any] | None],
                prefilled: Sequence[bool] | None = None, level: str = "full",
                code_language: str = "python", partial: bool = False, seconds: float = 5.0,
                total_seconds: float = 15.0, accept_no_sandbox: bool = False,
                **_: Any) -> list[Verdict | None]:
    """The verdicts; with partial they carry the share of tests that pass, which is the reward then.
    Column: tests (code_tests.py). seconds: of one test, total_seconds: of all tests of a program."""
    limits = Limits(seconds=seconds, total_seconds=total_seconds)
    return [None if wanted is None else verify_code(
                text, wanted, level=level, language=code_language, partial=partial, limits=limits,
                accept_no_sandbox=accept_no_sandbox, inside=inside)
            for text, wanted, inside in zip(texts(completions), tests, prefilled or [False] * len(tests),
                                            strict=True)]


def get_code_reward(level: str = "full", code_language: str = "python", partial: bool = False,
                    seconds: float = 5.0, total_seconds: float = 15.0,
                    accept_no_sandbox: bool = False) -> Pooled:
    """code_reward in worker processes. ValueError where this machine lacks the sandbox level, so before
    anything runs. The worker's own deadline lies behind all that a program may take: a verdict comes
    from the sandbox, unless that fails."""
    if code_language not in LANGUAGES:
        raise ValueError(f"code_language {code_language!r} is none of {', '.join(LANGUAGES)}")
    limits = Limits(seconds=seconds, total_seconds=total_seconds)
    try:
        require_level(level, accept_no_sandbox)
    except SandboxUnavailable as error:
        raise ValueError(str(error)) from error
    compiling = limits.compile_seconds if code_language != "python" else 0.0
    reward = Pooled(code_reward, level=level, code_language=code_language, partial=partial, seconds=seconds,
                    total_seconds=total_seconds, accept_no_sandbox=accept_no_sandbox,
                    deadline=total_seconds + compiling + _START_SECONDS)  # the pool's, for each completion
    reward.sandbox = level  # type: ignore[attr-defined]  # written beside its verdicts
    return reward
