"""Tokenizer called as transformers' fast tokenizers are: the same ids, tokens and texts; further tokens.

Differences that are meant are tested as such: text spells no special token, `encode` adds nothing,
decoding leaves special tokens out, `vocab_size` counts all.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("tokenizers")

from chat_formats import CHATS, FORMATS, TOKENS
from r1grpo import Model, ModelConfig, SFTConfig, SFTTrainer, Tokenizer
from test_chat_template import TEXTS

NAMES = ("qwen3", "llama3", "bos and eos", "masked")
PLAIN = ("What is 2 + 3?", "", " ", "Zürich: 4 °C\n\n", "你好 😀", "1234567 é\u0301")


def make(name: str) -> Tokenizer:
    """"bos and eos": Llama 3's, which puts them around every text."""
    special, tags, named = TOKENS["llama3" if name == "bos and eos" else name]
    ours = Tokenizer.train(TEXTS, 420, special, tags, FORMATS.get(name), **named)
    if name != "bos and eos":
        return ours
    content = json.loads(ours.files["tokenizer.json"])
    ends = {"bos": ours.bos_token, "eos": ours.eos_token}
    content["post_processor"] = {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": ends["bos"], "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": ends["eos"], "type_id": 0}}],
        "special_tokens": {one: {"id": one, "ids": [ours.convert_tokens_to_ids(one)], "tokens": [one]}
                           for one in ends.values()}}
    return Tokenizer({**ours.files, "tokenizer.json": json.dumps(content).encode()})


@pytest.fixture(params=NAMES)
def ours(request) -> Tokenizer:
    return make(request.param)


def load_theirs(ours: Tokenizer, folder):
    transformers = pytest.importorskip("transformers")
    ours.save_pretrained(folder)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


# ---- the same as transformers ----------------------------------------------------------------------


def test_a_call_gives_their_ids_and_masks(ours, tmp_path):
    theirs = load_theirs(ours, tmp_path)
    for special in (True, False):
        for text in (*PLAIN, list(PLAIN), []):
            want = theirs(text, add_special_tokens=special) if text != [] else \
                {"input_ids": [], "attention_mask": []}
            got = ours(text, add_special_tokens=special)
            assert got.input_ids == got["input_ids"] == want["input_ids"]
            assert got.attention_mask == got["attention_mask"] == want["attention_mask"]
    for text in PLAIN:
        assert ours.encode(text, add_special_tokens=True) == theirs.encode(text)
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.tokenize(text) == theirs.tokenize(text)


def test_names_and_conversions_are_theirs(ours, tmp_path):
    theirs = load_theirs(ours, tmp_path)
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    every = list(range(len(ours)))
    for skip in (True, False):
        ids = [every[::3], every[-8:], []]
        assert ours.batch_decode(ids, skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
        assert ours.decode(every[-1], skip) == theirs.decode(every[-1], skip_special_tokens=skip)
    tokens = ours.convert_ids_to_tokens(every)
    assert tokens == theirs.convert_ids_to_tokens(every)
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens) == every
    # skipped is what decoding skips (theirs skips the named ones only)
    shown = ours.convert_ids_to_tokens(every, skip_special_tokens=True)
    assert [one for one in tokens if one not in shown] == \
        [one for i, one in enumerate(tokens) if not theirs.decode([i], skip_special_tokens=True)]
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5) == tokens[5]
    assert ours.convert_ids_to_tokens(np.int32(5)) == tokens[5]
    assert ours.convert_tokens_to_ids("no such token") is None
    assert theirs.convert_tokens_to_ids("no such token") is None


def test_a_chat_as_a_dict_is_theirs(tmp_path):
    ours = make("masked")
    theirs = load_theirs(ours, tmp_path)
    for chat in ("turns", "thoughts"):
        how = {"return_dict": True, "return_assistant_tokens_mask": True, "add_generation_prompt": False}
        got, want = (one.apply_chat_template(CHATS[chat], **how) for one in (ours, theirs))
        assert dict(got) == {name: want[name] for name in got} and "assistant_masks" in got
        assert 0 < sum(got["assistant_masks"]) < len(got.input_ids)
    with pytest.raises(ValueError, match="needs return_dict"):
        ours.apply_chat_template(CHATS["turns"], return_assistant_tokens_mask=True)


# ---- where we differ -------------------------------------------------------------------------------


def test_spelled_tokens_stay_text_unless_asked(ours, tmp_path):
    theirs = load_theirs(ours, tmp_path)
    text = f"a {ours.eos_token} b"
    assert ours.eos_token_id in theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.eos_token_id not in ours(text, add_special_tokens=False)["input_ids"]
    assert ours.eos_token not in ours.tokenize(text)
    asked = ours(text, allow_special=True)["input_ids"]
    assert asked == theirs(text)["input_ids"]
    assert ours.tokenize(text, allow_special=True) == theirs.tokenize(text)
    assert ours.decode(asked) == theirs.decode(asked, skip_special_tokens=True)
    assert ours.vocab_size == len(ours) >= theirs.vocab_size


@pytest.mark.parametrize("options, words", [
    ({"return_tensors": "pt"}, "no return_tensors: it gives lists"), ({"padding": True}, "no padding"),
    ({"truncation": True, "max_length": 3}, "no (truncation|max_length)"), ({"text_pair": "b"}, "text_pair")])
def test_what_a_call_does_not_do_is_refused_by_name(options, words):
    ours = make("qwen3")
    with pytest.raises(TypeError, match=words):
        ours("a", **options)
    assert ours("a", **dict.fromkeys(options)) == ours("a") if "text_pair" not in options else True


@pytest.mark.parametrize("work", [lambda one: one(5), lambda one: one([["a"]]), lambda one: one.encode(None),
                                  lambda one: one.decode([1.0]), lambda one: one.decode("a")])
def test_what_is_no_text_and_no_id_is_a_type_error(work):
    with pytest.raises(TypeError):
        work(make("qwen3"))


def test_ids_that_are_none_are_refused():
    ours = make("qwen3")
    for bad in (-1, len(ours)):
        for work in (ours.decode, ours.convert_ids_to_tokens):
            for ids in (bad, [0, bad]):
                with pytest.raises(ValueError, match="outside"):
                    work(ids)


# ---- further tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("older", [False, True])
def test_added_special_tokens_are_known_to_transformers(ours, older, tmp_path):
    """older: a folder that lists its tokens in the config and in special_tokens_map.json too."""
    if older:
        config = json.loads(ours.files["tokenizer_config.json"])
        config["added_tokens_decoder"] = {
            str(ours.convert_tokens_to_ids(one["content"])): {k: v for k, v in one.items() if k != "id"}
            for one in json.loads(ours.files["tokenizer.json"])["added_tokens"]}
        ours = Tokenizer({**ours.files, "tokenizer_config.json": json.dumps(config).encode(),
                          "special_tokens_map.json": json.dumps({"pad_token": "<|none|>"[:0]}).encode()})
    before, ids = len(ours), ours.encode("a <pause> b")
    added = ours.add_special_tokens({"pad_token": "<|fill|>", "additional_special_tokens": ["<pause>"]})
    assert added == 2 and len(ours) == before + 2
    assert (ours.pad_token, ours.pad_token_id) == ("<|fill|>", before)
    assert ours.encode("a <pause> b") == ids  # still nobody's to write
    assert before + 1 in ours.encode("a <pause> b", allow_special=True)
    assert ours.add_special_tokens({"pad_token": "<|fill|>"}) == 0
    theirs = load_theirs(ours, tmp_path)
    assert theirs("a <pause> b")["input_ids"] == ours("a <pause> b", allow_special=True)["input_ids"]
    assert (theirs.pad_token, theirs.pad_token_id, len(theirs)) == ("<|fill|>", before, len(ours))
    assert theirs.decode([before + 1], skip_special_tokens=True) == ours.decode([before + 1]) == ""
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.pad_token_id == before and again.get_vocab() == ours.get_vocab()
    assert ours.add_tokens(["<shown>", "<pause>"]) == 1
    assert ours.decode(ours.encode("<shown>", allow_special=True)) == "<shown>"


def test_names_are_set_as_scripts_do(tmp_path):
    ours = make("llama3")
    assert ours.pad_token is ours.pad_token_id is None
    ours.pad_token = ours.eos_token
    assert ours.pad_token_id == ours.eos_token_id
    ours.eos_token = "<|end_of_text|>"
    assert ours.stop_ids == (ours.convert_tokens_to_ids("<|end_of_text|>"),)
    ours.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).eos_token == "<|end_of_text|>"
    files = dict(ours.files)
    with pytest.raises(ValueError, match=r"pad_token '<\|none\|>' is no token.*add_special_tokens"):
        ours.pad_token = "<|none|>"
    assert ours.files == files and ours.pad_token == "<|eot_id|>"
    with pytest.raises(ValueError, match="'colour' is no kind of special token"):
        ours.add_special_tokens({"colour": "red"})
    for bad in ("", 5):
        with pytest.raises(ValueError, match="is no token"):
            ours.add_tokens([bad])


def test_an_unknown_token_that_is_none_is_no_fault():
    ours = make("qwen3")
    named = Tokenizer({**ours.files, "special_tokens_map.json": b'{"unk_token": "<none>"}'})
    assert (named.unk_token, named.unk_token_id) == ("<none>", None) and ours.unk_token_id is None
    assert named.convert_tokens_to_ids("no such token") is None


def test_a_padded_embedding_has_rows_for_new_tokens_and_no_other_has(tmp_path):
    ours = make("qwen3")
    row = {"prompt": "a", "completion": "b <new> c"}
    exact, padded = (Model(ModelConfig.tiny_dense(len(ours) + more, ours.eos_token_id)) for more in (0, 8))
    assert ours.add_tokens("<new>") == 1
    trainer = SFTTrainer(padded, SFTConfig(max_steps=1), [row], processing_class=ours)
    trainer.train()
    trainer.save_model(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert again.convert_tokens_to_ids("<new>") == len(exact.state_dict()["model.embed_tokens.weight"])
    again.check_fits(Model.from_pretrained(tmp_path).config)
    with pytest.raises(ValueError, match="embedding only.*does not grow"):
        SFTTrainer(exact, SFTConfig(max_steps=1), [row], processing_class=ours)
