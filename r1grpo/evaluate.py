"""evaluate.py - k samples a problem -> figures, every sample kept.

    pass@1   mean over problems of the share of right samples; interval: +- 1.96 s / sqrt(problems),
             s over problems (samples of one problem are not independent)
    difference   of two stages, problem by problem on the same problems; the same interval
    pass@j   mean of 1 - C(n - c, j) / C(n, j), n samples, c right         Chen et al. 2021, eq. 1
    cons@k   the most frequent answer is right; ties go to the answer seen first; a sample without
             an answer has no vote (Wang et al. 2022, self-consistency)

Answers vote in a canonical form: a left-to-right chain with its commuting beginning sorted, so that
7 * 5 + 2 and 5 * 7 + 2 vote together (our choice). R1 reports pass@1 over 16 to 64 samples
(arXiv 2501.12948v2, D.1). One path for all: evaluate() samples and then calls recompute(), which
grades the stored text anew, so a stored run can be verified: recompute() for the figures, check()
for the samples, bit for bit from the checkpoint.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .config import EvalConfig
from .folder import asked_and_tokenizer
from .judging import ROUTE
from .rewards import accuracy_reward, format_reward, language_shares
from .rollout import Completions, rollout
from .scoring import RewardFunction, Rewards
from .tasks.wording import reflection_count
from .tokenizer import extract_answer
from .trainer import prompt_ids_of, require_policy
from .verifiers import exact_number, final_answer, parse_chain, spelling

Row = dict[str, Any]

_OWN = ("problem", "generation", "prompt_ids", "completion", "completion_ids", "logprobs",
        "finish_reason", "prefilled", "rewards")


def row_answer(row: Row, completion: str) -> str | None:
    """The answer of a completion by its row's template, or the final answer of free text, which may
    begin inside a thought (prefilled)."""
    template = row.get("template")
    return final_answer(completion, row.get("prefilled", False)) if template is None \
        else extract_answer(completion, template)


def row_format(completions: Sequence[Any], **call: Any) -> Sequence[float | None]:
    """format_reward by the rows' template; rows of a data set have none, and no verdict."""
    return format_reward(completions=completions, **call) if "template" in call \
        else [None] * len(completions)


def row_language(completions: Sequence[Any], **call: Any) -> Sequence[float | None]:
    """language_shares by the rows' language, as row_format."""
    return language_shares(completions=completions, **call) if "language" in call \
        else [None] * len(completions)


@dataclass(frozen=True)
class Graders:
    """How a completion is judged; reward functions and two functions of its text. language is
    None where a chain of thought holds no word."""

    accuracy: RewardFunction = accuracy_reward
    format: RewardFunction = row_format
    language: RewardFunction = row_language
    answer: Callable[[Row, str], str | None] = row_answer
    reflection: Callable[[str], int] = reflection_count


@dataclass
class Evaluation:
    """Figures and the samples behind them. A sample is a JSON row: the problem's columns, problem
    and generation number, prompt_ids, completion, completion_ids, logprobs, finish_reason, prefilled
    (true where the prompt opened the thought, else not there), rewards."""

    figures: dict[str, Any]
    samples: list[Row] = field(repr=False)


def evaluate(model: Any, problems: Sequence[Row], args: EvalConfig | None = None,
             processing_class: Any = None, graders: Graders = Graders(),
             progress: Callable[[int], None] | None = None) -> Evaluation:
    """Sample args.k completions of each problem (dataset rows) and grade them. model: a Model, or the
    folder of one, whose tokenizer is then the default of processing_class. progress is called with the
    number of problems done."""
    model, processing_class = asked_and_tokenizer(model, processing_class)
    require_policy("evaluate", model)
    samples = draw_samples(model, problems, args, processing_class, progress)
    return Evaluation(recompute(samples, graders), samples)


def draw_samples(model: Any, problems: Sequence[Row], args: EvalConfig | None = None,
                 processing_class: Any = None, progress: Callable[[int], None] | None = None,
                 first: int = 0) -> list[Row]:
    """The samples of evaluate, not graded: also for rows that no rule can check. first: the number
    of problems[0], where they are a part of a longer list."""
    args = args or EvalConfig()
    if not problems:
        raise ValueError("evaluate needs at least one problem")
    prompts = [prompt_ids_of(row, processing_class, f"problem {first + i}")
               for i, row in enumerate(problems)]
    samples: list[Row] = []
    for start in range(0, len(prompts), args.batch_prompts):
        numbers = list(range(start, min(start + args.batch_prompts, len(prompts))))
        done = _sample(model, [prompts[p] for p in numbers], [first + p for p in numbers], args,
                       processing_class)
        for i in range(len(done)):
            problem = start + i // args.k
            samples.append({**{k: v for k, v in problems[problem].items() if k not in _OWN},
                            "problem": first + problem, "generation": i % args.k,
                            "prompt_ids": prompts[problem], "completion": done.texts[i],
                            "completion_ids": done.completion_ids[i].tolist(),
                            "logprobs": done.logprobs[i].tolist(),
                            "finish_reason": done.finish_reasons[i],
                            **({"prefilled": True} if done.prefilled[i] else {})})
        if progress:
            progress(numbers[-1] + 1)
    return samples


def _sample(model: Any, prompts: list[list[int]], numbers: list[int], args: EvalConfig,
            processing_class: Any) -> Completions:
    return rollout(model, prompts, args.k, args.sampling(), args.stop_strings, processing_class,
                   args.seed, 0, numbers)


def recompute(samples: Sequence[Row], graders: Graders = Graders()) -> dict[str, Any]:
    """Grade stored samples (their 'rewards' are written anew) and return the figures. What is right is
    asked as in a training, Pooled functions in workers; where one came to no verdict the sample counts
    as wrong, and verifier_failed is the share of these."""
    if not samples:
        raise ValueError("there is no sample to grade")
    names = sorted({key for one in samples for key in one} - {*_OWN, "prompt"})
    columns = {name: [one.get(name) for one in samples] for name in names}
    call = {"prompts": [one.get("prompt", one["prompt_ids"]) for one in samples],
            "completions": [one["completion"] for one in samples],
            "completion_ids": [one["completion_ids"] for one in samples],
            "finish_reasons": [one["finish_reason"] for one in samples], **columns}
    if any(one.get("prefilled") for one in samples):
        call["prefilled"] = [one.get("prefilled", False) for one in samples]
    right, failed = _right(samples, graders.accuracy)
    parts = {"accuracy": right, "format": graders.format(**call), "language": graders.language(**call)}
    for i, one in enumerate(samples):
        one["rewards"] = {name: values[i] for name, values in parts.items()}
    graded = [(one, row_vote(graders.answer(one, one["completion"])),
               graders.reflection(one["completion"])) for one in samples]
    figures = _figures(graded) | ({"verifier_failed": _mean(failed)} if any(failed) else {})
    tasks = sorted({one["task"] for one in samples if one.get("task")})
    if tasks:
        figures["tasks"] = {task: _figures([g for g in graded if g[0].get("task") == task])
                            for task in tasks}
    return figures


def _right(samples: Sequence[Row], accuracy: RewardFunction) -> tuple[list[float], list[bool]]:
    """The reward of each sample for being right, and whether a verifier failed on it, which gives 0."""
    done = Completions([one["prompt_ids"] for one in samples], 1,
                       [np.asarray(one["completion_ids"], np.int32) for one in samples], [],
                       [one["finish_reason"] for one in samples], [one["completion"] for one in samples],
                       [one.get("prefilled", False) for one in samples])
    rows = [{key: value for key, value in one.items() if key not in (*_OWN, ROUTE)} for one in samples]
    scores = Rewards(accuracy).score(rows, done)
    failed = scores.failed.tolist()
    values = [0.0 if no_verdict else value
              for value, no_verdict in zip(scores.parts[:, 0].tolist(), failed)]
    for one, value in zip(samples, values):
        if math.isnan(value):
            raise ValueError(f"problem {one['problem']} has no answer that a rule can check")
    return values, failed


def row_vote(answer: str | None) -> str | None:
    """Canonical form of an answer: a number's value; a chain with the terms of the leading + and -
    sorted, or the factors of the leading *; what is neither votes as it is spelled."""
    if answer is None or not answer.strip():
        return None
    numbers, operators = parse_chain(answer) or ([], [])
    if not operators:
        number = exact_number(answer)
        return spelling(answer) if number is None else str(number)
    same = "*" if operators[:1] == ["*"] else "+-"
    head = next((i for i, op in enumerate(operators) if op not in same), len(operators))
    signs = ["*"] * (head + 1) if same == "*" else ["+", *operators[:head]]
    terms = sorted(zip(signs, numbers[:head + 1]))
    return " ".join(f"{sign} {number}" for sign, number in
                    [*terms, *zip(operators[head:], numbers[head + 1:])])


def _figures(graded: Sequence[tuple[Row, str | None, int]]) -> dict[str, Any]:
    """Figures of graded samples: (sample, vote, reflection words); none of format and language where
    neither was judged."""
    problems: dict[int, list[tuple[bool, str | None]]] = {}
    for one, vote, _ in graded:
        problems.setdefault(one["problem"], []).append((one["rewards"]["accuracy"] == 1.0, vote))
    k = max(map(len, problems.values()))
    if any(len(one) != k for one in problems.values()):
        raise ValueError("the problems have different numbers of samples")
    right = [sum(correct for correct, _ in one) for one in problems.values()]
    low, high = interval([c / k for c in right])
    samples = [one for one, _, _ in graded]
    wellformed = [one["rewards"]["accuracy"] == 1.0 for one in samples
                  if one["rewards"]["format"] == 1.0]
    languages = [one["rewards"]["language"] for one in samples
                 if one["rewards"]["language"] is not None]
    judged = any(one["rewards"][name] is not None for one in samples for name in ("format", "language"))
    shape = {
        "wellformed_accuracy": _mean(wellformed),
        "format": _mean([one["rewards"]["format"] or 0.0 for one in samples]),
        "language_consistency": _mean(languages),
        "no_words": 1.0 - len(languages) / len(samples),
    } if judged else {}
    return {
        "pass@1": _mean([c / k for c in right]), "pass@1_ci": [low, high],
        f"pass@{k}": _mean([pass_at(k, c, k) for c in right]),
        "cons@k": _mean([float(_consensus(one)) for one in problems.values()]),
        "k": k, "n": len(problems),
        "mean_tokens": _mean([len(one["completion_ids"]) for one in samples]),
        "truncated": _mean([one["finish_reason"] == "length" for one in samples]),
        **shape,
        "reflection_per_response": _mean([words for _, _, words in graded]),
    }


def _mean(values: Sequence[float]) -> float:
    """Mean; 0.0 of nothing (no well-formed answer: none of them is right)."""
    return math.fsum(values) / len(values) if values else 0.0


def interval(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """95 % interval of a mean of independent values in [low, high], by the normal approximation."""
    if len(values) < 2:
        return low, high
    centre = _mean(values)
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return max(low, centre - half), min(high, centre + half)


def paired_difference(samples_a: Sequence[Row], samples_b: Sequence[Row], key: str = "accuracy"
                      ) -> dict[str, Any]:
    """The mean reward of a minus that of b, graded samples of the same problems; its 95 % interval
    is over the problems' own differences, so how hard a problem is cancels out."""
    means = []
    for samples in (samples_a, samples_b):
        found: dict[tuple[int, Any], list[float]] = {}
        for one in samples:
            found.setdefault((one["problem"], one.get("problem_key")), []).append(
                float(one["rewards"][key]))
        means.append({problem: _mean(values) for problem, values in found.items()})
    ours, theirs = means
    if not ours or ours.keys() != theirs.keys():
        raise ValueError("paired_difference needs samples of the same problems")
    differences = [ours[problem] - theirs[problem] for problem in sorted(ours)]
    return {"difference": _mean(differences), "interval": list(interval(differences, -1.0, 1.0)),
            "n": len(differences)}


def pass_at(n: int, c: int, j: int) -> float:
    """Probability that j of n samples, c of them right, hold a right one; unbiased."""
    return 1.0 - math.comb(n - c, j) / math.comb(n, j)


def _consensus(samples: Sequence[tuple[bool, str | None]]) -> bool:
    votes = Counter(vote for _, vote in samples if vote is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]  # equal counts stay in the order first seen
    return next(correct for correct, vote in samples if vote == winner)


def check(model: Any, samples: Sequence[Row], args: EvalConfig, processing_class: Any = None
          ) -> list[str]:
    """Sample the stored problems again and compare bit for bit; the differences, none if all is
    well. model: as of evaluate."""
    model, processing_class = asked_and_tokenizer(model, processing_class)
    prompts = {one["problem"]: one["prompt_ids"] for one in samples}
    numbers = sorted(prompts)
    wrong: list[str] = []
    for start in range(0, len(numbers), args.batch_prompts):
        part = numbers[start:start + args.batch_prompts]
        done = _sample(model, [prompts[p] for p in part], part, args, processing_class)
        place = {p: i for i, p in enumerate(part)}
        for one in samples:
            if one["problem"] not in place:
                continue
            i = place[one["problem"]] * args.k + one["generation"]
            where = f"problem {one['problem']}, sample {one['generation']}"
            stored = np.asarray(one["logprobs"], np.float32)
            if done.completion_ids[i].tolist() != list(one["completion_ids"]):
                wrong.append(f"{where}: other tokens")
            elif done.logprobs[i].tobytes() != stored.tobytes():
                wrong.append(f"{where}: other log-probs")
            elif done.finish_reasons[i] != one["finish_reason"]:
                wrong.append(f"{where}: other finish reason")
            elif done.texts[i] != one["completion"]:
                wrong.append(f"{where}: other text")
            elif done.prefilled[i] != one.get("prefilled", False):
                wrong.append(f"{where}: prefilled is {done.prefilled[i]}")
    return wrong
