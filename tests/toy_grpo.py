"""A GRPOTrainer on a stand-in model, for tests of the loop: nine words, rewards that count them."""

from fakes import FakeModel

from r1grpo.config import GRPOConfig
from r1grpo.grpo import GRPOTrainer
from r1grpo.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer([*"abcdefgh", "Q"])
ROWS = [{"prompt": p, "wish": w} for p in "abcd" for w in "ef"]


def wish_share(prompts, completions, completion_ids, wish, **columns):
    return [text.split().count(w) / max(1, len(text.split()))
            for text, w in zip(completions, wish, strict=True)]


def brevity(prompts, completions, completion_ids, **columns):
    return [None if len(ids) > 6 else 1.0 for ids in completion_ids]


def make(model=None, rewards=wish_share, rows=ROWS, audits=(), tokenizer=TOKENIZER, **options):
    defaults = dict(num_generations=4, per_device_train_batch_size=8, steps_per_generation=2,
                    max_completion_length=8, learning_rate=0.05, max_steps=8, seed=3)
    return GRPOTrainer(model or FakeModel(tokenizer.vocab_size), rewards, GRPOConfig(**defaults | options),
                       rows, processing_class=tokenizer, audit_funcs=audits)


def weights(trainer):
    return trainer.model.table.tobytes()
