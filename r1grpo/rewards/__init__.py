"""Rule rewards: f(prompts, completions, completion_ids, **columns) -> list[float | None].

Columns are the data set's columns by name, one list each (`Problem.row` makes them); None means
"not applicable to this row". What is right about an answer is decided in `verifiers`, what its
shape must be in `tokenizer`; here they only become numbers. Knows nothing about models.
"""

from .accuracy import accuracy_reward, verdicts
from .format import format_reward, think_format_reward
from .language import language_reward, language_share, language_shares

__all__ = ["accuracy_reward", "format_reward", "language_reward", "language_share",
           "language_shares", "think_format_reward", "verdicts"]
