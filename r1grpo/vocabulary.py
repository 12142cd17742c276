"""The tokens of a published model's tokenizer: their ids, which are special, further ones.

Reads tokenizer.json, tokenizer_config.json (special_tokens_map.json in older folders) and
generation_config.json, as bytes by name; what is changed is written back into them. Called as in
`transformers`, but `vocab_size` counts the added tokens too: it is what a model's embedding needs.
Knows nothing about how text falls into tokens.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from .added_tokens import AddedTokens
from .brief import brief

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")  # transformers 4, 5


def _named(name: str) -> Any:
    """A property: the text of a special token; what is set must be a token already."""
    return property(lambda self: self._special.get(name),
                    lambda self, token: self._set_names({name: token}))


class Vocabulary:
    """bos_token, eos_token, pad_token, unk_token: text or None, settable to what is a token;
    eos_token_id, ...: int or None; vocab_size: ids are below it; stop_ids: all that end a completion;
    prefix_ids, suffix_ids: what stands around a text (bos, where the model was trained so)."""

    bos_token, eos_token, pad_token, unk_token = map(_named, (
        "bos_token", "eos_token", "pad_token", "unk_token"))

    def __init__(self, files: Mapping[str, bytes], where: str = "tokenizer") -> None:
        """files: the contents of the files above, by name."""
        self.files = dict(files)
        self._where = where
        self._read_tokens()
        self._read_config()

    def _read_tokens(self) -> None:
        import tokenizers
        try:
            text = self.files["tokenizer.json"].decode("utf-8")
            self._core = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{self._where}/tokenizer.json: {error}") from None
        self._core.no_padding()
        self._core.no_truncation()
        self._added = AddedTokens(self._core, text)
        self.vocab_size = 1 + max(self.get_vocab().values())
        ids = self._core.encode("a").ids
        bare = self._core.encode("a", add_special_tokens=False).ids
        first = ids.index(bare[0]) if bare else 0
        self.prefix_ids, self.suffix_ids = tuple(ids[:first]), tuple(ids[first + len(bare):])

    def _read_config(self) -> None:
        self._config = {**self._json("special_tokens_map.json"), **self._json("tokenizer_config.json")}
        self._special = {name: _content(self._config[name]) for name in _NAMES
                         if self._config.get(name)}
        self.eos_token_id, self.bos_token_id, self.pad_token_id = (
            self._id_of(name) for name in ("eos_token", "bos_token", "pad_token"))
        # some published files name one that is no token: nothing needs it
        self.unk_token_id = self._core.token_to_id(self._special.get("unk_token", ""))
        stops = self._json("generation_config.json").get("eos_token_id")
        stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
        if not all(isinstance(one, int) and one >= 0 for one in stops):
            raise ValueError(f"{self._where}/generation_config.json: eos_token_id is {brief(stops)}")
        own = [] if self.eos_token_id is None else [self.eos_token_id]
        self.stop_ids = tuple(dict.fromkeys([*own, *stops]))

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            return {}
        try:
            found = json.loads(self.files[name])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._where}/{name}: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{self._where}/{name} holds no object")
        return found

    def _id_of(self, name: str) -> int | None:
        if name not in self._special:
            return None
        found = self._core.token_to_id(self._special[name])
        if found is None:
            raise ValueError(f"{self._where}: {name} {brief(self._special[name])} is no token of the "
                             f"tokenizer; add_special_tokens({{{name!r}: ...}}) makes it one")
        return found

    def __len__(self) -> int:
        return self.vocab_size

    def check_fits(self, config: Any) -> None:
        """ValueError where the model's embedding has no row for some id."""
        largest = max(self.vocab_size - 1, *self.stop_ids, 0)
        if largest >= config.vocab_size:
            raise ValueError(f"the tokenizer has id {largest}, the model's embedding only "
                             f"{config.vocab_size} rows (vocab_size) and does not grow: they do not "
                             f"belong together")

    def get_vocab(self) -> dict[str, int]:
        """Every token -> its id."""
        return self._core.get_vocab(with_added_tokens=True)

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or those of several; of what is no token the unknown token's, or None."""
        if isinstance(tokens, str):
            found = self._core.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(one) for one in tokens]

    def convert_ids_to_tokens(self, ids: int | Iterable[int],
                              skip_special_tokens: bool = False) -> Any:
        """The token of an id, or those of several."""
        if isinstance(ids, Integral):
            return self._core.id_to_token(self._checked(ids)[0])
        special = self._core.get_added_tokens_decoder() if skip_special_tokens else {}
        return [self._core.id_to_token(one) for one in self._checked(ids)
                if one not in special or not special[one].special]

    def add_tokens(self, tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Makes added tokens of these texts, new ones with the ids from vocab_size on; returns how
        many are new. A model's embedding does not grow: published ones are padded and have rows
        for some (trainers ask check_fits); the rows are trained, or not, as all others."""
        import tokenizers
        tokens = [tokens] if isinstance(tokens, str) else list(tokens)
        for one in tokens:
            if not isinstance(one, str) or not one:
                raise ValueError(f"{brief(one)} is no token: it must be text, and not empty")
        before = self.vocab_size
        add = self._core.add_special_tokens if special_tokens else self._core.add_tokens
        add([tokenizers.AddedToken(one, normalized=not special_tokens, special=special_tokens)
             for one in tokens])
        self.files["tokenizer.json"] = self._core.to_str(pretty=True).encode()
        self._read_tokens()
        config = self._json("tokenizer_config.json")
        if "added_tokens_decoder" in config:  # transformers reads it besides tokenizer.json
            for one in tokens:
                config["added_tokens_decoder"][str(self._added.ids[one])] = {
                    "content": one, "lstrip": False, "normalized": not special_tokens,
                    "rstrip": False, "single_word": False, "special": special_tokens}
            self._write_json("tokenizer_config.json", config)
        return self.vocab_size - before

    def add_special_tokens(self, tokens: Mapping[str, str | Sequence[str]]) -> int:
        """{"pad_token": text, ..., "additional_special_tokens": [...]}: these tokens get these names;
        what is no token becomes one (see add_tokens). Returns how many are new."""
        if unknown := tokens.keys() - {*_NAMES, *_LISTS}:
            raise ValueError(f"{brief(min(unknown))} is no kind of special token; there are "
                             f"{', '.join((*_NAMES, *_LISTS))}")
        names = {name: token for name, token in tokens.items() if name in _NAMES}
        texts = list(names.values())
        for one in (tokens[name] for name in _LISTS if name in tokens):
            texts += [one] if isinstance(one, str) else one
        new = self.add_tokens(texts, special_tokens=True) if texts else 0
        self._set_names(names)
        return new

    def _set_names(self, names: Mapping[str, str | None]) -> None:
        """Special tokens by name; all that is derived from them follows."""
        before = dict(self.files)
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if file in self.files or file == "tokenizer_config.json":
                self._write_json(file, {**self._json(file), **names})
        try:
            self._read_config()
        except ValueError:
            self.files = before
            self._read_config()
            raise

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.files[name] = json.dumps(content, indent=2, ensure_ascii=False).encode()

    def _checked(self, ids: Any) -> list[int]:
        """An id or ids as a list; ValueError for what is none."""
        ids = [operator.index(one) for one in ([ids] if isinstance(ids, Integral) else ids)]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(f"a token id is outside 0..{self.vocab_size - 1}")
        return ids


def _content(token: Any) -> str:
    """A special token of a config: its text, or an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"{brief(token)} is no token")
    return text
