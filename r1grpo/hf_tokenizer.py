"""The tokenizer of a published model: `tokenizer.json` and what stands beside it.

    tokenizer.json           the tokens and how text falls into them (library `tokenizers`)
    tokenizer_config.json    bos, eos, pad; the chat template, or a list of named ones
    chat_template.jinja      the chat template, before the one in the config
    generation_config.json   further ids that end a completion
    special_tokens_map.json, added_tokens.json   older files, carried along

**Text is not control.** Every published tokenizer turns text that spells an added token
(`<|im_end|>`) into that token, so whoever writes a question may end the turn. Here an added token
comes from the template's own text or from a caller who asks (`allow_special`), never from data.
How: a second copy of the tokenizer spells each added token with two characters that the text at
hand does not hold (a noncharacter of Unicode, then the token's number), and only places that may
become tokens are rewritten so; whatever the data spells is plain text to that copy. In a chat,
every character of a token's spelling inside the caller's strings is followed by another such
mark before rendering; the mark keeps the place from being taken for the template's own and is
removed before encoding. Where no string spells a token nothing is marked, and ids are those of
`transformers`. One exception: what the assistant says may hold the thinking tags, which are its own.
A template that makes a token's text out of pieces ('<|' + role + '|>') makes tokens of roles.

Decoding never cleans up spaces, whatever the config says: text must be what the ids say.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chat_template import ChatTemplate, ChatTemplateError, Message, unused_characters
from .checkpoint import read_bounded, write_atomic, write_folder
from .hub import find_folder
from .text_stream import TextStream
from .tokenizer import END_THINK, THINK

CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "added_tokens.json", "chat_template.jinja", "generation_config.json")
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")
_MAX_BYTES = 256 << 20  # of one file
_FIRST = 0xF0000  # the second character of added token i is _FIRST + i


class Tokenizer:
    """Text <-> ids, and chats -> ids. Made by `from_pretrained` or `train`.

    eos_token_id, bos_token_id, pad_token_id: int or None; vocab_size: ids are below it;
    stop_ids: all that end a completion; prefix_ids: what stands in front of any text (bos, where
    the model was trained so); chat_template: ChatTemplate or None."""

    def __init__(self, files: Mapping[str, bytes], where: str = "tokenizer") -> None:
        """files: the contents of the files above, by name."""
        import tokenizers
        self.files = dict(files)
        try:
            self._text = files["tokenizer.json"].decode("utf-8")
            self._core = tokenizers.Tokenizer.from_str(self._text)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{where}/tokenizer.json: {error}") from None
        self._core.no_padding()
        self._core.no_truncation()
        config = {**self._json("special_tokens_map.json", where),
                  **self._json("tokenizer_config.json", where)}
        self._special = {name: _content(config[name]) for name in _NAMES if config.get(name)}
        self._added = {token.content: (i, token) for i, token
                       in sorted(self._core.get_added_tokens_decoder().items())}
        self._added_ids = {i for i, _ in self._added.values()}
        self._numbers = {one: chr(_FIRST + k) for k, one in enumerate(self._added)}
        self._tags = tuple(tag for tag in (THINK, END_THINK) if tag in self._added)
        # what data may not spell; white space (some tokenizers have added tokens for it) may
        self._control = tuple(one for one in self._added if not one.isspace())
        self._foreign = tuple(one for one in self._control if one not in self._tags)
        self._found = functools.lru_cache(maxsize=16)(self._find)
        self.vocab_size = 1 + max(self._core.get_vocab(with_added_tokens=True).values())
        self.eos_token_id, self.bos_token_id, self.pad_token_id = (
            self._named_id(name, where) for name in ("eos_token", "bos_token", "pad_token"))
        stops = self._json("generation_config.json", where).get("eos_token_id")
        stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
        if not all(isinstance(one, int) and one >= 0 for one in stops):
            raise ValueError(f"{where}/generation_config.json: eos_token_id is {stops!r}")
        own = [] if self.eos_token_id is None else [self.eos_token_id]
        self.stop_ids = tuple(dict.fromkeys([*own, *stops]))
        ids = self._core.encode("a").ids
        bare = self._core.encode("a", add_special_tokens=False).ids
        self.prefix_ids = tuple(ids[:ids.index(bare[0])]) if bare and bare[0] in ids else ()
        self._templates = _templates(config.get("chat_template"),
                                     files.get("chat_template.jinja"), where)

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
        return cls({name: read_bounded(folder / name, _MAX_BYTES) for name in CARRIED
                    if (folder / name).is_file()}, str(folder))

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

    def _json(self, name: str, where: str) -> dict[str, Any]:
        if name not in self.files:
            return {}
        try:
            found = json.loads(self.files[name])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}/{name}: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{where}/{name} holds no object")
        return found

    def _named_id(self, name: str, where: str) -> int | None:
        if name not in self._special:
            return None
        found = self._core.token_to_id(self._special[name])
        if found is None:
            raise ValueError(f"{where}: {name} {self._special[name]!r} is no token of the tokenizer")
        return found

    def __len__(self) -> int:
        return self.vocab_size

    def check_fits(self, config: Any) -> None:
        """ValueError where the model's embedding has no row for some id."""
        largest = max(self.vocab_size - 1, *self.stop_ids, 0)
        if largest >= config.vocab_size:
            raise ValueError(f"the tokenizer has id {largest}, the model's embedding only "
                             f"{config.vocab_size} rows (vocab_size): they do not belong together")

    # ---- text -> ids ----

    @functools.cached_property
    def _bare(self) -> Callable[[str], tuple[Any, dict[int, int]]]:
        """The copy for a first character: (tokenizer, its ids of added tokens -> ours)."""
        import tokenizers
        content = json.loads(self._text)
        content |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
        text = json.dumps(content, ensure_ascii=False)

        @functools.lru_cache(maxsize=2)
        def copy(lead: str) -> tuple[Any, dict[int, int]]:
            core, ours = tokenizers.Tokenizer.from_str(text), {}
            core.add_tokens([tokenizers.AddedToken(
                lead + chr(_FIRST + k), normalized=False, single_word=token.single_word,
                lstrip=token.lstrip, rstrip=token.rstrip)
                for k, (_, token) in enumerate(self._added.values())])
            for k, (i, _) in enumerate(self._added.values()):
                ours[core.token_to_id(lead + chr(_FIRST + k))] = i
            return core, ours
        return copy

    def _find(self, tokens: tuple[str, ...], unless: str = "") -> re.Pattern[str]:
        """Any of the tokens, the longest first; `unless` is a character that must not follow."""
        texts = sorted(tokens, key=len, reverse=True)
        words = [rf"(?<!\w){re.escape(one)}(?!\w)" if self._added[one][1].single_word
                 else re.escape(one) for one in texts]
        behind = f"(?!{unless})" if unless else ""
        return re.compile(f"(?:{'|'.join(words)}){behind}" if words else r"(?!)")

    def _encode(self, text: str, tokens: tuple[str, ...], mark: str = "",
                span_marks: tuple[str, str] = ("", "")) -> tuple[list[int], list[bool]]:
        """Ids, and which of them lie between span marks. Of what the text spells only `tokens`
        become added tokens, and not where `mark` follows; marks leave no trace."""
        lead = unused_characters(1, text, mark, span_marks)[0]
        core, ours = self._bare(lead)
        text = self._found(tokens, mark).sub(lambda match: lead + self._numbers[match[0]], text)
        text = text.replace(mark, "") if mark else text
        spans = []
        while span_marks[0] and (start := text.find(span_marks[0])) >= 0:
            before, _, rest = text.partition(span_marks[0])
            inside, _, after = rest.partition(span_marks[1])
            text = before + inside + after
            spans.append((start, start + len(inside)))
        encoding = core.encode(text, add_special_tokens=False)
        spelled = self._added_ids.intersection(encoding.ids) - ours.keys()
        if spelled:
            token = self._core.id_to_token(min(spelled))
            raise ValueError(f"the text spells {token!r}, which this tokenizer's vocabulary holds "
                             f"as a word: it cannot be told from the special token")
        mask = [any(a < end and b > start for start, end in spans) for a, b in encoding.offsets] \
            if spans else [False] * len(encoding.ids)
        return [ours.get(i, i) for i in encoding.ids], mask

    def encode(self, text: str, allow_special: bool | Collection[str] = False) -> list[int]:
        """Ids of the text; nothing is added. allow_special: what in it may become added tokens:
        False nothing, True all that spells one, or these."""
        if allow_special is True:
            allow_special = self._added
        allowed = tuple(allow_special or ())
        if unknown := set(allowed) - set(self._added):
            raise ValueError(f"{min(unknown)!r} is no added token of this tokenizer")
        return self._encode(text, allowed)[0]

    def encode_completion(self, text: str) -> list[int]:
        """Ids of what the model is to say, without an end: its thinking tags are tokens."""
        return self.encode(text, self._tags)

    # ---- ids -> text ----

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 show as U+FFFD."""
        ids = [int(one) for one in ids]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"a token id is outside 0..{self.vocab_size - 1}")
        return self._core.decode(ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, batch: Iterable[Iterable[int]],
                     skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in batch]

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """Decodes ids as they come."""
        return TextStream(self, skip_special_tokens)

    # ---- chats ----

    @property
    def chat_template(self) -> ChatTemplate | None:
        return self._templates.get("default")

    def _template(self, name: str | None, tools: Any) -> ChatTemplate:
        if name is None:
            name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            known = ", ".join(self._templates) or "none: give prompts as text or as prompt_ids"
            raise ValueError(f"the tokenizer has no chat template {name!r}; it has {known}")
        return self._templates[name]

    def render_marked(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None,
                      chat_template: str | None = None, allow_special: bool = False,
                      spans: bool = False, **options: Any) -> MarkedText:
        """The text of a chat with what encode_marked needs to know of it. spans: mark what stands in
        {% generation %} blocks."""
        mark, *ends = unused_characters(3, list(messages), tools, options)
        span_marks = (ends[0], ends[1])

        def protect(text: str, role: str) -> str:
            tokens = self._foreign if role == "assistant" else self._control
            return self._found(tokens).sub(
                lambda match: "".join(one + mark for one in match[0]), text)
        if not allow_special:
            options["protect"] = protect
        if spans:
            options["span_marks"] = span_marks
        text = self._template(chat_template, tools).render(messages, tools=tools,
                                                           **{**self._special, **options})
        return MarkedText(text, mark, span_marks)

    def encode_marked(self, chat: MarkedText) -> tuple[list[int], list[bool]]:
        """Ids, and which of them the assistant says (only with spans)."""
        return self._encode(chat.text, tuple(self._added), chat.mark, chat.span_marks)

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
                            chat_template: str | None = None, **variables: Any) -> list[int] | str:
        """Ids of a chat, or its text. add_generation_prompt: let the assistant speak next (on unless
        the last message is to be continued); allow_special: messages may spell special tokens;
        chat_template: the name of one of several; variables: what else the template reads
        (enable_thinking=False, date_string="...")."""
        for name in ("return_tensors", "return_dict", "padding", "truncation", "max_length"):
            if variables.pop(name, None):
                raise TypeError(f"apply_chat_template has no {name}: it returns one list of ids, or "
                                f"with tokenize=False the text")
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        chat = self.render_marked(
            messages, add_generation_prompt=add_generation_prompt, tools=tools,
            continue_final_message=continue_final_message, allow_special=allow_special,
            chat_template=chat_template, **variables)
        return self.encode_marked(chat)[0] if tokenize else chat.plain

    @functools.cached_property
    def prefills_thinking(self) -> bool:
        """Whether the generation prompt opens the thought (`<think>` last), as DeepSeek-R1's and
        QwQ's do: completions then begin inside it."""
        if self.chat_template is None:
            return False
        try:
            text = self.render_chat([{"role": "user", "content": "1 + 1"}])
        except ChatTemplateError:
            return False
        return text.rstrip().endswith(THINK)

    def opens_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt ends in `<think>`: its completion begins inside the thought."""
        tail = self.decode(prompt_ids[-16:], skip_special_tokens=False)
        return tail.rstrip().endswith(THINK)


@dataclass(frozen=True)
class MarkedText:
    """A rendered chat. mark follows every character of what must not become a token; span_marks
    stand around what the assistant says."""

    text: str
    mark: str
    span_marks: tuple[str, str]

    @property
    def plain(self) -> str:
        return self.text.translate({ord(one): None for one in (self.mark, *self.span_marks)})


def _templates(config: Any, file: bytes | None, where: str) -> dict[str, ChatTemplate]:
    """Templates by name; the only one is "default"."""
    if file is not None:
        config = file.decode("utf-8")
    if isinstance(config, list):
        if not all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in config):
            raise ValueError(f"{where}: chat_template is a list of something else than names and "
                             f"templates")
        return {one["name"]: ChatTemplate(one["template"]) for one in config}
    return {} if config is None else {"default": ChatTemplate(config)}


def _content(token: Any) -> str:
    """A special token of a config: its text, or an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"{token!r} is no token")
    return text
