"""Chat templates: messages -> text, byte for byte as `transformers` renders them.

A template sees plain JSON data only: `messages`, `tools`, `add_generation_prompt`, the names of the
special tokens (bos_token, ...) and the caller's own variables. As in transformers, keys whose value
is None are left out, and reasoning given as `reasoning_content`, `thinking` or `reasoning` is found
under all of these names. The template itself runs in template_sandbox.py, bounded in work and output.

Some characters must be told apart from everything that messages and templates hold: marks around
what the assistant says, inside text that must not become a token, at the place where a continued
message is cut. They are taken from Unicode's 66 noncharacters, which no text has a use for; those
that the data at hand holds all the same are passed over, so no text can forge one.

`strftime_now` (Llama 3.2's date) reads a clock: a prompt rendered tomorrow is another prompt. Pass
`date_string` to have one that stays. Knows nothing about tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_NONCHARACTERS = (*map(chr, range(0xFDD0, 0xFDF0)),
                  *(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)))
_REASONING = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


class ChatTemplateError(ValueError):
    """A template that cannot be compiled, or that failed: with its own message where it has one."""


class ChatTemplate:
    """One template, compiled when it is first used."""

    def __init__(self, source: str) -> None:
        if not isinstance(source, str):
            raise ChatTemplateError(f"a chat template is text, not {type(source).__name__}")
        self.source = source

    @functools.cached_property
    def _sandbox(self) -> Any:
        from .template_sandbox import Sandbox
        return _guarded(lambda: Sandbox(self.source), "cannot be compiled")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False,
               tools: Sequence[Any] | None = None, continue_final_message: bool = False,
               span_marks: tuple[str, str] = ("", ""),
               protect: Callable[[str, str], str] = lambda text, role: text,
               **variables: Any) -> str:
        """The text. continue_final_message cuts it behind the last message's content, for the model
        to go on from there; span_marks stand around what a {% generation %} block makes; protect(text,
        role) is applied to every string that the caller gives but the special tokens' (role of
        messages, else "")."""
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        rows = [_message(one, i, protect) for i, one in enumerate(messages)]
        if not rows:
            raise ValueError("a chat has at least one message")
        end = ""
        if continue_final_message:
            end = unused_characters(1, rows, self.source)[0]
            rows[-1]["content"] = _continued(rows[-1], end + " ")
        data = {name: plain(value, lambda text: protect(text, ""))
                for name, value in {**variables, "tools": tools}.items()
                if not name.endswith("_token")}
        data |= {name: value for name, value in variables.items() if name.endswith("_token")}
        sandbox = self._sandbox
        text = _guarded(lambda: sandbox.render(
            {"documents": None, **data, "messages": rows,
             "add_generation_prompt": add_generation_prompt}, span_marks), "failed")
        return _cut(text, end) if end else text


def _guarded(work: Callable[[], Any], what: str) -> Any:
    """What work gives. Whatever a template raises, from a syntax error to RecursionError and
    MemoryError, is one kind of error here."""
    try:
        return work()
    except Exception as error:
        name = type(error).__name__
        text = str(error) if name in ("TemplateError", "OverBudget") else f"{name}: {error}"
        raise ChatTemplateError(f"the chat template {what}: {text[:500]}") from error


# ---- data ----------------------------------------------------------------------------------------

def plain(value: Any, text: Callable[[str], str] = str) -> Any:
    """A copy in JSON's types; strings, those of keys too, through `text`."""
    if isinstance(value, str):
        return text(str.__str__(value))
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {plain(key, text): plain(item, text) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, text) for item in value]
    raise TypeError(f"a chat holds text, numbers, lists and dicts, not {type(value).__name__}")


def _message(message: Message, i: int, protect: Callable[[str, str], str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise TypeError(f"message {i} is {type(message).__name__}, expected a dict with 'role' and "
                        f"'content'")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"message {i} has no 'role'")
    role = message["role"]
    row = plain({key: value for key, value in message.items() if value is not None},
                lambda text: protect(text, role))
    reasoning = next((row[name] for name in _REASONING if name in row), None)
    return row if reasoning is None else {"thinking": reasoning, **row,
                                          "reasoning_content": reasoning}


def strings_in(value: Any) -> Iterator[str]:
    """Every string in JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings_in(item)


def unused_characters(n: int, *data: Any) -> list[str]:
    """The first n noncharacters that occur in none of the data."""
    texts = [text for text in strings_in(data) if not text.isascii()]
    free = []
    for one in _NONCHARACTERS:
        if len(free) < n and not any(one in text for text in texts):
            free.append(one)
    if len(free) < n:
        raise ValueError("the text holds so many of Unicode's noncharacters that none is left to "
                         "mark places with; it is no text")
    return free


def named_templates(config: Any, file: bytes | None, where: str) -> dict[str, ChatTemplate]:
    """Templates by name; the only one is "default". config: the entry of tokenizer_config.json, a
    text or a list of {"name", "template"}; file: chat_template.jinja, which goes before it."""
    if file is not None:
        config = file.decode("utf-8")
    if isinstance(config, list):
        if not all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in config):
            raise ValueError(f"{where}: chat_template is a list of something else than names and "
                             f"templates")
        return {one["name"]: ChatTemplate(one["template"]) for one in config}
    return {} if config is None else {"default": ChatTemplate(config)}


# ---- continuing the last message -------------------------------------------------------------------

def _continued(message: dict[str, Any], mark: str) -> Any:
    """The content with the mark behind its last text."""
    content = message.get("content")
    if isinstance(content, str):
        return content + mark
    for i in reversed(range(len(content) if isinstance(content, list) else 0)):
        if isinstance(content[i], dict) and isinstance(content[i].get("text"), str):
            part = {**content[i], "text": content[i]["text"] + mark}
            return [*content[:i], part, *content[i + 1:]]
    raise ValueError("continue_final_message: the last message has no text to continue")


def _cut(text: str, end: str) -> str:
    """The text up to the mark. Where the template has trimmed the blank behind the mark, it has
    trimmed the message, so the blanks in front of it go too."""
    place = text.rfind(end)
    if place < 0:
        raise ChatTemplateError("continue_final_message: the chat template drops the last message")
    return text[:place] if text[place + 1:place + 2] == " " else text[:place].rstrip()
