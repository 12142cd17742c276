"""rollout.py - prompts -> groups of completions: ids, log-probs, text, why each stopped.

    for p in prompts, g in G:   o = completion p * G + g,   log-prob of each of its tokens

Groups are index ranges, never found by content. The engine samples ids and knows no text; a stop
string is text, so where one is given the sampler runs in slices of 16 tokens, the new text is
looked at between slices and what lies behind the stop string is cut. Cutting cannot change a draw:
every draw is a function of (seed, step, prompt, generation, position). Whoever wants to know of each
completion as it ends is told between two slices too.

No reward, no advantage, no trainer in sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .config import Sampling

SLICE = 16  # tokens decoded between two looks at the text


class Tokenizer(Protocol):
    """What trainers need of a processing_class. Where it has more of hf_tokenizer.Tokenizer
    (check_fits, stop_ids, prefix_ids, opens_thought, encode_completion), that is used too."""

    eos_token_id: int | None

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class Ended(NamedTuple):
    """A completion that has ended, by its index in the rollout; the rest as in Completions."""

    index: int
    ids: list[int]
    text: str
    finish_reason: str
    prefilled: bool


@dataclass
class Completions:
    """The flat result of a rollout; completion p * group_size + g belongs to prompt p."""

    prompt_ids: list[list[int]]  # (P)
    group_size: int
    completion_ids: list[NDArray[np.int32]]  # (P G), each (T)
    logprobs: list[NDArray[np.float32]]  # (P G), each (T)
    finish_reasons: list[str]  # (P G), "stop" or "length"
    texts: list[str]  # (P G); empty strings without a tokenizer
    prefilled: list[bool]  # (P G); the prompt opened the thought, the completion begins inside it
    drafts: tuple[int, int] = (0, 0)  # of speculative sampling: tokens guessed, guesses right

    def __len__(self) -> int:
        return len(self.completion_ids)

    def group(self, prompt: int) -> range:
        """Indices of the completions of a prompt."""
        return range(prompt * self.group_size, (prompt + 1) * self.group_size)

    def ended(self, i: int) -> Ended:
        """One completion alone."""
        return Ended(i, self.completion_ids[i].tolist(), self.texts[i], self.finish_reasons[i],
                     self.prefilled[i])

    def select(self, prompts: Sequence[int]) -> Completions:
        """The groups of some prompts, in that order. drafts stay those of all."""
        flat = [i for p in prompts for i in self.group(p)]
        return Completions([self.prompt_ids[p] for p in prompts], self.group_size,
                           [self.completion_ids[i] for i in flat], [self.logprobs[i] for i in flat],
                           [self.finish_reasons[i] for i in flat], [self.texts[i] for i in flat],
                           [self.prefilled[i] for i in flat], self.drafts)

    @staticmethod
    def join(parts: Sequence[Completions]) -> Completions:
        """Several rollouts of one group size after each other."""
        def flat(name: str) -> list[Any]:
            return [one for part in parts for one in getattr(part, name)]
        return Completions(flat("prompt_ids"), parts[0].group_size, flat("completion_ids"),
                           flat("logprobs"), flat("finish_reasons"), flat("texts"),
                           flat("prefilled"), (sum(part.drafts[0] for part in parts),
                                               sum(part.drafts[1] for part in parts)))


def rollout(model: Any, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling,
            stop_strings: Sequence[str] = (), tokenizer: Tokenizer | None = None, seed: int = 0,
            step: int = 0, sample_ids: Sequence[int] | None = None,
            tell: Callable[[Ended], object] | None = None) -> Completions:
    """Sample group_size completions of each prompt. sample_ids (P): the number by which the draws
    know a prompt; default its index in this call. tell: called once with each completion, soon after
    it has ended."""
    if stop_strings and tokenizer is None:
        raise ValueError("stop_strings are text: give a tokenizer")
    ids_in = [list(map(int, prompt)) for prompt in prompts]
    fit_vocabulary(model, tokenizer)
    stop = sampling.stop_token_ids
    if stop is None and getattr(tokenizer, "stop_ids", ()):
        stop = tuple(dict.fromkeys((*model.config.stop_ids(), *tokenizer.stop_ids)))
    options = {**sampling.filters(), "seed": seed, "step": step, "stop_token_ids": stop,
               "sample_ids": sample_ids, "speculative": sampling.speculative}
    length = sampling.max_completion_length
    opened = prefilled(tokenizer, ids_in, group_size)
    if stop_strings or tell:
        session = model.session(ids_in, group_size, length, **options)
        while not session.done:
            changed = session.run(SLICE)
            for i in changed if stop_strings else ():
                keep = find_stop(session.ids(i), stop_strings, tokenizer)
                if keep is not None:
                    session.stop(i, keep)
            for i in session.ended() if tell else ():
                one = session.ids(i)
                tell(Ended(i, one, completion_text(tokenizer, one) if tokenizer else "",
                           session.finish_reason(i), opened[i]))
        sampled = session.rollout()
    else:
        sampled = model.generate(ids_in, num_generations=group_size, max_new_tokens=length,
                                 **options)
    ids = list(sampled.completion_ids)
    texts = [completion_text(tokenizer, one) if tokenizer else "" for one in ids]
    return Completions(ids_in, group_size, ids, list(sampled.logprobs),
                       list(sampled.finish_reasons), texts, opened, sampled.drafts)


def fit_vocabulary(model: Any, tokenizer: Any) -> None:
    """Ids that the tokenizer does not know are out of the model's support from here on; ValueError
    where the tokenizer has more ids than the model."""
    if hasattr(tokenizer, "check_fits"):
        tokenizer.check_fits(model.config)
        model.live_vocab = len(tokenizer)


def prefilled(tokenizer: Any, prompts: Sequence[Sequence[int]], group_size: int) -> list[bool]:
    """(P G) whether each completion begins inside a thought that its prompt opened."""
    opens = getattr(tokenizer, "opens_thought", lambda ids: False)
    return [opened for ids in prompts for opened in [opens(ids)] * group_size]


def find_stop(ids: Sequence[int], stop_strings: Sequence[str], tokenizer: Any) -> int | None:
    """How many tokens of ids to keep so that the text just holds a stop string, or None. Only the
    newest slice can hold a new one, so only the tail of the text is decoded: a stop string that
    begins in an earlier slice spans at most as many tokens as it has characters."""
    reach = SLICE + max(map(len, stop_strings))
    start = max(0, len(ids) - reach)
    tail = list(ids[start:])
    if not _holds(tokenizer.decode(tail, skip_special_tokens=False), stop_strings):
        return None
    return start + next(n for n in range(1, len(tail) + 1)
                        if _holds(tokenizer.decode(tail[:n], skip_special_tokens=False),
                                  stop_strings))


def _holds(text: str, stop_strings: Sequence[str]) -> bool:
    return any(stop in text for stop in stop_strings)


def completion_text(tokenizer: Any, ids: Iterable[int]) -> str:
    """Text of a completion without its last token, if that ends the sequence. Every other control
    token is shown, so that no reward is blind to it."""
    plain = [int(one) for one in ids]
    ends = getattr(tokenizer, "stop_ids", None) or (getattr(tokenizer, "eos_token_id", None),)
    if plain and plain[-1] in ends:
        plain.pop()
    return tokenizer.decode(plain, skip_special_tokens=False)
