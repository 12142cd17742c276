"""generate.py - `r1grpo generate --model FOLDER`: text streamed from a model, once or as a chat.

    r1grpo generate --model FOLDER "prompt"     one completion; through the chat template, if any
    r1grpo generate --model FOLDER --chat       a conversation: /reset begins anew, Ctrl-D ends it

Text is decoded token by token, so no half character is shown. Thinking is dimmed on a terminal and
plain elsewhere. A turn is kept in the history as the model wrote it; what the template drops of
earlier turns (DeepSeek-R1: their thinking) it drops itself. Ctrl-C stops a turn, not the chat. What
is drawn is a function of the seed, the history and the options.
"""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

from ..model import Model
from .inputs import Tokenizer, open_sampler, open_tokenizer
from .options import Inputs

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_MOST = 4096  # tokens of a completion
_TAIL = len("</think>")  # a tag may come in several tokens
Messages = list[dict[str, str]]


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py, which has checked their values."""
    question = " ".join(flags.words)
    if flags.chat == bool(question.strip()):
        raise ValueError("generate --model FOLDER needs either a prompt or --chat")
    inputs = Inputs(model=flags.model, revision=flags.revision, dtype=flags.dtype,
                    device=flags.device)
    tokenizer = open_tokenizer(inputs)
    if flags.chat and tokenizer.chat_template is None:
        raise ValueError(f"{flags.model} has no chat template; give a prompt without --chat")
    model = open_sampler(inputs, tokenizer)
    if flags.chat:
        return _chat(model, tokenizer, flags)
    if tokenizer.chat_template is None or flags.raw:
        prompt = [*tokenizer.prefix_ids, *tokenizer.encode(question)]
    else:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}])
    answer(model, tokenizer, prompt, flags, flags.seed, sys.stdout)
    return 0


def _chat(model: Model, tokenizer: Tokenizer, flags: argparse.Namespace) -> int:
    history: Messages = []
    seed = flags.seed
    while True:
        try:
            line = input("\n> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            print()
            return 0
        if line == "/reset":
            history = []
        elif line:
            asked = [*history, {"role": "user", "content": line}]
            prompt = tokenizer.apply_chat_template(asked)
            text = answer(model, tokenizer, prompt, flags, seed, sys.stdout)
            history = [*asked, {"role": "assistant", "content": text}]
            seed += 1


def answer(model: Model, tokenizer: Tokenizer, prompt: list[int], flags: argparse.Namespace,
           seed: int, out: TextIO) -> str:
    """Stream one completion; returns its text. Ctrl-C ends it early."""
    session = model.session([prompt], 1, flags.max_tokens or _MOST, temperature=flags.temperature,
                            top_p=flags.top_p, seed=seed, speculative=flags.speculative,
                            stop_token_ids=(*model.config.stop_ids(), *tokenizer.stop_ids))
    screen = Dimmed(out, tokenizer.opens_thought(prompt))
    text, decoder = "", tokenizer.stream()
    try:
        while not session.done:
            shown = len(session.ids(0))
            session.run(4 if flags.speculative else 1)
            text += screen.write(decoder.put(session.ids(0)[shown:]))
    except KeyboardInterrupt:
        if not flags.chat:
            raise
    text += screen.write(decoder.finish())
    screen.close()
    if session.done and session.rollout().finish_reasons[0] == "length":
        print(f"(cut off after {len(session.ids(0))} tokens)", file=sys.stderr)
    return text


class Dimmed:
    """A stream on which what stands between <think> and </think> is dim, if it is a terminal."""

    def __init__(self, out: TextIO, thinking: bool) -> None:
        self._out, self._tail, self._dim = out, "", False
        self._set(thinking)

    def write(self, piece: str) -> str:
        """Show a piece; returns it."""
        self._out.write(piece)
        self._tail = (self._tail + piece)[-_TAIL - len(piece):]
        opened, closed = self._tail.rfind("<think>"), self._tail.rfind("</think>")
        if opened != closed:  # both -1: no tag in sight
            self._set(opened > closed)
        self._out.flush()
        return piece

    def close(self) -> None:
        """Plain again, on a new line."""
        self._set(False)
        self._out.write("\n")
        self._out.flush()

    def _set(self, dim: bool) -> None:
        if dim != self._dim and self._out.isatty():
            self._out.write(_DIM if dim else _PLAIN)
        self._dim = dim
