"""judge.py - how a generative judge is asked about responses: JudgeConfig of `r1grpo judge`."""

from __future__ import annotations

from .checks import require, run_config


@run_config
class JudgeConfig:
    """Options of preferences.judge_pairs and of the Judge behind it."""

    url: str = ""  # what /chat/completions is added to
    model: str = ""  # as the endpoint calls it
    key_env: str | None = None  # the environment variable with the key, so that no file has it
    n: int = 4  # judgements of a pair; DeepSeek-R1's number
    margin: float = 1.0  # of their mean, which must be above it; DeepSeek-R1's
    length_ratio: float = 1.5  # of the longer text to the shorter, at most; ours
    threads: int = 4  # questions at a time
    timeout: float = 60.0  # seconds of a request
    retries: int = 4
    deadline: float = 300.0  # seconds of a question with its retries
    max_tokens: int = 4096  # of a reply
    cache: str | None = None  # file of verdicts, which runs may share; None: DIR/verdicts.jsonl

    def __post_init__(self) -> None:
        require(self, {
            "n must be an even number above 0: both orders as often": self.n > 0 and self.n % 2 == 0,
            "margin must be 0 or more and below 2": 0 <= self.margin < 2,
            "length_ratio must be at least 1": self.length_ratio >= 1,
            "threads must be at least 1": self.threads >= 1,
        })
