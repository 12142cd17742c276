"""A chat -> what supervised training shows the model of it: for every turn of the assistant, the
prompt as the model would meet it, and what it should say then.

    prompt_i = template(messages before turn i, generation prompt)
    target_i = what the template writes behind prompt_i for turn i, to the token that ends the turn

Templates of reasoning models drop the thought of earlier turns, so turn i is not trained inside the
chat's full text: there its prompt would be another. Each turn is an example of its own, with its
prompt's earlier thoughts dropped and its own thought kept. Some templates drop the thought of the
last turn too (DeepSeek-R1, QwQ), or open the thought in the generation prompt, which the full text
then does not have: in both cases the target is what the message itself says, its thought
(`reasoning_content`, or between the tags in `content`) first, and what the prompt has prefilled
left out. Where the template has {% generation %} blocks they say where the turn ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .added_tokens import MarkedText, Pieces
from .hf_tokenizer import Tokenizer
from .tokenizer import END_THINK, THINK, end_of_text, split_thinking

Message = Mapping[str, Any]


def chat_examples(messages: Sequence[Message], tokenizer: Tokenizer,
                  tools: Sequence[Any] | None = None, where: str = "messages",
                  **variables: Any) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) of every turn of the assistant. ValueError, with `where` in it,
    where there is none, or where the template does not show what a turn says."""
    turns = [i for i, one in enumerate(messages) if one.get("role") == "assistant"]
    if not turns:
        raise ValueError(f"{where}: there is no turn of the assistant to learn")
    if turns[0] == 0:
        raise ValueError(f"{where}: the assistant speaks first; there is no prompt")
    examples: list[tuple[list[int], list[int]]] = []
    known: Pieces = {}
    for i in turns:
        prompt = tokenizer.render_marked(messages[:i], add_generation_prompt=True, tools=tools,
                                         **variables)
        whole = tokenizer.render_marked(messages[:i + 1], tools=tools, spans=True, **variables)
        completion = _as_rendered(prompt, whole, messages[i], tokenizer, known)
        if completion is None:
            completion = _as_said(prompt, whole, messages[i], tokenizer, known,
                                  f"{where}, message {i}")
        examples.append((tokenizer.encode_marked(prompt, known)[0], completion))
    return examples


def _parts(message: Message) -> tuple[str, str]:
    """(thought, what is said after it), as the message has them."""
    content = message.get("content")
    content = content if isinstance(content, str) else ""
    thought = next((message[name] for name in ("reasoning_content", "thinking", "reasoning")
                    if isinstance(message.get(name), str)), None)
    if thought is not None:
        return thought.strip(), content.strip()
    return split_thinking(content) if END_THINK in content else ("", content.strip())


def _as_rendered(prompt: MarkedText, whole: MarkedText, message: Message, tokenizer: Tokenizer,
                 known: Pieces) -> list[int] | None:
    """Ids behind the prompt to the end of the turn; None where the text does not go on from the
    prompt, or leaves out what the message says."""
    marks, text = whole.span_marks, whole.text
    if not _without(text, marks).startswith(prompt.text):
        return None
    place = len(prompt.text)  # and one further for every mark before it
    for found in re.finditer(f"[{marks[0]}{marks[1]}]", text):
        if found.start() > place or found.start() == place and found[0] == marks[0]:
            break
        place += 1
    rest = MarkedText(text[place:], whole.mark, marks)
    shown = rest.plain
    if any(part not in shown for part in _parts(message)):
        return None
    ids, said = tokenizer.encode_marked(rest, known)
    stops = [k for k, one in enumerate(ids) if one in tokenizer.stop_ids]
    ends = [k for k, one in enumerate(said) if one] or stops or [len(ids) - 1]
    ids = ids[:ends[-1] + 1 + (ends[-1] + 1 in stops and ends[-1] not in stops)]
    return ids if ids and ids[-1] in tokenizer.stop_ids else [*ids, end_of_text(tokenizer)]


def _as_said(prompt: MarkedText, whole: MarkedText, message: Message, tokenizer: Tokenizer,
             known: Pieces, where: str) -> list[int]:
    """Ids of the message's own words, and the token with which the template ends the turn."""
    if not isinstance(message.get("content"), str) or message.get("tool_calls"):
        raise ValueError(f"{where}: the chat template does not show all that it says, and it is not "
                         f"text alone; give the row as 'prompt' and 'completion'")
    thought, answer = _parts(message)
    opened = prompt.text.rstrip().endswith(THINK)
    said = f"{thought}\n{END_THINK}\n\n{answer}" if thought or opened else answer
    if not opened and thought:
        said = f"{THINK}\n{said}"
    stops = [one for one in tokenizer.encode_marked(whole, known)[0] if one in tokenizer.stop_ids]
    return [*tokenizer.encode_completion(said), *(stops[-1:] or [end_of_text(tokenizer)])]


def _without(text: str, marks: tuple[str, str]) -> str:
    return text.replace(marks[0], "").replace(marks[1], "")
