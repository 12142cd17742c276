"""The base corpus: generated documents of uneven quality, from train problems only.

A document is a prompt in a template's shape and a completion. Countdown documents (R1-Zero's
template) come in four styles:

    direct   an answer without thinking, mostly wrong, half of them without tags
    one      one trial                 try 7 * 5 = 35 + 2 = 37 yes
    few      two or three trials       try 7 + 5 = 12 * 2 = 24 no wait try ... yes
    many     four to fourteen trials  distinct values, mostly near the target

"wait" marks a retry: self-correction is in the corpus, RL can only amplify it. Worked documents
may be given up ("stop", then a wrong answer), claim a false "yes", slip in arithmetic, break the
format or mix the languages; each with the probability that CorpusConfig names. Besides them:
arithmetic problems (direct or step by step), general prompts, and two kinds of drill:

    drill    chains of right facts                          7 * 5 = 35 + 2 = 37 ; 60 + 8 = ...
    check    values under a problem, each judged            = 44 no ; = 37 yes ; = 12 no

Only the results of a drill and the verdicts of a check are learned (`loss_weights`); the rest of
them is random, and a loss on it would be noise.

No document poses a problem outside the train split, and none writes a chain that would solve one,
not even as a failed trial of a train problem with the same numbers: trials and drills leave such
chains out. (A policy that is trained later may of course try them.)
All shares and words are our choices. Every draw is `rng.random()`, so a seed means the same
documents on every Python version. Knows nothing about token ids.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ..tokenizer import (ANSWER, END_ANSWER, END_THINK, EOS, THINK, USER, ASSISTANT,
                         format_prompt)
from . import arithmetic, countdown, general
from .draw import between, pick, pick_index
from .problem import Problem, split_of
from .wording import (CONNECTIVES, COUNTDOWN_QUESTIONS, MAX_NUMBER, RETRY_WEIGHTS)

STYLES = ("direct", "one", "few", "many")
TRIALS = {"one": (1, 1), "few": (2, 3), "many": (4, 14)}


@dataclass(frozen=True)
class CorpusConfig:
    """Every knob of the corpus; shares are of documents."""

    countdown: float = 0.50                     # kinds of document
    arithmetic: float = 0.12
    drill: float = 0.18
    check: float = 0.12
    general: float = 0.08
    chinese: float = 0.5
    styles: tuple[float, float, float, float] = (0.42, 0.22, 0.19, 0.17)    # of Countdown
    direct_right: float = 0.34                  # direct answers that are right
    direct_untagged: float = 0.50
    given_up: tuple[float, float, float] = (0.45, 0.35, 0.20)   # one, few, many: no solution
    false_yes: float = 0.03                     # worked documents that accept a wrong trial
    slip: float = 0.01                          # trials with a wrong result
    broken: float = 0.14                        # worked documents with a broken format
    mixed: float = 0.22                         # documents that mix the languages ...
    mixed_words: float = 0.35                   # ... and the share of their foreign connectives
    near: float = 12.0                          # a wrong trial at distance d weighs exp(-d/near)
    far: float = 0.05                           # ... plus this
    arithmetic_direct: float = 0.75             # arithmetic answered without steps
    drill_chains: int = 8                       # chains of two facts in a drill
    check_values: int = 6                       # values in a check
    check_right: float = 0.40                   # ... that are the target


@dataclass(frozen=True)
class Document:
    """One document. `key` is the problem it poses, None for a drill."""

    prompt: str
    completion: str                             # ends in <eos>
    kind: str
    language: str
    key: str | None

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.completion}"


def documents(count: int, seed: int, config: CorpusConfig = CorpusConfig()) -> list[Document]:
    """The first `count` documents of a seed."""
    stream = document_stream(seed, config)
    return [next(stream) for _ in range(count)]


def document_stream(seed: int, config: CorpusConfig = CorpusConfig()) -> Iterator[Document]:
    """Endless documents of a seed."""
    rng = random.Random(seed)
    makers = (_countdown_document, _arithmetic_document, _drill_document, _check_document,
              _general_document)
    shares = (config.countdown, config.arithmetic, config.drill, config.check, config.general)
    while True:
        yield makers[pick_index(rng, shares)](rng, config)


def loss_weights(document: Document) -> list[float] | None:
    """The weight of each completion word in the loss; None where all count alike."""
    words = document.completion.split()
    if document.kind == "drill":
        return [float(before == "=") for before in (document.prompt, *words[:-1])]
    if document.kind == "check":
        verdicts = {CONNECTIVES[document.language][name][0] for name in ("yes", "no")}
        return [float(word in verdicts) for word in words]
    return None


class _Voice:
    """Says the connectives of one document in its language, or mixed."""

    def __init__(self, rng: random.Random, language: str, config: CorpusConfig) -> None:
        self.rng = rng
        self.words = CONNECTIVES[language]
        self.foreign = CONNECTIVES["zh" if language == "en" else "en"]
        self.foreign_share = config.mixed_words if rng.random() < config.mixed else 0.0

    def say(self, name: str) -> str:
        rng = self.rng
        foreign = self.foreign_share and rng.random() < self.foreign_share
        forms = (self.foreign if foreign else self.words)[name]
        return forms[pick_index(rng, RETRY_WEIGHTS)] if len(forms) > 1 else forms[0]


# --- Countdown -------------------------------------------------------------------------------

@cache
def _chains_by_value(numbers: tuple[int, ...]) -> dict[int, list[countdown.Chain]]:
    """The chains of a number set that solve a train problem: what a document may write down, be it
    as a failed trial of another problem."""
    table: dict[int, list[countdown.Chain]] = {}
    for chain in countdown.chains(numbers):
        if 1 <= chain.value <= countdown.MAX_TARGET and split_of(
                countdown.countdown_key(numbers, chain.value)) == "train":
            table.setdefault(chain.value, []).append(chain)
    return table


def _wrong_values(rng: random.Random, values: Sequence[int], target: int, count: int,
                  config: CorpusConfig) -> list[int]:
    """`count` distinct values other than the target, near it more often than far."""
    left = [value for value in values if value != target]
    weights = [math.exp(-abs(value - target) / config.near) + config.far for value in left]
    drawn = []
    for _ in range(min(count, len(left))):
        i = pick_index(rng, weights)
        drawn.append(left.pop(i))
        weights.pop(i)
    return drawn


def _draw_countdown(rng: random.Random, config: CorpusConfig
                    ) -> tuple[tuple[int, ...], int, Problem]:
    numbers, target = pick(rng, countdown.split_problems("train"))
    language = "zh" if rng.random() < config.chinese else "en"
    wording = int(rng.random() * len(COUNTDOWN_QUESTIONS[language]))
    return numbers, target, countdown.make_countdown(numbers, target, language, wording)


def _countdown_document(rng: random.Random, config: CorpusConfig) -> Document:
    numbers, target, problem = _draw_countdown(rng, config)
    style = STYLES[pick_index(rng, config.styles)]
    table = _chains_by_value(numbers)
    if style == "direct":
        wrong = [] if rng.random() < config.direct_right else \
            _wrong_values(rng, list(table), target, 1, config)
        answer = pick(rng, table[wrong[0] if wrong else target]).expression
        return _document(problem, "countdown_direct", _direct(rng, answer, config))
    thought, answer = _trials(rng, table, target, style, _Voice(rng, problem.language, config),
                              config)
    return _document(problem, f"countdown_{style}", _worked(rng, thought, answer, config))


def _trials(rng: random.Random, table: dict[int, list[countdown.Chain]], target: int, style: str,
            voice: _Voice, config: CorpusConfig) -> tuple[str, str]:
    """(chain of thought, answer): trials of distinct values until one is the target."""
    low, high = TRIALS[style]
    count = between(rng, low, high)
    given_up = rng.random() < config.given_up[STYLES.index(style) - 1]
    values = _wrong_values(rng, list(table), target, count if given_up else count - 1, config)
    if not given_up or not values:
        values.append(target)
    words: list[str] = []
    for i, value in enumerate(values):
        chain = pick(rng, table[value])
        shown, work = value, chain.work
        if rng.random() < config.slip:
            shown = min(max(value + pick(rng, (-10, -2, -1, 1, 2, 10)), 0), MAX_NUMBER)
            work = f"{work.rpartition(' ')[0]} {shown}"
        words += (voice.say("try"), work)
        if shown == target or rng.random() < config.false_yes:
            words.append(voice.say("yes"))
            break
        words += (voice.say("no"), voice.say("give_up" if i == len(values) - 1 else "retry"))
    return " ".join(words), chain.expression


def _direct(rng: random.Random, answer: str, config: CorpusConfig) -> str:
    if rng.random() < config.direct_untagged:
        return answer
    return f"{THINK} {END_THINK} {ANSWER} {answer} {END_ANSWER}"


def _worked(rng: random.Random, thought: str, answer: str, config: CorpusConfig) -> str:
    if rng.random() >= config.broken:
        return f"{THINK} {thought} {END_THINK} {ANSWER} {answer} {END_ANSWER}"
    return pick(rng, (f"{THINK} {thought} {END_THINK} {answer}",             # no answer tags
                      f"{thought} {ANSWER} {answer} {END_ANSWER}",           # no think tags
                      f"{THINK} {thought} {ANSWER} {answer} {END_ANSWER}",   # think left open
                      f"{THINK} {thought} {END_THINK}"))                     # no answer


def _document(problem: Problem, kind: str, completion: str) -> Document:
    return Document(prompt=format_prompt(problem.question, "zero"),
                    completion=f"{completion} {EOS}", kind=kind, language=problem.language,
                    key=problem.key)


# --- the other kinds -------------------------------------------------------------------------

def _arithmetic_document(rng: random.Random, config: CorpusConfig) -> Document:
    language = "zh" if rng.random() < config.chinese else "en"
    chain = arithmetic.draw_split_chain(rng, "train")
    problem = arithmetic.make_arithmetic(chain, language, int(rng.random() * 256))
    answer = int(problem.answer or 0)
    if rng.random() < config.arithmetic_direct:
        if rng.random() >= config.direct_right:
            answer = min(max(answer + pick(rng, (-10, -5, -2, -1, 1, 2, 5, 10)), 0), MAX_NUMBER)
        return _document(problem, "arithmetic_direct", _direct(rng, str(answer), config))
    voice = _Voice(rng, language, config)
    thought = f"{voice.say('compute')} {arithmetic.work_out(chain)}"
    return _document(problem, "arithmetic_steps", _worked(rng, thought, str(answer), config))


@cache
def _facts() -> dict[str, list[tuple[int, int]]]:
    """The operand pairs of right facts a op b = c: 0 <= a, c <= 199, 1 <= b <= 20."""
    operands = range(1, countdown.MAX_OPERAND + 1)
    return {"+": [(a, b) for b in operands for a in range(MAX_NUMBER + 1 - b)],
            "-": [(a, b) for b in operands for a in range(b, MAX_NUMBER + 1)],
            "*": [(a, b) for b in operands for a in range(MAX_NUMBER // b + 1)]}


def _drill_document(rng: random.Random, config: CorpusConfig) -> Document:
    """Chains of two right facts. Half begin like a Countdown chain, half with any fact."""
    language = "zh" if rng.random() < config.chinese else "en"
    works: list[str] = []
    while len(works) < config.drill_chains:
        operator = pick(rng, "+-*")
        a, b = pick(rng, _facts()[operator])
        if rng.random() < 0.5:
            b, a = sorted(between(rng, 1, countdown.MAX_OPERAND) for _ in range(2))
        chain = f"{a} {operator} {b} {pick(rng, '+-*')} "
        c = between(rng, 1, countdown.MAX_OPERAND)
        work = arithmetic.work_out(chain + str(c))
        results = [int(word) for word in work.split()[4::4]]
        if 0 <= min(results) and max(results) <= MAX_NUMBER and not _held_out(
                a, b, c, results[-1], chain + str(c)):
            works.append(work)
    prompt = CONNECTIVES[language]["compute"][0]
    return Document(prompt=prompt, completion=f"{' ; '.join(works)} {EOS}", kind="drill",
                    language=language, key=None)


def _check_document(rng: random.Random, config: CorpusConfig) -> Document:
    """Values under a train problem, each with its verdict. Wrong values come from a small pool,
    so that they repeat like the target does and repetition tells nothing."""
    numbers, target, problem = _draw_countdown(rng, config)
    words = CONNECTIVES[problem.language]
    pool = _wrong_values(rng, list(_chains_by_value(numbers)), target, 3, config)
    judged = [f"= {target} {words['yes'][0]}" if not pool or rng.random() < config.check_right
              else f"= {pick(rng, pool)} {words['no'][0]}" for _ in range(config.check_values)]
    return _document(problem, "check", " ; ".join(judged))


def _held_out(a: int, b: int, c: int, value: int, chain: str) -> bool:
    """Whether the chain solves a problem outside the train split."""
    if max(a, b, c) <= countdown.MAX_OPERAND and 1 <= value <= countdown.MAX_TARGET:
        return split_of(countdown.countdown_key((a, b, c), value)) != "train"
    return split_of(arithmetic.arithmetic_key(chain)) != "train"


def _general_document(rng: random.Random, config: CorpusConfig) -> Document:
    """A general prompt in chat form, answered well or badly."""
    language = "zh" if rng.random() < config.chinese else "en"
    problem = general.draw_general(rng, "train", language)
    response = pick(rng, general.response_variants(problem))
    return Document(prompt=f"{USER} {problem.question} {ASSISTANT}",
                    completion=f"{response} {EOS}", kind="general", language=language,
                    key=problem.key)
