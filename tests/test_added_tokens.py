"""Which ids the assistant says, and which places may become tokens: marks leave no trace."""

from __future__ import annotations

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("tokenizers")

from chat_formats import FORMATS, TOKENS
from r1grpo import Tokenizer
from r1grpo.added_tokens import MarkedText
from r1grpo.chat_targets import chat_examples
from test_chat_template import TEXTS

OPEN, CLOSE, MARK = "\ufdd1", "\ufdd2", "\ufdd0"


def make(template: str) -> Tokenizer:
    special, tags, named = TOKENS["masked"]
    return Tokenizer.train(TEXTS, 420, special, tags, template, **named)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return make(FORMATS["masked"])


@pytest.mark.parametrize("text, said", [
    ("a[bc]d[e]f", "bce"), ("[abc]", "abc"), ("abc", ""), ("a[]b", ""), ("[a][b]c", "ab"),
    ("ab]c", "ab"), ("a[bc", "bc"), ("a[b[c]d]e", "bcd"), ("a]b[c]d", "ac"), ("[é]😀[你]", "é你"),
    ("a[<|im_end|>]b", "<|im_end|>")])
def test_ids_between_marks_are_said(text, said, ours):
    """A closing mark alone closes what began before the text; spans in spans are one."""
    marked = MarkedText(text.replace("[", OPEN).replace("]", CLOSE), MARK, (OPEN, CLOSE))
    ids, mask = ours.encode_marked(marked)
    assert ours.decode(ids, skip_special_tokens=False) == text.translate({91: None, 93: None}) \
        == marked.plain
    assert ours.decode([i for i, one in zip(ids, mask) if one], skip_special_tokens=False) == said


def test_a_long_chat_is_masked_turn_by_turn(ours):
    """Thousands of turns: marking is linear, or this test takes minutes."""
    chat = [{"role": role, "content": f"word {i} " + "<|im_end|>" * (i % 3)}
            for i in range(4000) for role in ("user", "assistant")]
    done = ours.apply_chat_template(chat, add_generation_prompt=False, return_dict=True,
                                    return_assistant_tokens_mask=True)
    said = [i for i, one in zip(done.input_ids, done["assistant_masks"]) if one]
    assert ours.decode(said, skip_special_tokens=False) == "".join(
        one["content"] + "<|im_end|>" for one in chat[1::2])
    assert said.count(ours.eos_token_id) == 4000  # what users spell, and the assistant, is text


def test_a_block_that_holds_the_generation_prompt_leaves_no_mark():
    """The target begins inside the block then."""
    ours = make("{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>"
                "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
                "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}")
    [(prompt, target)] = chat_examples([{"role": "user", "content": "one"},
                                        {"role": "assistant", "content": "two"}], ours)
    assert ours.decode(prompt, False) == "one<|im_start|>"
    assert ours.decode(target, False) == "two<|im_end|>"
