"""Text <-> token ids over a closed vocabulary, and the two prompt templates.

Canonical text is words joined by single spaces; every word is one token (Chinese sentences are
written with their words already separated). ids follow the order of the vocabulary:

    0 <pad>   1 <bos>   2 <eos>   then the template's words, then whatever the tasks bring

The two templates (a prompt in, the shape of a good completion out):

    zero   first think then answer . User: QUESTION Assistant:
           <think> ... </think> <answer> ANSWER </answer>        stops at </answer>
    r1     User: QUESTION Assistant:
           <think> ... </think> a summary with \\boxed{ ANSWER }   stops at <eos>

`zero` is the paper's plain completion prompt (arXiv 2501.12948, table 1) in five words, which is
our choice: at this scale every prompt token costs compute. Nothing is prefilled in either.
Rows name their template in a column `template`. Knows nothing about the tasks or the model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .brief import brief

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
BOX, END_BOX = r"\boxed{", "}"
USER, ASSISTANT = "User:", "Assistant:"

CONTROL_WORDS = (PAD, BOS, EOS)
TEMPLATE_WORDS = (THINK, END_THINK, ANSWER, END_ANSWER, BOX, END_BOX, USER, ASSISTANT,
                  "first", "think", "then", "answer", ".")
TEMPLATES = ("zero", "r1")
_ZERO_PREFIX = "first think then answer . "
_TAGS = (THINK, END_THINK, ANSWER, END_ANSWER, USER, ASSISTANT)


# --- templates: questions in, parts of completions out ---------------------------------------

def check_template(template: str) -> None:
    """ValueError for a name that is none of TEMPLATES."""
    if template not in TEMPLATES:
        raise ValueError(f"template {brief(template)} is none of {', '.join(TEMPLATES)}")


def format_prompt(question: str, template: str) -> str:
    """The prompt that a question becomes; ends in `Assistant:`."""
    check_template(template)
    prefix = _ZERO_PREFIX if template == "zero" else ""
    return f"{prefix}{USER} {question} {ASSISTANT}"


def stop_strings(template: str) -> tuple[str, ...]:
    """What ends a completion besides the end-of-text token."""
    check_template(template)
    return (END_ANSWER,) if template == "zero" else ()


def split_thinking(text: str, prefilled: bool = False) -> tuple[str, str]:
    """(chain of thought, what follows it). Without `</think>`: all that follows `<think>` is
    thought, or, without either tag, everything is what follows. prefilled: the prompt has written
    `<think>` already, so the text begins inside the thought."""
    text = THINK + text if prefilled else text
    head, tag, rest = text.partition(END_THINK)
    if tag:
        return head.replace(THINK, " ", 1).strip(), rest.strip()
    before, tag, thought = text.partition(THINK)
    return (thought.strip(), "") if tag else ("", before.strip())


def extract_answer(text: str, template: str) -> str | None:
    """The final answer of a completion, by its template; None where there is none.

    zero: the text of the last `<answer> ... </answer>`. r1: the last `\\boxed{ ... }` after
    `</think>`, so that a box inside the chain of thought never counts.
    """
    check_template(template)
    if template == "zero":
        opening, closing = ANSWER, END_ANSWER
    else:
        opening, closing = BOX, END_BOX
        text = text.partition(END_THINK)[2]
    head, tag, rest = text.rpartition(opening)
    answer, end, _ = rest.partition(closing)
    return answer.strip() if tag and end else None


def is_wellformed(text: str, template: str, boxed: bool = True, prefilled: bool = False) -> bool:
    """Whether a completion has its template's shape, anchored at both ends, every tag once; with
    `prefilled` the prompt's last word is the first `<think>`.

    zero: `<think> T </think> <answer> A </answer>`, A not empty, T may be (a direct answer).
    r1: `<think> T </think> S`, S not empty and without tags; where `boxed`, S holds exactly one
    `\\boxed{ A }` and only a full stop may follow it. No control word stands in either.
    """
    check_template(template)
    text = (THINK + text if prefilled else text).strip()
    tags = [text.count(tag) for tag in _TAGS]
    if any(word in text for word in CONTROL_WORDS):
        return False
    if template == "zero":
        match = re.fullmatch(rf"{THINK}.*{END_THINK}\s*{ANSWER}(.+){END_ANSWER}", text, re.S)
        return match is not None and tags == [1, 1, 1, 1, 0, 0] and bool(match[1].strip())
    thought, summary = split_thinking(text)
    if not text.startswith(THINK) or tags != [1, 1, 0, 0, 0, 0] or not summary or BOX in thought:
        return False
    if not boxed:
        return BOX not in summary
    match = re.fullmatch(rf"[^{{}}]*{re.escape(BOX)}([^{{}}]+){END_BOX}\s*[.。]?", summary, re.S)
    return match is not None and bool(match[1].strip())


def end_of_text(tokenizer: Any) -> int:
    """The id behind what is learned; ValueError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, which is to end what is learned; give it one: "
                         "tokenizer.eos_token = ...")
    return int(tokenizer.eos_token_id)


# --- the tokenizer ---------------------------------------------------------------------------

class WordTokenizer:
    """One token a word over a closed vocabulary.

    >>> tokenizer = WordTokenizer(["7", "+", "5"])
    >>> tokenizer.decode(tokenizer.encode("7 + 5"))
    '7 + 5'
    """

    def __init__(self, words: Iterable[str]) -> None:
        vocabulary = dict.fromkeys((*CONTROL_WORDS, *TEMPLATE_WORDS, *words))
        for word in vocabulary:
            if not word or word.split() != [word]:
                raise ValueError(f"vocabulary: {brief(word)} is not one word")
        self.words: tuple[str, ...] = tuple(vocabulary)
        self._ids = {word: i for i, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def token_id(self, word: str) -> int:
        """The id of a word; ValueError for one that is not in the vocabulary."""
        if word not in self._ids:
            raise ValueError(f"{brief(word)} is not in the vocabulary of {len(self.words)} words")
        return self._ids[word]

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`; nothing is added. An unknown word raises ValueError."""
        ids = self._ids
        try:
            return [ids[word] for word in text.split()]
        except KeyError as error:
            raise ValueError(f"{brief(error.args[0])} is not in the vocabulary of {len(ids)} words; "
                             f"canonical text separates its words by spaces") from None

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Words joined by spaces; <pad>, <bos> and <eos> are left out unless asked for."""
        words, first = self.words, len(CONTROL_WORDS) if skip_special_tokens else 0
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < len(words):
            raise ValueError(f"a token id is outside 0..{len(words) - 1}")
        return " ".join([words[i] for i in ids if i >= first])

    def batch_decode(self, batch: Iterable[Iterable[int]],
                     skip_special_tokens: bool = True) -> list[str]:
        """decode of each."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def stop_token_ids(self, template: str) -> tuple[int, ...]:
        """<eos> and the template's stop strings, each of which is one token here."""
        return (self.eos_token_id, *(self.token_id(word) for word in stop_strings(template)))

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], tokenize: bool = True,
                            add_generation_prompt: bool = True,
                            template: str = "r1") -> list[int] | str:
        """Messages {"role": "user"|"assistant", "content"} as one prompt. As in the released
        chat template, the chain of thought of earlier turns is dropped."""
        check_template(template)
        parts: list[str] = [_ZERO_PREFIX.strip()] if template == "zero" else []
        for message in messages:
            if message["role"] == "user":
                parts.append(f"{USER} {message['content']}")
            elif message["role"] == "assistant":
                parts.append(f"{ASSISTANT} {split_thinking(message['content'])[1]} {EOS}")
            else:
                raise ValueError(f"message role {brief(message['role'])} is neither user nor assistant")
        if add_generation_prompt:
            parts.append(ASSISTANT)
        text = " ".join(parts)
        return self.encode(text) if tokenize else text

    # --- files: tokenizer.json in the layout that the `tokenizers` library loads -------------

    def to_json(self) -> str:
        """The text of tokenizer.json: a WordLevel model over whitespace."""
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": word, "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False, "special": True}
                for i, word in enumerate(CONTROL_WORDS)],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": self._ids, "unk_token": PAD},
        }
        return json.dumps(content, ensure_ascii=False, indent=1)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes FOLDER/tokenizer.json."""
        path = Path(folder) / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    save_pretrained = save

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> WordTokenizer:
        """Reads what `save` wrote; anything else is refused by name."""
        path = Path(folder) / "tokenizer.json"
        model = json.loads(path.read_text(encoding="utf-8")).get("model", {})
        vocabulary = model.get("vocab")
        if model.get("type") != "WordLevel" or not isinstance(vocabulary, dict):
            raise ValueError(f"{path}: model type {model.get('type')!r} is not WordLevel")
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[word] for word in words] != list(range(len(words))):
            raise ValueError(f"{path}: the ids are not 0..{len(words) - 1}, each once")
        tokenizer = cls(words)
        if tokenizer.words != tuple(words):
            raise ValueError(f"{path}: the vocabulary does not begin with the control words")
        return tokenizer
