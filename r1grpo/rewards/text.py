"""What a completion says: reward functions get plain text, or, where the prompt is a conversation, a
list of one message, as TRL's do. Knows nothing about templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Completion = str | Sequence[Mapping[str, str]]


def said(completion: Completion) -> str:
    """The text of a completion.

    >>> said([{"role": "assistant", "content": "4"}])
    '4'
    """
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def texts(completions: Sequence[Completion]) -> list[str]:
    """The text of each completion."""
    return [said(completion) for completion in completions]
