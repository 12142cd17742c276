"""What the tests of commands share: a folder with models, data and rewards, and command lines.

The model is a Llama of one layer and 300 words that knows nothing; what is tested is everything
around it: options, safe points, files, refusals.
"""

import json
from pathlib import Path

from tiny_run import without_time

from r1grpo import Model, ModelConfig, cli
from r1grpo.hf_tokenizer import Tokenizer
from r1grpo.rundir import read_jsonl

TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
# max_completion_length and batches of all tests; few steps, a state after every second one
GRPO_SET = ("num_generations=4", "per_device_train_batch_size=8", "steps_per_generation=2",
            "max_completion_length=12", "learning_rate=1e-3", "max_steps=6", "save_steps=2",
            "beta=0.01")
SFT_SET = ("per_device_train_batch_size=4", "learning_rate=1e-3", "max_steps=6", "save_steps=2")
ENDS = f"stop_token_ids={list(range(60))}"  # so that a random model comes to an end
REWARDS = '''
import math
import time


def short(prompts, completions, completion_ids, **columns):
    return [-float(len(set(one))) for one in completion_ids]


def slow(prompts, completions, completion_ids, **columns):
    time.sleep(0.2)
    return short(prompts, completions, completion_ids)


def all_right(prompts, completions, completion_ids, **columns):
    return [1.0] * len(completions)


def even(prompts, completions, completion_ids, **columns):
    return [float(sum(one) % 2 == 0) for one in completion_ids]


def broken(prompts, completions, completion_ids, **columns):
    return [math.nan] * len(completions)
'''


def make_folder(path: Path, seed: int, chat: bool = True) -> None:
    """A Hugging Face folder of a random model; every seed has a tokenizer of its own."""
    tokenizer = Tokenizer.train(
        [f"what is {seed} + {seed} ? the answer is it"], 275,
        special_tokens=("<|end|>", "<|user|>", "<|assistant|>"), eos_token="<|end|>",
        chat_template=TEMPLATE if chat else None)
    config = ModelConfig(
        vocab_size=280, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=96, eos_token_id=0, initializer_range=0.1)
    Model(config, seed=seed).save_pretrained(path)
    tokenizer.save_pretrained(path)


def fill(path: Path) -> None:
    """Two models and one without a template, data, rewards."""
    make_folder(path / "model", 0)
    make_folder(path / "student", 1)
    make_folder(path / "base", 2, chat=False)
    write(path / "problems.jsonl", [{"question": f"what is {i} + {i} ?",
                                     "answer": f"it is #### {2 * i}"} for i in range(1, 9)])
    write(path / "answers.jsonl", [{"prompt": f"what is {i} ?", "completion": f"it is {i}"}
                                   for i in range(1, 9)])
    (path / "rewards.py").write_text(REWARDS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(name, out, *more, model="model", data=None, settings=()):
    data = data or ("answers.jsonl" if name in ("sft", "distill") else "problems.jsonl")
    return [name, "--model", model, "--data", data, "--out", str(out), *more,
            *[word for one in settings for word in ("--set", one)]]


def grpo(out, *more, settings=()):
    return command("grpo", out, "--reward", "accuracy,rewards.py:short", *more,
                   settings=(*GRPO_SET, *settings))


def slow_grpo(out, *more, settings=()):
    return [one.replace("short", "slow") for one in grpo(out, *more, settings=settings)]


def sft(out, *more, settings=()):
    return command("sft", out, *more, settings=(*SFT_SET, *settings))


def outcome(path):
    """Everything of a run that must not depend on kills."""
    found = {log: [without_time(row) for row in read_jsonl(path / f"{log}.jsonl")]
             for log in ("metrics", "completions")}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["run"]["finished"]
    return {**found, "config": (path / "config.toml").read_text(),
            "final": {one["name"]: one["sha256"] for one in manifest["checkpoints"]},
            "weights": (path / "final" / "model.safetensors").read_bytes()}


def refused(capsys, arguments, out):
    """The line on stderr of a command that must exit with 2 and leave nothing behind."""
    before = sorted(Path(out).rglob("*")) if Path(out).exists() else None
    capsys.readouterr()
    assert cli.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning:" not in line]
    assert len(lines) == 1 and lines[0].startswith("r1grpo: ")
    assert (sorted(Path(out).rglob("*")) if Path(out).exists() else None) == before
    return lines[0]
