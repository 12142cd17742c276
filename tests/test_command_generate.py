"""`r1grpo generate`: text as it comes, a conversation, thinking shown dim."""

import shutil

import pytest

from r1grpo import Model, ModelConfig, cli
from r1grpo.commands.generate import Dimmed


def test_generate_streams_what_the_model_draws(here, capsys):
    arguments = ["generate", "--model", "model", "what is 1 ?", "--max-tokens", "9", "--seed", "3"]
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert first.err == "(cut off after 9 tokens)\n" and "\x1b" not in first.out
    assert cli.main(arguments) == 0 and capsys.readouterr().out == first.out
    assert cli.main([*arguments, "--raw"]) == 0 and capsys.readouterr().out != first.out


def test_speculative_streams_the_same_text(here, capsys):
    config = ModelConfig(vocab_size=280, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=24, max_position_embeddings=96, eos_token_id=0,
                         initializer_range=0.02, num_nextn_predict_layers=1)
    Model(config, seed=0).save_pretrained("guesser")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"model/{name}", "guesser")
    arguments = ["generate", "--model", "guesser", "what is 1 ?", "--raw", "--max-tokens", "40"]
    texts = []
    for more in ([], ["--speculative"]):
        assert cli.main([*arguments, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
    assert cli.main(["generate", "--model", "model", "1", "--speculative"]) == 2
    assert "multi-token-prediction module" in capsys.readouterr().err


def test_chat_keeps_the_history_and_resets(here, capsys, monkeypatch):
    asked = []
    from r1grpo.commands import generate

    def answer(model, tokenizer, prompt, flags, seed, out):
        asked.append(tokenizer.decode(prompt, skip_special_tokens=False))
        return f"answer {len(asked)}"

    lines = iter(["one", "two", "", "/reset", "three"])
    monkeypatch.setattr(generate, "answer", answer)
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or _end(lines))
    assert cli.main(["generate", "--model", "model", "--chat"]) == 0
    assert asked == ["<|user|>one<|end|><|assistant|>", "<|user|>one<|end|><|assistant|>answer 1"
                     "<|end|><|user|>two<|end|><|assistant|>",
                     "<|user|>three<|end|><|assistant|>"]


def _end(lines):
    """The empty line of the conversation, then the end of input."""
    if lines.__length_hint__():
        return ""
    raise EOFError


class Screen:
    def __init__(self, terminal):
        self.text, self.terminal = "", terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_thinking_is_dim_on_a_terminal_alone(terminal):
    """Tags may come in pieces; the answer is never dim."""
    screen = Screen(terminal)
    stream = Dimmed(screen, thinking=False)
    for piece in ("<thi", "nk>", "a", "</thin", "k>", "b"):
        stream.write(piece)
    stream.close()
    assert screen.text == ("<think>\x1b[2ma</think>\x1b[0mb\n" if terminal
                           else "<think>a</think>b\n")


def test_a_prefilled_thought_is_dim_from_the_start():
    screen = Screen(True)
    Dimmed(screen, thinking=True).write("a</think>b")
    assert screen.text.startswith("\x1b[2ma")
