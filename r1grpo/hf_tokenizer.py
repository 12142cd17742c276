"""The tokenizer of a published model: `tokenizer.json` and what stands beside it.

    tokenizer.json           the tokens and how text falls into them (library `tokenizers`)
    tokenizer_config.json    bos, eos, pad; the chat template, or a list of named ones
    chat_template.jinja      the chat template, before the one in the config
    generation_config.json   further ids that end a completion
    special_tokens_map.json, vocab.json, ...   older files, carried along

Methods are called as in `transformers` and give the same, in plain lists, but for this:

- Text that spells an added token (`<|im_end|>`) stays text, unless `allow_special` says otherwise
  (added_tokens.py says why and how). One exception: what the assistant of a chat says may hold the
  thinking tags, which are its own. A template that makes a token's text out of pieces
  ('<|' + role + '|>') makes tokens of roles.
- `encode` adds nothing (`add_special_tokens=False`); calling the tokenizer does, as there.
- Decoding leaves special tokens out (`skip_special_tokens=True`), and never cleans up spaces,
  whatever the config says: text must be what the ids say.
- `vocab_size` counts the added tokens too: it is what a model's embedding needs.
- Nothing is padded, cut or made a tensor: sequences are packed as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .added_tokens import MarkedText, Pieces
from .brief import brief
from .chat_template import ChatTemplate, Message, named_templates, unused_characters
from .hub import find_folder, read_carried
from .safe_files import write_atomic, write_folder
from .text_stream import TextStream
from .tokenizer import END_THINK, THINK
from .vocabulary import Vocabulary

_NOT_HERE = ("return_tensors", "padding", "truncation", "max_length")


class Encoding(dict[str, Any]):
    """{"input_ids": ids, "attention_mask": ones}, lists of lists for several texts; also as
    attributes."""

    input_ids = property(lambda self: self["input_ids"])
    attention_mask = property(lambda self: self["attention_mask"])


class Tokenizer(Vocabulary):
    """Text <-> ids, and chats -> ids. Made by `from_pretrained` or `train`.

    Its tokens, names and ids: vocabulary.py. chat_template: ChatTemplate or None."""

    def __init__(self, files: Mapping[str, bytes], where: str = "tokenizer") -> None:
        super().__init__(files, where)
        self._templates = named_templates(self._config.get("chat_template"),
                                          self.files.get("chat_template.jinja"), where)

    # ---- files ----

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], revision: str | None = None
                        ) -> Tokenizer:
        """Reads a model's folder: a path, or an id of the hub, as in Model.from_pretrained."""
        folder = find_folder(folder, revision, lambda found: (found / "tokenizer.json").is_file())
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder here")
        if not (folder / "tokenizer.json").is_file():
            other = [name for name in ("tokenizer.model", "vocab.json") if (folder / name).exists()]
            raise FileNotFoundError(
                f"{folder} has no tokenizer.json" + (f", only {other[0]}: save it once with "
                f"transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
                                                     if other else ""))
        return cls(read_carried(folder), str(folder))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files it was read from into the folder, beside what is there."""
        folder = Path(folder)
        if not folder.exists():
            write_folder(folder, self.files)
            return
        for name, content in self.files.items():
            if name != "generation_config.json" or not (folder / name).exists():
                write_atomic(folder / name, content)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int,
              special_tokens: Sequence[str] = ("<pad>", "<bos>", "<eos>"),
              tags: Sequence[str] = (THINK, END_THINK), chat_template: str | None = None,
              **named: str) -> Tokenizer:
        """Byte-level BPE for a small model: every text has ids, digits stay single.

        special_tokens get the first ids, tags (added tokens that decoding shows) the last.
        named: pad_token=..., bos_token=..., eos_token=...; by default "<pad>", "<bos>", "<eos>"
        where they are among the special tokens."""
        from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Core
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        least = len(alphabet) + len(special_tokens) + len(tags)
        if vocab_size < least:
            raise ValueError(f"vocab_size is {vocab_size}, bytes and special tokens need {least}")
        core = Core(models.BPE())
        core.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False)])
        core.decoder = decoders.ByteLevel()
        core.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=vocab_size - len(tags), special_tokens=list(special_tokens),
            initial_alphabet=sorted(alphabet), show_progress=False))
        core.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast",
                                  "clean_up_tokenization_spaces": False}
        for name, token in (("pad_token", "<pad>"), ("bos_token", "<bos>"), ("eos_token", "<eos>")):
            if name in named or token in special_tokens:
                config[name] = named.pop(name, token)
        if named:
            raise TypeError(f"train() has no option {min(named)!r}")
        if chat_template is not None:
            config["chat_template"] = chat_template
        return cls({"tokenizer.json": core.to_str(pretty=True).encode(),
                    "tokenizer_config.json": json.dumps(config, indent=2).encode()})

    # ---- text -> ids ----

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True,
                 allow_special: bool | Collection[str] = False, **options: Any) -> Encoding:
        """{"input_ids", "attention_mask"} of a text, or lists of them of several."""
        _refuse(options, "a tokenizer's call", "lists of ids")
        if isinstance(text, str):
            ids = self.encode(text, allow_special, add_special_tokens)
            return Encoding(input_ids=ids, attention_mask=[1] * len(ids))
        many = [self.encode(one, allow_special, add_special_tokens) for one in text]
        return Encoding(input_ids=many, attention_mask=[[1] * len(ids) for ids in many])

    def encode(self, text: str, allow_special: bool | Collection[str] = False,
               add_special_tokens: bool = False) -> list[int]:
        """Ids of the text. allow_special: what in it may become added tokens: False nothing, True all
        that spells one, or these. add_special_tokens: with prefix_ids and suffix_ids around."""
        if not isinstance(text, str):
            raise TypeError(f"a tokenizer encodes text, not {type(text).__name__}")
        if allow_special is True:
            allow_special = self._added.ids
        allowed = tuple(allow_special or ())
        if unknown := set(allowed) - self._added.ids.keys():
            raise ValueError(f"{brief(min(unknown))} is no added token of this tokenizer")
        ids, _ = self._added.encode(MarkedText(text), allowed)
        return [*self.prefix_ids, *ids, *self.suffix_ids] if add_special_tokens else ids

    def tokenize(self, text: str, allow_special: bool | Collection[str] = False) -> list[str]:
        """The tokens of the text, as the vocabulary writes them."""
        return self.convert_ids_to_tokens(self.encode(text, allow_special))

    def encode_completion(self, text: str) -> list[int]:
        """Ids of what the model is to say, without an end: its thinking tags are tokens."""
        return self.encode(text, self._tags)

    @property
    def _tags(self) -> tuple[str, ...]:
        return tuple(tag for tag in (THINK, END_THINK) if tag in self._added.ids)

    # ---- ids -> text ----

    def decode(self, ids: int | Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 show as U+FFFD."""
        return self._core.decode(self._checked(ids), skip_special_tokens=skip_special_tokens)

    def batch_decode(self, batch: Iterable[Iterable[int]],
                     skip_special_tokens: bool = True) -> list[str]:
        """decode of each."""
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """Decodes ids as they come."""
        return TextStream(self, skip_special_tokens)

    # ---- chats ----

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The default one; None where the tokenizer has none."""
        return self._templates.get("default")

    def _template(self, name: str | None, tools: Any) -> ChatTemplate:
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            known = ", ".join(self._templates) or "none: give prompts as text or as prompt_ids"
            raise ValueError(f"the tokenizer has no chat template {brief(name)}; it has {known}")
        return self._templates[name]

    def render_marked(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None,
                      chat_template: str | None = None, allow_special: bool = False,
                      spans: bool = False, **options: Any) -> MarkedText:
        """The text of a chat with what encode_marked needs to know of it. spans: mark what stands in
        {% generation %} blocks."""
        mark, *ends = unused_characters(3, list(messages), tools, options)
        span_marks = (ends[0], ends[1])

        control, tags = self._added.control, self._tags
        own = tuple(one for one in control if one not in tags)  # the assistant's thinking tags are its own

        def protect(text: str, role: str) -> str:
            return self._added.guard(text, own if role == "assistant" else control, mark)
        if not allow_special:
            options["protect"] = protect
        if spans:
            options["span_marks"] = span_marks
        text = self._template(chat_template, tools).render(messages, tools=tools,
                                                           **{**self._special, **options})
        return MarkedText(text, mark, span_marks)

    def encode_marked(self, chat: MarkedText, known: Pieces | None = None
                      ) -> tuple[list[int], list[bool]]:
        """Ids, and which of them the assistant says (only with spans). known: a dictionary that calls
        for texts of one chat share, so that no piece is encoded twice."""
        return self._added.encode(chat, tuple(self._added.ids), known)

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True,
                    **options: Any) -> str:
        """The text of a chat, byte for byte as transformers renders it. options: as in
        apply_chat_template."""
        return self.render_marked(messages, add_generation_prompt=add_generation_prompt,
                                  **options).plain

    def apply_chat_template(self, messages: Sequence[Message], tokenize: bool = True,
                            add_generation_prompt: bool | None = None,
                            tools: Sequence[Any] | None = None,
                            continue_final_message: bool = False, allow_special: bool = False,
                            chat_template: str | None = None, return_dict: bool = False,
                            return_assistant_tokens_mask: bool = False,
                            **variables: Any) -> list[int] | str | Encoding:
        """Ids of a chat, or its text, or with return_dict what calling the tokenizer gives.
        add_generation_prompt: let the assistant speak next (on unless the last message is to be
        continued); allow_special: messages may spell special tokens; chat_template: the name of one
        of several; return_assistant_tokens_mask: "assistant_masks", 1 where {% generation %} blocks
        are; variables: what else the template reads (enable_thinking=False, date_string="...")."""
        _refuse(variables, "apply_chat_template", "one list of ids, or with tokenize=False the text",
                others=True)
        if return_assistant_tokens_mask and not return_dict:
            raise ValueError("return_assistant_tokens_mask needs return_dict=True")
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        chat = self.render_marked(
            messages, add_generation_prompt=add_generation_prompt, tools=tools,
            continue_final_message=continue_final_message, allow_special=allow_special,
            chat_template=chat_template, spans=return_assistant_tokens_mask, **variables)
        if not tokenize:
            return chat.plain
        ids, said = self.encode_marked(chat)
        if not return_dict:
            return ids
        masks = {"assistant_masks": [int(one) for one in said]} if return_assistant_tokens_mask else {}
        return Encoding(input_ids=ids, attention_mask=[1] * len(ids), **masks)

    def opens_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends in `<think>`: its completion begins inside the thought."""
        tail = self.decode(prompt_ids[-16:], skip_special_tokens=False)
        return tail.rstrip().endswith(THINK)


def _refuse(options: dict[str, Any], who: str, gives: str, others: bool = False) -> None:
    """Takes options of transformers out that ask for nothing; TypeError for those that do, and for
    others unless they are allowed."""
    for name in list(options):
        if name in _NOT_HERE:
            if options.pop(name):
                raise TypeError(f"{who} has no {name}: it gives {gives}, sequences are packed here "
                                f"and never padded or cut")
        elif not others:
            raise TypeError(f"{who} has no option {name!r}")
