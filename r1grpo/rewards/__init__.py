"""Rule rewards: f(prompts, completions, completion_ids, **columns) -> list[float | None | Verdict].

Columns are the data set's columns by name, one list each (`Problem.row` makes them); None means
"not applicable to this row". What is right about an answer is decided in `verifiers`, what its
shape must be in `tokenizer`; here they only become numbers. get_... make a reward function of its
options. Knows nothing about models.
"""

from .accuracy import accuracy_reward, math_reward, reference_problem
from .code import code_reward, get_code_reward
from .format import format_reward, think_format_reward
from .gym import gym_reward
from .judge import get_judge_reward
from .language import get_language_reward, language_reward, language_share, language_shares
from .length import (get_cosine_scaled_reward, get_group_length_reward, get_length_scaled_reward,
                     get_soft_overlong_punishment)
from .pooled import Pooled
from .repetition import DenseRepetitionPenalty, get_repetition_penalty_reward
from .script import script_share

__all__ = ["DenseRepetitionPenalty", "Pooled", "accuracy_reward", "code_reward",
           "format_reward", "get_code_reward", "get_cosine_scaled_reward",
           "get_group_length_reward", "get_judge_reward", "get_language_reward", "get_length_scaled_reward",
           "get_repetition_penalty_reward", "get_soft_overlong_punishment", "gym_reward", "language_reward",
           "language_share", "language_shares", "math_reward", "reference_problem",
           "script_share", "think_format_reward"]
