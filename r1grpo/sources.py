"""sources.py - the rows that the stages learn from: RL prompts, samples that are kept, judged
responses.

    corpus rows          documents -> rows of SFTTrainer
    RL prompts           train problems and general prompts as rows of GRPOTrainer
    cold start           R1-Zero's right and readable samples, rewritten to the chat format
    stage 3              right and readable samples of the first RL stage, 3:1 with general rows
    preference pairs     responses of two checkpoints, ranked by the rubric in both orders
    safety rows          the same responses, labelled

Every row has a problem_key. The harmless set is the harmful requests, which the safety model
judges; benign look-alikes belong to the helpful set: the safety model calls a refusal safe whatever
was asked, so it would teach to refuse them (our choice). Knows nothing about directories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .config import EvalConfig
from .data import document_row
from .evaluate import draw_samples
from .model import Model
from .recipe import Recipe, SFTStage, derive_seed
from .rejection import rejection_sample
from .rewards import accuracy_reward
from .tasks import Problem, sample_general, sample_problems
from .tasks.arithmetic import work_out
from .tasks.corpus import Document
from .tasks.countdown import chains
from .tasks.general import sft_completion
from .tasks.rubric import is_safe, preference_pairs
from .tasks.trace import box_answer, is_readable, rewrite_to_summary
from .tasks.wording import CONNECTIVES
from .tokenizer import WordTokenizer, is_wellformed, split_thinking

Row = dict[str, Any]
Rows = list[Row]
Pause = Callable[[int], None]  # called between batches with the number of samples drawn

_CHUNK = 128  # problems sampled between two safe points
HELPFUL, SAFETY = "helpful", "safety"


def train_problems(recipe: Recipe, count: int, purpose: str) -> list[Problem]:
    """The recipe's mix of verifiable problems, from the train split."""
    share = recipe.problems.countdown_share
    return sample_problems("train", count, derive_seed(recipe.seed, purpose),
                           {"countdown": share, "arithmetic": 1.0 - share},
                           recipe.problems.chinese_share)


def general_problems(recipe: Recipe, split: str, count: int, seed: int,
                     families: Callable[[str], bool] = lambda family: True) -> list[Problem]:
    """`count` general prompts of some families, each family as often as the others."""
    drawn = sample_general(split, 10 * count, seed, recipe.problems.chinese_share)
    return [problem for problem in drawn if families(problem.task)][:count]


# ---- documents and prompts ----------------------------------------------------------------------


def corpus_row(document: Document) -> Row:
    """A document as it stands in data/corpus.jsonl."""
    return {"prompt": document.prompt, "completion": document.completion, "kind": document.kind,
            "language": document.language, "problem_key": document.key}


def training_row(row: Row, tokenizer: WordTokenizer) -> Row:
    """A row of data/corpus.jsonl for SFTTrainer."""
    return document_row(Document(row["prompt"], row["completion"], row["kind"], row["language"],
                                 row["problem_key"]), tokenizer)


def prompt_rows(problems: Sequence[Problem], template: str) -> Rows:
    """RL prompts. reward_model: who judges the row besides the format and language rules."""
    return [{**problem.row(template), "reward_model": judge_of(problem)} for problem in problems]


def judge_of(problem: Problem) -> str:
    """Who judges a problem's answers: a rule, or one of the reward models."""
    if problem.verifiable:
        return "rule"
    return SAFETY if problem.task == "harmful" else HELPFUL


# ---- samples that are kept ----------------------------------------------------------------------


def cold_start_rows(recipe: Recipe, teacher: Model, tokenizer: WordTokenizer,
                    entry: dict[str, Any], pause: Pause) -> Rows:
    """Samples of R1-Zero, right and readable, rewritten (arXiv 2501.12948v2, B.3.2)."""
    rows = _kept_rows(recipe.cold_start, recipe, teacher, tokenizer, entry, pause,
                      purpose="cold_start", source="r1_zero", template="zero",
                      filters={}, rewrite=lambda row, text: rewrite_to_summary(text, row))
    return rows + _written_rows(recipe.cold_start, recipe, tokenizer, "cold_start/written")


def stage3_rows(recipe: Recipe, teacher: Model, tokenizer: WordTokenizer, entry: dict[str, Any],
                pause: Pause) -> Rows:
    """Samples of the first RL stage, right, in one language and true in every equation, with
    general rows mixed in (the paper: 600 k to 200 k)."""
    filters = {"format": lambda row, text: is_wellformed(text, "r1"),
               "unreadable": lambda row, text: is_readable(split_thinking(text)[0],
                                                           row["language"])}
    spec = recipe.rejection_sft
    rows = _kept_rows(spec, recipe, teacher, tokenizer, entry, pause, purpose="rejection_sft",
                      source="reasoning_rl", template="r1", filters=filters, rewrite=None)
    rows += _written_rows(spec, recipe, tokenizer, "rejection_sft/written")
    count = round(len(rows) * spec.general_share / (1.0 - spec.general_share))
    general = general_problems(recipe, "train", count,
                               derive_seed(recipe.seed, "rejection_sft/general"))
    return rows + [_sft_row(problem, sft_completion(problem), tokenizer, {"written": "general"})
                   for problem in general]


def _kept_rows(spec: SFTStage, recipe: Recipe, teacher: Model, tokenizer: WordTokenizer,
               entry: dict[str, Any], pause: Pause, *, purpose: str, source: str, template: str,
               filters: dict[str, Callable[[Row, str], bool]],
               rewrite: Callable[[Row, str], str | None] | None) -> Rows:
    problems = train_problems(recipe, spec.problems, f"{purpose}/problems")
    kept: Rows = []
    dropped: Counter[str] = Counter()
    entry |= {"sampled_tokens": 0, "sampled": 0}
    for start in range(0, len(problems), _CHUNK):
        part = problems[start:start + _CHUNK]
        args = EvalConfig(k=spec.samples, temperature=spec.temperature,
                          max_completion_length=recipe.evaluation.max_completion_length,
                          stop_token_ids=tokenizer.stop_token_ids(template),
                          seed=derive_seed(recipe.seed, f"{purpose}/samples/{start}"))
        found = rejection_sample(teacher, [one.row(template) for one in part], args,
                                 correct=accuracy_reward, processing_class=tokenizer,
                                 filters=filters, rewrite=rewrite,
                                 max_per_problem=spec.per_problem, source=source)
        kept += [{**_sft_row(part[row["source"]["problem"]], row["completion"], tokenizer,
                             row["source"]), "completion_ids": row["completion_ids"]}
                 for row in found.rows]  # what was sampled is learned as sampled
        dropped.update(found.dropped)
        entry["sampled_tokens"] += found.sampled_tokens
        entry["sampled"] += found.sampled
        pause(found.sampled)
    entry |= {"kept": len(kept), "dropped": dict(sorted(dropped.items()))}
    return kept


def _written_rows(spec: SFTStage, recipe: Recipe, tokenizer: WordTokenizer, purpose: str) -> Rows:
    """Solutions that nobody sampled, for recipes whose models are too small to be sampled from."""
    rows = []
    for problem in train_problems(recipe, spec.written, purpose) if spec.written else ():
        words = CONNECTIVES[problem.language]
        if problem.task == "countdown":
            chain = next(one for one in chains(problem.numbers or ())
                         if one.value == problem.target)
            thought = f"{words['try'][0]} {chain.work} {words['yes'][0]}"
            answer = chain.expression
        else:
            thought = f"{words['compute'][0]} {work_out(problem.key.partition(':')[2])}"
            answer = problem.answer or ""
        rows.append(_sft_row(problem, box_answer(thought, answer, problem.language), tokenizer,
                             {"written": "solution"}))
    return rows


def _sft_row(problem: Problem, completion: str, tokenizer: WordTokenizer, source: Row) -> Row:
    row = problem.row("r1")
    return {"prompt": row["prompt"], "prompt_ids": tokenizer.encode(row["prompt"]),
            "completion": completion,
            "completion_ids": [*tokenizer.encode(completion), tokenizer.eos_token_id],
            "task": problem.task, "language": problem.language, "problem_key": problem.key,
            "source": source}


# ---- judged responses ---------------------------------------------------------------------------


def judged_rows(recipe: Recipe, kind: str, split: str, sources: dict[str, Model],
                tokenizer: WordTokenizer, entry: dict[str, Any], pause: Pause) -> Rows:
    """Preference pairs (kind helpful) or labelled responses (safety). Each prompt is answered by
    several checkpoints, so that good and bad responses meet; split test is for held-out accuracy.
    Responses are whole and keep their finish reasons."""
    plan = recipe.reward_models
    count = plan.test_prompts if split == "test" else \
        plan.helpful_prompts if kind == HELPFUL else plan.safety_prompts
    families = (lambda family: family != "harmful") if kind == HELPFUL else \
        (lambda family: family in ("harmful", "benign"))
    problems = general_problems(recipe, split, count,
                                derive_seed(recipe.seed, f"{kind}/{split}"), families)
    rows = [problem.row("r1") for problem in problems]
    answers: list[list[str]] = [[] for _ in rows]
    reasons: list[list[str]] = [[] for _ in rows]
    entry |= {"sampled_tokens": 0}
    for source, model in sources.items():
        args = EvalConfig(k=plan.samples, batch_prompts=_CHUNK,
                          max_completion_length=recipe.evaluation.max_completion_length,
                          stop_token_ids=tokenizer.stop_token_ids("r1"),
                          seed=derive_seed(recipe.seed, f"{kind}/{split}/{source}"))
        last = [0]

        def advance(done: int) -> None:
            pause((done - last[0]) * args.k)
            last[0] = done

        for one in draw_samples(model, rows, args, tokenizer, advance):
            answers[one["problem"]].append(one["completion"])
            reasons[one["problem"]].append(one["finish_reason"])
            entry["sampled_tokens"] += len(one["completion_ids"])
    judge = pair_responses if kind == HELPFUL else label_responses
    return [judged for row, texts, ends in zip(rows, answers, reasons)
            for judged in judge(row, texts, ends)]


def pair_responses(row: Row, responses: Sequence[str], finish_reasons: Sequence[str] = ()
                   ) -> Iterator[Row]:
    """Pairs by the text after </think>, which the helpful model will see, as whole responses (the
    first of those that share it). No finish reasons: all ended by themselves."""
    whole: dict[str, tuple[str, str]] = {}
    for text, end in zip(responses, finish_reasons or ["stop"] * len(responses)):
        whole.setdefault(split_thinking(text)[1], (text, end))
    for pair in preference_pairs(row, list(whole)):
        (chosen, chosen_end), (rejected, rejected_end) = whole[pair.chosen], whole[pair.rejected]
        yield {**asdict(pair), "chosen": chosen, "rejected": rejected,
               "chosen_finish_reason": chosen_end, "rejected_finish_reason": rejected_end}


def label_responses(row: Row, responses: Sequence[str], finish_reasons: Sequence[str] = ()
                    ) -> Iterator[Row]:
    """Labelled responses, each once. No finish reasons: all ended by themselves."""
    ends = finish_reasons or ["stop"] * len(responses)
    for text, end in dict.fromkeys(zip(responses, ends)):
        yield {"prompt": row["prompt"], "completion": text, "label": int(is_safe(row, text)),
               "finish_reason": end,
               "task": row["task"], "language": row["language"],
               "problem_key": row["problem_key"]}
