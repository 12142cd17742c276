"""Tokenizer: files, ids, streams; what supervised training makes of a chat; prefilled thoughts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("tokenizers")

from chat_formats import CHATS, FORMATS, TOKENS, WEATHER
from r1grpo import Model, ModelConfig, SFTConfig, SFTTrainer, Tokenizer
from r1grpo.chat_targets import chat_examples
from r1grpo.config import Sampling
from r1grpo.rewards import format_reward
from r1grpo.rollout import completion_text, rollout
from r1grpo.sft import encode_rows
from r1grpo.tokenizer import is_wellformed, split_thinking
from r1grpo.trainer import prompt_ids_of
from test_chat_template import TEXTS


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {name: Tokenizer.train(TEXTS, 420, special, tags, FORMATS[name], **named)
            for name, (special, tags, named) in TOKENS.items()}


# ---- files -----------------------------------------------------------------------------------------


def test_a_folder_goes_through_unchanged(tokenizers, tmp_path):
    ours = tokenizers["llama3"]
    ours.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [7, 4]}')
    again = Tokenizer.from_pretrained(tmp_path / "a")
    assert again.stop_ids == (4, 7) and ours.stop_ids == (4,)
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (0, 4, None)
    again.save_pretrained(tmp_path / "b")
    for name, content in again.files.items():
        assert (tmp_path / "b" / name).read_bytes() == content
    assert again.apply_chat_template(CHATS["turns"]) == ours.apply_chat_template(CHATS["turns"])


def test_templates_beside_the_config_and_by_name(tokenizers, tmp_path):
    tokenizers["masked"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "one"},
                               {"name": "tool_use", "template": "tools"},
                               {"name": "rag", "template": "rag"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    named, chat = Tokenizer.from_pretrained(tmp_path), CHATS["one question"]
    assert named.render_chat(chat) == "one" and named.render_chat(chat, tools=[WEATHER]) == "tools"
    assert named.render_chat(chat, chat_template="rag") == "rag"
    with pytest.raises(ValueError, match="no chat template 'x'; it has default, tool_use, rag"):
        named.render_chat(chat, chat_template="x")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_pretrained(tmp_path).render_chat(chat) == "file"


@pytest.mark.parametrize("name, content, words", [
    ("tokenizer.json", b"{", "tokenizer.json"), ("tokenizer.json", b"\xff", "tokenizer.json"),
    ("tokenizer_config.json", b"[1]", "holds no object"),
    ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json"),
    ("tokenizer_config.json", b'{"eos_token": "<none>"}', "'<none>' is no token"),
    ("tokenizer_config.json", b'{"chat_template": [1]}', "chat_template"),
    ("tokenizer_config.json", b'{"chat_template": 1}', "chat template is text"),
    ("generation_config.json", b'{"eos_token_id": "2"}', "eos_token_id")])
def test_bad_files_are_named(name, content, words, tokenizers, tmp_path):
    tokenizers["masked"].save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Tokenizer.from_pretrained(tmp_path)


def test_a_folder_without_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="only tokenizer.model: save it once"):
        Tokenizer.from_pretrained(tmp_path)


def test_training_is_repeatable_and_every_text_has_ids():
    one, two = (Tokenizer.train(TEXTS, 300) for _ in range(2))
    assert one.files == two.files and len(one) <= 300
    assert (one.pad_token_id, one.bos_token_id, one.eos_token_id) == (0, 1, 2)
    for text in ("\x00\x7f", "ß漢字\U0001f600", "123"):
        assert one.decode(one.encode(text)) == text
    assert len(one.encode("4711")) == 4
    with pytest.raises(ValueError, match="vocab_size is 100"):
        Tokenizer.train(TEXTS, 100)
    with pytest.raises(TypeError, match="'colour'"):
        Tokenizer.train(TEXTS, 300, colour="red")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tokenizers):
    ours = tokenizers["qwen3"]
    ours.check_fits(SimpleNamespace(vocab_size=len(ours)))
    with pytest.raises(ValueError, match=f"id {len(ours) - 1}.*only {len(ours) - 1} rows"):
        ours.check_fits(SimpleNamespace(vocab_size=len(ours) - 1))
    small = Model(ModelConfig.tiny_dense(len(ours) - 1, 2))
    with pytest.raises(ValueError, match="do not belong together"):
        SFTTrainer(small, SFTConfig(), [{"prompt": "a", "completion": "b"}], processing_class=ours)


def test_ids_that_are_none(tokenizers):
    ours = tokenizers["qwen3"]
    for bad in (-1, len(ours)):
        with pytest.raises(ValueError, match="outside"):
            ours.decode([3, bad])


# ---- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "plain words", "ünï → 你好 😀!", "a\ufffd b\ufffd", "\u200d👨\u200d👩",
                                  "<|im_start|>x"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_stream_says_whole_characters(text, size, tokenizers):
    ours = tokenizers["qwen3"]
    ids = ours.encode(text)
    stream = ours.stream()
    pieces = [stream.put(ids[i:i + size]) for i in range(0, len(ids), size)]
    if "\ufffd" not in text:
        assert not any("\ufffd" in one for one in pieces)
    assert "".join([*pieces, stream.finish()]) == text


def test_a_stream_of_any_bytes_is_what_decode_says(tokenizers):
    ours, rng = tokenizers["qwen3"], np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, len(ours), rng.integers(1, 40)).tolist()
        for skip in (True, False):
            stream = ours.stream(skip)
            pieces = [stream.put([one]) for one in ids]
            assert "".join([*pieces, stream.finish()]) == ours.decode(ids, skip)


# ---- chats to train on -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("chat", ["turns", "thoughts"])
def test_each_turn_follows_its_own_prompt(name, chat, tokenizers):
    ours, messages = tokenizers[name], CHATS[chat]
    examples = chat_examples(messages, ours)
    assert len(examples) == 2
    for (prompt, completion), i in zip(examples, (1, 3)):
        assert prompt == ours.apply_chat_template(messages[:i])
        assert completion[-1] == ours.eos_token_id and completion.count(ours.eos_token_id) == 1
        said = ours.decode(completion[:-1], skip_special_tokens=False)
        opened = ours.decode(prompt, skip_special_tokens=False).endswith("<think>\n")
        assert opened == (name == "deepseek_r1") == ours.opens_thought(prompt)
        thought, answer = split_thinking(said, opened)
        want = split_thinking(messages[i]["content"])
        assert (thought, answer) == (want[0].strip(), want[1].strip())
        assert not (opened and "<think>" in said)
    if chat == "thoughts" and name in ("qwen3", "deepseek_r1"):
        earlier = ours.decode(examples[1][0], skip_special_tokens=False)
        assert "Two, three" not in earlier and "It is 5." in earlier


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1"])
def test_reasoning_content_is_in_the_target(name, tokenizers):
    [(_, completion)] = chat_examples(CHATS["thought apart"], tokenizers[name])
    said = tokenizers[name].decode(completion)
    assert said.split("</think>") == [
        ("" if name == "deepseek_r1" else "<think>\n") + "Two, three: five.\n", "\n\nIt is 5."]


def test_a_thought_that_the_template_drops_from_the_last_turn_is_in_the_target():
    """The full text goes on from the prompt here, but does not show what the message says."""
    drops = FORMATS["masked"].replace("{{ message.content }}<|im_end|>{% endgen",
                                      "{{ message.content.split('</think>')[-1] }}<|im_end|>{% endgen")
    special, tags, named = TOKENS["masked"]
    ours = Tokenizer.train(TEXTS, 420, special, tags, drops, **named)
    assert "Two, three" not in ours.render_chat(CHATS["thoughts"][:2])
    examples = chat_examples(CHATS["thoughts"], ours)
    assert [ours.decode(completion, False) for _, completion in examples] == [
        CHATS["thoughts"][i]["content"] + "<|im_end|>" for i in (1, 3)]


def test_tool_calls_are_learned_as_the_template_writes_them(tokenizers):
    (_, call), (_, answer) = chat_examples(CHATS["tools"], tokenizers["qwen3"], [WEATHER])
    ours = tokenizers["qwen3"]
    assert '"arguments": {"town": "Zürich"}}\n</tool_call><|im_end|>' in ours.decode(call, False)
    assert ours.decode(answer).endswith("It is 4 °C.")


@pytest.mark.parametrize("messages, words", [
    ([{"role": "user", "content": "a"}], "no turn of the assistant"),
    ([{"role": "assistant", "content": "a"}], "speaks first")])
def test_chats_with_nothing_to_learn(messages, words, tokenizers):
    with pytest.raises(ValueError, match=f"row 3.*{words}"):
        chat_examples(messages, tokenizers["qwen3"], where="row 3")


@pytest.mark.parametrize("row", [{"prompt": "a", "completion": "b"}, {"text": "a b"},
                                 {"messages": CHATS["one question"] + [{"role": "assistant", "content": "5"}]}])
def test_a_tokenizer_without_an_end_is_refused_when_rows_need_one(row, tokenizers):
    named = {name: token for name, token in TOKENS["masked"][2].items() if name != "eos_token"}
    ours = Tokenizer.train(TEXTS, 420, *TOKENS["masked"][:2], FORMATS["masked"].replace("<|im_end|>", "."),
                           **named)
    with pytest.raises(ValueError, match=r"no eos_token.*tokenizer.eos_token = "):
        encode_rows(row, ours)
    ours.eos_token = "<|im_end|>"
    assert encode_rows(row, ours)[0].completion_ids[-1] == ours.eos_token_id


def test_rows_of_every_kind(tokenizers):
    ours, chat = tokenizers["qwen3"], CHATS["thoughts"]
    both = encode_rows({"messages": chat}, ours)
    assert len(both) == 2
    for completion in (chat[-1]["content"], chat[-1:]):
        [one] = encode_rows({"prompt": chat[:-1], "completion": completion}, ours)
        assert one.prompt_ids.tolist() == both[1].prompt_ids.tolist()
        assert one.completion_ids.tolist() == both[1].completion_ids.tolist()
    [text] = encode_rows({"prompt": "a <think>", "completion": "<think> b </think> c"}, ours)
    tag = ours.encode("<think>", True)[0]
    assert tag not in text.prompt_ids and tag in text.completion_ids
    assert prompt_ids_of({"prompt": chat[:1], "tools": [WEATHER]}, ours, "row") == \
        ours.apply_chat_template(chat[:1], tools=[WEATHER])
    closed = prompt_ids_of({"prompt": chat[:1], "chat_template_kwargs": {"enable_thinking": False}},
                           ours, "row")
    assert ours.decode(closed, False).endswith("</think>\n\n")


# ---- thoughts that the prompt opened -------------------------------------------------------------------


def test_prefilled_thoughts_are_known():
    assert split_thinking("a b", True) == ("a b", "") and split_thinking("a b") == ("", "a b")
    assert split_thinking("a</think>b", True) == ("a", "b")
    said = r"so 2 </think> it is \boxed{ 2 }"
    assert is_wellformed(said, "r1", prefilled=True) and not is_wellformed(said, "r1")
    assert not is_wellformed(f"<think> {said}", "r1", prefilled=True)
    assert format_reward(["q"] * 2, [said] * 2, [[1]] * 2, template=["r1"] * 2,
                         prefilled=[True, False]) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3"])
def test_a_rollout_says_where_completions_begin_and_stays_within_the_tokenizer(name, tokenizers):
    ours = tokenizers[name]
    model = Model(ModelConfig.tiny_dense(len(ours) + 200, ours.eos_token_id))
    prompt = ours.apply_chat_template(CHATS["one question"])
    done = rollout(model, [prompt], 3, Sampling(max_completion_length=30), tokenizer=ours)
    assert done.prefilled == [name == "deepseek_r1"] * 3
    assert model.live_vocab == len(ours)
    assert max(max(one) for one in done.completion_ids) < len(ours)


def test_any_stop_token_ends_the_text(tokenizers, tmp_path):
    tokenizers["masked"].save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    ours = Tokenizer.from_pretrained(tmp_path)
    for end in (0, 2):
        assert completion_text(ours, [*ours.encode("It is"), end]) == "It is"
