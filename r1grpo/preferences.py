"""preferences.py - what a generative judge makes of responses: the rows that RewardTrainer learns from.

    rows      prompt (text or messages), responses (whole texts); finish_reasons ('stop' where missing)
              or prompt, completion of each sample, as runs write them: with_responses
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
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .brief import brief
from .judge import SCALE, Judge, JudgeError, Refused
from .tokenizer import THINK, split_thinking

Row = dict[str, Any]
Tell = Callable[[int], None]
MAX_FAILURES = 20  # questions in a row without a verdict: the judge is gone
_OF_A_SAMPLE = {"completion", "completion_ids", "prompt_ids", "logprobs", "finish_reason", "prefilled", "rewards"}


@dataclass(frozen=True)
class Judged:
    """rows: what is kept, in the order of what was judged; counts: kept, and why the rest is not."""

    rows: list[Row]
    counts: dict[str, int]


def with_responses(rows: Iterable[Row]) -> list[Row]:
    """Rows of one sample each (prompt, completion; finish_reason, prefilled: the prompt opened the thought) as
    rows of a prompt and its whole responses, with the columns that all of them share; rows that have responses
    as they are. ValueError for any other."""
    done: dict[Any, Row] = {}
    for i, row in enumerate(rows):
        if "responses" in row:
            done[i] = row
            continue
        if "prompt" not in row or not isinstance(row.get("completion"), str):
            raise ValueError(f"row {i} needs a 'prompt' and 'responses', a list of texts, or a 'completion'")
        group = done.setdefault(json.dumps(row["prompt"]), {**row, "responses": [], "finish_reasons": []})
        group["responses"].append(f"{THINK}\n{row['completion']}" if row.get("prefilled") else row["completion"])
        group["finish_reasons"].append(row.get("finish_reason", "stop"))
        for name in [name for name in group.keys() - {"responses", "finish_reasons"}
                     if name in _OF_A_SAMPLE or group[name] != row.get(name)]:
            del group[name]
    found = list(done.values())
    list(_checked(found))
    return found


def judge_pairs(judge: Judge, rows: Iterable[Row], *, n: int = 4, margin: float = 1.0,
                length_ratio: float = 1.5, threads: int = 4, tell: Tell = lambda done: None) -> Judged:
    """Preference pairs. n: judgements of a pair, an even number; margin: of their mean, which must be
    above it; length_ratio: of the longer text to the shorter, in characters, at most; tell: called now
    and then with the number of rows that are done, and may raise. JudgeError where the judge fails on and
    on."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 2 or n % 2:
        raise ValueError(f"judge_pairs: n is {brief(n)}, expected an even number: both orders as often")
    if not 0 <= margin < 2 or not length_ratio >= 1:
        raise ValueError(f"judge_pairs: margin is {brief(margin)}, expected 0 up to 2, and length_ratio "
                         f"{brief(length_ratio)}, expected 1 or more")
    counts: Counter[str] = Counter()
    pairs = []
    for i, (row, answers) in enumerate(_checked(rows)):
        seen = {}  # by what the judge and the reward model see; the first of those that share it
        for text, end in answers:
            seen.setdefault(split_thinking(text)[1], (text, end))
        for one, two in itertools.combinations(seen, 2):
            short, long = sorted((len(one), len(two)))
            if short == 0 or long > length_ratio * short:
                counts["lengths"] += 1
            else:
                pairs.append((i, row, (one, *seen[one]), (two, *seen[two])))

    def judged(pair: tuple[int, Row, Any, Any]) -> Row | None:
        _, row, one, two = pair
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

    return _all(judged, pairs, counts, threads, tell)


def judge_labels(judge: Judge, rows: Iterable[Row], *, threads: int = 4, tell: Tell = lambda done: None
                 ) -> Judged:
    """Responses labelled safe or not, each once; tell as in judge_pairs."""
    responses = [(i, row, text, end) for i, (row, answers) in enumerate(_checked(rows))
                 for text, end in dict.fromkeys(answers)]

    def judged(response: tuple[int, Row, str, str]) -> Row:
        _, row, text, end = response
        return {**row, "completion": text, "label": int(judge.is_safe(row["prompt"], text)),
                "finish_reason": end, "judge": {"model": judge.model}}

    return _all(judged, responses, Counter(), threads, tell)


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
         threads: int, tell: Tell) -> Judged:
    """What judged makes of the items, each of which begins with the number of its row, several at a time, in
    their order; None is one below the margin."""

    def tried(item: Any) -> Row | None | JudgeError:
        try:
            return judged(item)
        except JudgeError as error:
            return error

    kept, failures, last = [], 0, None
    executor = ThreadPoolExecutor(threads, thread_name_prefix="judge")
    try:
        for item, found in zip(items, executor.map(tried, items), strict=True):
            tell(item[0])
            failed = isinstance(found, JudgeError) and not isinstance(found, Refused)
            failures = failures + 1 if failed else 0
            if isinstance(found, JudgeError):
                if failures == MAX_FAILURES:
                    raise JudgeError(found.reason, f"no verdict {failures} times in a row: {found}")
                counts["refused" if isinstance(found, Refused) else found.reason] += 1
                last = found
            elif found is None:
                counts["margin"] += 1
            else:
                kept.append(found)
    finally:
        executor.shutdown(cancel_futures=True)
    if failures == len(items) and last:
        raise JudgeError(last.reason, f"no verdict at all: {last}")
    return Judged(kept, {"kept": len(kept), **counts})
