"""The tokenizer's round trip and files, and the shapes of the two templates."""

import json

import pytest

from r1grpo.tasks import make_tokenizer, sample_general, sample_problems
from r1grpo.tokenizer import (WordTokenizer, extract_answer, format_prompt, is_wellformed,
                              split_thinking, stop_strings)

ZERO = "<think> try 7 * 5 = 35 + 2 = 37 yes </think> <answer> 7 * 5 + 2 </answer>"
R1 = r"<think> try 7 * 5 = 35 + 2 = 37 yes </think> the answer is \boxed{ 7 * 5 + 2 } ."


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_size_and_ids_are_fixed(tokenizer):
    assert 300 <= tokenizer.vocab_size <= 512
    assert make_tokenizer().words == tokenizer.words
    assert tokenizer.words[:3] == ("<pad>", "<bos>", "<eos>") and tokenizer.eos_token_id == 2
    assert all(len(tokenizer.encode(str(n))) == 1 for n in range(200))
    assert "200" not in tokenizer


def test_round_trip_of_canonical_text(tokenizer):
    texts = [ZERO, R1, "不对 等等 试 12 - 7 = 5"]
    texts += [p.question for p in sample_problems("train", 40, seed=1)]
    texts += [p.question for p in sample_general("train", 40, seed=1)]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_left_out_unless_asked_for(tokenizer):
    ids = [1, *tokenizer.encode("7 + 5"), 2]
    assert tokenizer.decode(ids) == "7 + 5"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<bos> 7 + 5 <eos>"
    assert tokenizer.batch_decode([ids, ids[1:2]]) == ["7 + 5", "7"]


def test_bad_input_is_named(tokenizer):
    with pytest.raises(ValueError, match="'xyzzy'"):
        tokenizer.encode("try xyzzy")
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside"):
            tokenizer.decode([5, bad])
    with pytest.raises(ValueError, match="template 'r2'"):
        format_prompt("x", "r2")
    with pytest.raises(ValueError, match="one word"):
        WordTokenizer(["two words"])


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert WordTokenizer.load(tmp_path).words == tokenizer.words
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"]["7"] = 10_000
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="ids are not"):
        WordTokenizer.load(tmp_path)


def test_the_tokenizers_library_reads_our_file(tokenizer, tmp_path):
    library = pytest.importorskip("tokenizers")
    loaded = library.Tokenizer.from_file(str(tokenizer.save(tmp_path)))
    for text in (ZERO, R1, "你好 ， 我 叫 汤姆"):
        assert loaded.encode(text).ids == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode(R1)) == R1


def test_prompts_and_stops(tokenizer):
    assert format_prompt("q", "r1") == "User: q Assistant:"
    assert format_prompt("q", "zero").endswith("User: q Assistant:")
    assert len(tokenizer.encode(format_prompt("7", "zero"))) - 1 <= 10
    assert stop_strings("zero") == ("</answer>",) and stop_strings("r1") == ()
    assert tokenizer.stop_token_ids("zero") == (2, tokenizer.token_id("</answer>"))
    assert tokenizer.stop_token_ids("r1") == (2,)


def test_chat_template_drops_earlier_thoughts(tokenizer):
    messages = [{"role": "user", "content": "hello"},
                {"role": "assistant", "content": "<think> yes </think> hello"},
                {"role": "user", "content": "7"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "User: hello Assistant: hello <eos> User: 7 Assistant:"
    assert tokenizer.apply_chat_template(messages) == tokenizer.encode(text)
    with pytest.raises(ValueError, match="system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "7"}])


def test_split_thinking():
    assert split_thinking("<think> a b </think> c") == ("a b", "c")
    assert split_thinking("<think> a b") == ("a b", "")
    assert split_thinking("a b") == ("", "a b")
    assert split_thinking("a </think> c") == ("a", "c")


def test_extract_answer():
    assert extract_answer(ZERO, "zero") == extract_answer(R1, "r1") == "7 * 5 + 2"
    assert extract_answer(R1, "zero") is None and extract_answer(ZERO, "r1") is None
    assert extract_answer("<answer> 1 </answer> <answer> 2 </answer>", "zero") == "2"
    assert extract_answer("<answer> 1", "zero") is None
    assert extract_answer(r"<think> \boxed{ 1 } </think> no", "r1") is None


@pytest.mark.parametrize("text", [
    ZERO.replace("<think> ", ""), ZERO.replace("</think> ", ""), ZERO + " wait", "no " + ZERO,
    ZERO.replace("</answer>", ""), ZERO.replace("7 * 5 + 2 </", "</"), ZERO + " " + ZERO,
    ZERO.replace("try", "<think>"), "7 * 5 + 2", "", ZERO.replace("</think>", "</think> so"),
    ZERO.replace("try", "User: try")])
def test_malformed_zero(text):
    assert is_wellformed(ZERO, "zero")
    assert is_wellformed("<think> </think> <answer> 7 </answer>", "zero")
    assert not is_wellformed(text, "zero")


@pytest.mark.parametrize("text", [
    R1.replace("<think> ", ""), R1.replace("</think> ", ""), R1 + " wait", "no " + R1,
    R1.replace("}", ""), R1.replace("the", r"\boxed{ 3 }"), R1 + " <answer> 3 </answer>",
    R1.replace("7 * 5 + 2 }", "}"), R1.partition("the")[0], R1.replace("try", "</think>"),
    R1.replace("try", r"\boxed{ 3 }"), R1.replace(r"\boxed{ 7 * 5 + 2 }", "7")])
def test_malformed_r1(text):
    assert is_wellformed(R1, "r1")
    assert not is_wellformed(text, "r1")


def test_general_r1_has_no_box():
    assert is_wellformed("<think> </think> hello .", "r1", boxed=False)
    assert not is_wellformed("<think> </think>", "r1", boxed=False)
    assert not is_wellformed(R1, "r1", boxed=False)
