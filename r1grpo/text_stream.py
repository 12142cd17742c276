"""Ids that come one after another -> pieces of text that can be printed at once.

A character may take several tokens (its bytes), and the bytes of an unfinished one decode to
U+FFFD. What ends so is held back until more has come, three such characters at most (an unfinished
character of UTF-8 has three bytes at most); `finish` gives what is left. Joined, the pieces are
decode() of all ids. Decodes a short window anew for every token: the last token that is settled
stays in it, since some tokenizers write a token differently at the start of a text. (Tokenizers of
the SentencePiece kind decode a row of byte tokens all or not at all: where such a row turns out
to be no UTF-8, a piece of it may have been printed.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_UNKNOWN = "\ufffd"
_HELD = 3


class TextStream:
    """text = stream.put(ids); ...; text = stream.finish()"""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []  # the window
        self._given = 0  # characters of its text that have been returned

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)

    def put(self, ids: Iterable[int]) -> str:
        """The text that these ids settle, maybe none."""
        self._ids += ids
        text = self._text()
        unsettled = min(_HELD, len(text) - len(text.rstrip(_UNKNOWN)))
        piece = text[self._given:len(text) - unsettled]
        self._given += len(piece)
        if not unsettled and self._ids:
            del self._ids[:-1]
            self._given = len(self._text())
        return piece

    def finish(self) -> str:
        """What was held back; the stream is empty then."""
        piece = self._text()[self._given:]
        self._ids, self._given = [], 0
        return piece
