"""preferences.py - what a generative judge makes of responses: the rows that RewardTrainer learns from.

    rows      prompt (text or messages), responses (whole texts); finish_reasons ('stop' where missing)
    pairs     prompt, chosen, rejected, chosen_finish_reason, rejected_finish_reason, judge
    labels    prompt, completion, label (1 safe, 0 not), finish_reason, judge

Pairs as in DeepSeek-R1 (arXiv 2501.12948v2, 3.1): every pair of a prompt's responses is judged n = 4 times,
in either order as often, each verdict is a number from 2 (chosen much better) to -2, and a pair stays
where their mean is above 1 and the lengths are comparable. A judge that prefers what it reads first
thereby prefers nothing. The paper shuffles the orders and prints no bound on lengths: both are ours. Pairs
are judged by the text behind </think>, labels by all of it. Other columns of a row stay; `judge` says who
judged, and how.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .brief import brief
from .judge import SCALE, Judge, JudgeError, Refused
from .tokenizer import split_thinking

Row = dict[str, Any]
MAX_FAILURES = 20  # questions in a row without a verdict: the judge is gone


@dataclass(frozen=True)
class Judged:
    """rows: what is kept, in the order of what was judged; counts: kept, and why the rest is not."""

    rows: list[Row]
    counts: dict[str, int]


def judge_pairs(judge: Judge, rows: Iterable[Row], *, n: int = 4, margin: float = 1.0,
                length_ratio: float = 1.5, threads: int = 4) -> Judged:
    """Preference pairs. n: judgements of a pair, an even number; margin: of their mean, which must be
    above it; length_ratio: of the longer text to the shorter, in characters, at most. JudgeError where
    the judge fails on and on."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 2 or n % 2:
        raise ValueError(f"judge_pairs: n is {brief(n)}, expected an even number: both orders as often")
    if not 0 <= margin < 2 or not length_ratio >= 1:
        raise ValueError(f"judge_pairs: margin is {brief(margin)}, expected 0 up to 2, and length_ratio "
                         f"{brief(length_ratio)}, expected 1 or more")
    counts: Counter[str] = Counter()
    pairs = []
    for row, answers in _checked(rows):
        seen = {}  # by what the judge and the reward model see; the first of those that share it
        for text, end in answers:
            seen.setdefault(split_thinking(text)[1], (text, end))
        for one, two in itertools.combinations(seen, 2):
            short, long = sorted((len(one), len(two)))
            if short == 0 or long > length_ratio * short:
                counts["lengths"] += 1
            else:
                pairs.append((row, (one, *seen[one]), (two, *seen[two])))

    def judged(pair: tuple[Row, Any, Any]) -> Row | None:
        row, one, two = pair
        verdicts = [judge.compare(row["prompt"], *((two[0], one[0]) if i % 2 else (one[0], two[0])), i // 2)
                    for i in range(n)]
        gap = sum(-SCALE[said] if i % 2 else SCALE[said] for i, said in enumerate(verdicts)) / n
        if abs(gap) <= margin:
            return None
        (_, chosen, chosen_end), (_, rejected, rejected_end) = (one, two) if gap > 0 else (two, one)
        firsts = ("chosen", "rejected") if gap > 0 else ("rejected", "chosen")
        return {**row, "chosen": chosen, "rejected": rejected, "chosen_finish_reason": chosen_end,
                "rejected_finish_reason": rejected_end,
                "judge": {"model": judge.model, "gap": abs(gap), "verdicts": [
                    {"A": firsts[i % 2], "verdict": said} for i, said in enumerate(verdicts)]}}

    return _all(judged, pairs, counts, threads)


def judge_labels(judge: Judge, rows: Iterable[Row], *, threads: int = 4) -> Judged:
    """Responses labelled safe or not, each once."""
    responses = [(row, text, end) for row, answers in _checked(rows) for text, end in dict.fromkeys(answers)]

    def judged(response: tuple[Row, str, str]) -> Row:
        row, text, end = response
        return {**row, "completion": text, "label": int(judge.is_safe(row["prompt"], text)),
                "finish_reason": end, "judge": {"model": judge.model}}

    return _all(judged, responses, Counter(), threads)


def _checked(rows: Iterable[Row]) -> Iterator[tuple[Row, list[tuple[str, str]]]]:
    """(the row without its responses, (response, finish reason) of each)."""
    for i, row in enumerate(rows):
        responses = row.get("responses")
        if "prompt" not in row or not isinstance(responses, (list, tuple)) \
                or not all(isinstance(one, str) for one in responses):
            raise ValueError(f"row {i} needs a 'prompt' and 'responses', a list of texts")
        ends = row.get("finish_reasons") or ["stop"] * len(responses)
        if len(ends) != len(responses):
            raise ValueError(f"row {i} has {len(responses)} responses and {len(ends)} finish_reasons")
        kept = {key: value for key, value in row.items() if key not in ("responses", "finish_reasons")}
        yield kept, list(zip(responses, ends))


def _all(judged: Callable[[Any], Row | None], items: Sequence[Any], counts: Counter[str],
         threads: int) -> Judged:
    """What judged makes of the items, several at a time, in their order; None is one below the margin."""

    def tried(item: Any) -> Row | None | JudgeError:
        try:
            return judged(item)
        except JudgeError as error:
            return error

    kept, failures = [], 0
    executor = ThreadPoolExecutor(threads, thread_name_prefix="judge")
    try:
        for found in executor.map(tried, items):
            failed = isinstance(found, JudgeError) and not isinstance(found, Refused)
            failures = failures + 1 if failed else 0
            if isinstance(found, JudgeError):
                if failures == MAX_FAILURES:
                    raise JudgeError(found.reason, f"no verdict {failures} times in a row: {found}")
                counts["refused" if isinstance(found, Refused) else found.reason] += 1
            elif found is None:
                counts["margin"] += 1
            else:
                kept.append(found)
    finally:
        executor.shutdown(cancel_futures=True)
    return Judged(kept, {"kept": len(kept), **counts})
