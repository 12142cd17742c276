"""Which ids the assistant says, and which places may become tokens: marks leave no trace."""

from __future__ import annotations

import random

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


def of_pieces(scheme: str, **token) -> Tokenizer:
    """A tokenizer of the SentencePiece kind, which may treat the start of a text another way."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if scheme == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=120, show_progress=False,
                                                        special_tokens=["<unk>"]))
    core.add_tokens([tokenizers.AddedToken(one, normalized=False, **token)
                     for one in ("<|im_start|>", "<|im_end|>")])
    return Tokenizer({"tokenizer.json": core.to_str().encode()})


@pytest.mark.parametrize("scheme", ["first", "always", "never", "legacy", "byte level"])
@pytest.mark.parametrize("token", [{}, {"rstrip": True}, {"lstrip": True}, {"single_word": True}],
                         ids=lambda token: "".join(token) or "plain")
def test_pieces_that_are_known_have_the_ids_that_they_have_in_a_text(scheme, token):
    ours = make(FORMATS["masked"]) if scheme == "byte level" else of_pieces(scheme, **token)
    rng, known = random.Random(0), {}
    parts = ["<|im_start|>", "<|im_end|>", "user", " ", "  It", "is 5", "\n", "é", "你好", "x" * 9, ""]
    for _ in range(300):
        text = MarkedText("".join(rng.choices(parts, k=rng.randint(0, 9))))
        assert ours.encode_marked(text, known) == ours.encode_marked(text), text
    assert scheme == "byte level" or not token.get("lstrip") or not known


def test_no_text_spells_what_a_known_piece_was(ours):
    """A later turn may hold the very characters that stood for a token where an earlier one was encoded."""
    known = {}
    ours.encode_marked(MarkedText("<|im_start|>user"), known)
    [(lead, piece)] = [key for key in known if key[1]]
    assert piece == lead + ours._added._numbers["<|im_start|>"] + "user"
    text = MarkedText(piece)
    assert ours.encode_marked(text, known) == ours.encode_marked(text)


def test_what_no_word_is_for_is_the_unknown_token_as_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = of_pieces("first")
    ours.save_pretrained(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("is Ω", "Ω", "ΩΩ is", "is 5"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert 0 in ours.encode("is Ω") and 0 not in ours.encode("<unk> is")


def test_a_chat_is_encoded_once_whatever_its_turns(monkeypatch):
    """Counted in characters that reach the library: linear in the chat, not in its prompts."""
    ours, seen = make(FORMATS["masked"]), []
    core, ids = ours._added._bare("\ufdd3")

    class Counting:
        def encode(self, text, **options):
            seen.append(len(text))
            return core.encode(text, **options)

    monkeypatch.setattr(ours._added, "_bare", lambda lead: (Counting(), ids))
    monkeypatch.setattr("r1grpo.added_tokens.unused_characters", lambda n, *data: ["\ufdd3"])
    chat = [{"role": role, "content": f"word {i} " * 20} for i in range(60)
            for role in ("user", "assistant")]
    examples = chat_examples(chat, ours)
    assert len(examples) == 60
    assert sum(seen) < 3 * len(ours.render_chat(chat))
