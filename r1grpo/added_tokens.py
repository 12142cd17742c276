"""Text is not control: text -> ids where only chosen places may become added tokens.

Every published tokenizer turns text that spells an added token (`<|im_end|>`) into that token, so
whoever writes a question may end the turn. Here an added token comes from the template's own text or
from a caller who asks, never from data. How: a second copy of the tokenizer spells each added token
with two characters that the text at hand does not hold (a noncharacter of Unicode, then the token's
number), and only places that may become tokens are rewritten so; whatever the data spells is plain
text to that copy. In a chat, every character of a token's spelling inside the caller's strings is
followed by another such mark before rendering (`guard`); the mark keeps the place from being taken
for the template's own and is removed before encoding. Where no string spells a token nothing is
marked, and ids are those of `transformers`.

Time is linear in the text, whatever it spells and however many spans it has. Where many texts share
pieces (the turns of a chat), a dictionary keeps what was encoded: the library never looks across an
added token, so a piece has the ids that it has behind the same token anywhere.
"""

from __future__ import annotations

import functools
import json
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .chat_template import unused_characters

Pieces = dict[tuple[str, str], list[int]]  # (first character of its tokens, piece) -> ids
_FIRST = 0xF0000  # the second character of added token i is _FIRST + i


@dataclass(frozen=True)
class MarkedText:
    """A rendered chat. mark follows every character of what must not become a token; span_marks
    stand around what the assistant says."""

    text: str
    mark: str = ""
    span_marks: tuple[str, str] = ("", "")

    @property
    def plain(self) -> str:
        """The text without its marks."""
        return self.text.translate({ord(one): None for one in (self.mark, *self.span_marks) if one})


class AddedTokens:
    """The added tokens of a tokenizer, and the encoder that makes them of nothing else.

    ids: their texts -> ids, in the order of ids; control: those that data may not spell (all but
    white space, for which some tokenizers have added tokens)."""

    def __init__(self, core: Any, text: str) -> None:
        """core: a tokenizers.Tokenizer; text: its tokenizer.json."""
        self._core, self._text = core, text
        found = sorted(core.get_added_tokens_decoder().items())
        self._tokens = {token.content: token for _, token in found}
        self.ids = {token.content: i for i, token in found}
        self.control = tuple(one for one in self.ids if not one.isspace())
        self._all = frozenset(self.ids.values())
        self._numbers = {one: chr(_FIRST + k) for k, one in enumerate(self.ids)}
        self._found = functools.lru_cache(maxsize=16)(self._find)
        # a token that strips on its left takes blanks of the piece before it
        self._parts = not any(token.lstrip for _, token in found)

    def guard(self, text: str, tokens: tuple[str, ...], mark: str) -> str:
        """The text with the mark behind every character of what spells one of the tokens."""
        return self._found(tokens).sub(
            lambda match: "".join(one + mark for one in match[0]), text)

    def encode(self, marked: MarkedText, tokens: tuple[str, ...],
               known: Pieces | None = None) -> tuple[list[int], list[bool]]:
        """Ids, and which of them lie between span marks. Of what the text spells only `tokens`
        become added tokens, and not where the mark follows; marks leave no trace. known: pieces and
        their ids, of this and earlier calls; changes no id."""
        text, mark = marked.text, marked.mark
        lead = unused_characters(1, text, mark, marked.span_marks)[0]
        core, ours = self._bare(lead)
        text = self._found(tokens, mark).sub(lambda match: lead + self._numbers[match[0]], text)
        text = text.replace(mark, "") if mark else text
        text, starts, ends = _cut_spans(text, marked.span_marks)
        if known is not None and self._parts and not starts:
            ids: list[int] = []
            for piece in re.split(f"(?={lead})", text):
                if (lead, piece) not in known:  # another text may spell what the lead makes of tokens here
                    known[lead, piece] = self._ours(core.encode(piece, add_special_tokens=False).ids,
                                                    ours)
                ids += known[lead, piece]
            return ids, [False] * len(ids)
        encoding = core.encode(text, add_special_tokens=False)
        mask = [False] * len(encoding.ids)
        for k, (first, last) in enumerate(encoding.offsets if starts else ()):
            span = bisect_right(ends, first)  # of those that reach beyond the token's start the first
            mask[k] = span < len(starts) and starts[span] < last
        return self._ours(encoding.ids, ours), mask

    def _ours(self, ids: list[int], ours: dict[int, int]) -> list[int]:
        """Ids of the copy as ours; ValueError where a word of the vocabulary is an added token."""
        if spelled := self._all.intersection(ids) - ours.keys():
            token = self._core.id_to_token(min(spelled))
            raise ValueError(f"the text spells {token!r}, which this tokenizer's vocabulary holds "
                             f"as a word: it cannot be told from the special token")
        return [ours.get(i, i) for i in ids]

    @functools.cached_property
    def _bare(self) -> Callable[[str], tuple[Any, dict[int, int]]]:
        """The copy for a first character: (tokenizer, its ids of added tokens -> ours)."""
        import tokenizers
        content = json.loads(self._text)
        content |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
        text = json.dumps(content, ensure_ascii=False)
        unknown = content["model"].get("unk_token"), content["model"].get("unk_id")

        @functools.lru_cache(maxsize=2)
        def copy(lead: str) -> tuple[Any, dict[int, int]]:
            core, ours = tokenizers.Tokenizer.from_str(text), {}
            core.add_tokens([tokenizers.AddedToken(
                lead + self._numbers[one], normalized=False, single_word=token.single_word,
                lstrip=token.lstrip, rstrip=token.rstrip) for one, token in self._tokens.items()])
            for one, i in self.ids.items():
                ours[core.token_to_id(lead + self._numbers[one])] = i
            for i in (core.token_to_id(unknown[0]) if unknown[0] else None, unknown[1]):
                if i is not None:  # what no word is for, wherever it is an added token too
                    ours[i] = i
            return core, ours
        return copy

    def _find(self, tokens: tuple[str, ...], unless: str = "") -> re.Pattern[str]:
        """Any of the tokens, the longest first; `unless` is a character that must not follow."""
        texts = sorted(tokens, key=len, reverse=True)
        words = [rf"(?<!\w){re.escape(one)}(?!\w)" if self._tokens[one].single_word
                 else re.escape(one) for one in texts]
        behind = f"(?!{unless})" if unless else ""
        return re.compile(f"(?:{'|'.join(words)}){behind}" if words else r"(?!)")


def _cut_spans(text: str, marks: tuple[str, str]) -> tuple[str, list[int], list[int]]:
    """The text without span marks, and where its spans start and end, in order. A closing mark alone
    closes what was opened before the text, or around the span that has just ended."""
    plain, starts, ends, place = [], [], [], 0
    for piece in re.split(f"([{marks[0]}{marks[1]}])", text) if marks[0] else [text]:
        if piece and piece in marks:
            if piece == marks[1]:
                if len(starts) == len(ends):
                    starts.append(ends[-1] if ends else 0)
                ends.append(place)
            elif len(starts) == len(ends):
                starts.append(place)
        else:
            plain.append(piece)
            place += len(piece)
    return "".join(plain), starts, [*ends, place][:len(starts)]
