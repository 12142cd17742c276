"""controls.py - what R1-Zero's rise is not: the default recipe's RL with one thing taken away.

    python -m benchmarks.controls RUN [--json FILE]    RUN: a finished pipeline run (its base and recipe)

    as_is        the recipe's rewards: the run's own RL again, what the others are compared with
    permuted     each reward function's values permuted inside every batch: the same numbers, no
                 information. A rise here would be a leak, or the format learned by chance
    format_only  the format reward alone: what being well-formed is worth
    no_retries   another base, pre-trained on the corpus without documents of several trials, then as_is

Same base, prompts, seeds and updates as the run. Measured are the last weights, on the run's test
problems, before and after. The run's r1_zero holds the weights with the most reward on validation, so
as_is has its figures only where the last weights were the best ones. docs/experiments.md keeps the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r1grpo.config import ConfigError
from r1grpo.evaluate import evaluate
from r1grpo.grpo import GRPOTrainer
from r1grpo.measure import held_out_args, held_out_rows
from r1grpo.model import Model
from r1grpo.recipe import Recipe, derive_seed, read_recipe, with_seed
from r1grpo.rewards import accuracy_reward, format_reward
from r1grpo.scoring import RewardFunction
from r1grpo.sft import SFTTrainer
from r1grpo.sources import corpus_row, prompt_rows, train_problems, training_row
from r1grpo.tasks import make_tokenizer
from r1grpo.tasks.corpus import documents

SHOWN = ("pass@1", "pass@1_ci", "wellformed_accuracy", "format", "mean_tokens",
         "reflection_per_response")


def permuted(reward: RewardFunction) -> RewardFunction:
    """The same values in another order, a function of the completions alone."""
    def shuffled(prompts: Sequence[Any], completions: Sequence[str], completion_ids: Sequence[Any],
                 **columns: Any) -> list[float | None]:
        values = reward(prompts, completions, completion_ids, **columns)
        key = zlib.crc32("\n".join(completions).encode())
        return [values[i] for i in np.random.default_rng(key).permutation(len(values))]

    shuffled.__name__ = f"permuted_{reward.__name__}"
    return shuffled


def reinforce(model: Model, recipe: Recipe, rewards: Sequence[RewardFunction],
              weights: tuple[float, ...]) -> None:
    """R1-Zero's RL of the recipe, on the prompts of the run."""
    spec, tokenizer = recipe.r1_zero, make_tokenizer()
    rows = prompt_rows(train_problems(recipe, spec.problems, "r1_zero/prompts"), "zero")
    options = with_seed(spec.grpo, derive_seed(recipe.seed, "r1_zero"), reward_weights=weights,
                        stop_token_ids=tokenizer.stop_token_ids("zero"))
    for step in GRPOTrainer(model, rewards, options, rows, processing_class=tokenizer):
        if step["step"] % 24 == 0:
            print(f"  update {step['step']}: reward {step['reward']:.3f}", flush=True)


def base_without_retries(recipe: Recipe) -> Model:
    """The recipe's base, its documents of several trials replaced by direct ones and single trials."""
    tokenizer = make_tokenizer()
    style = dataclasses.replace(recipe.corpus.style, styles=(0.65, 0.35, 0.0, 0.0))
    rows = [training_row(corpus_row(one), tokenizer) for one in
            documents(recipe.corpus.documents, derive_seed(recipe.seed, "corpus"), style)]
    model = Model(recipe.model, seed=derive_seed(recipe.seed, "base"))
    for _ in SFTTrainer(model, with_seed(recipe.base, derive_seed(recipe.seed, "base")), rows):
        pass
    return model


def figures(model: Model, recipe: Recipe) -> dict[str, Any]:
    tokenizer = make_tokenizer()
    found = evaluate(model, held_out_rows(recipe, "test", "zero"),
                     held_out_args(recipe, "test", "zero", tokenizer), tokenizer).figures
    return {name: found[name] for name in SHOWN}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", help="one control (may be repeated)")
    options = parser.parse_args(arguments)
    if not (options.run / "base").is_dir():
        raise ConfigError(f"{options.run} is no finished run: it has no base")
    recipe = read_recipe(options.run / "config.toml")
    weights = recipe.r1_zero.grpo.reward_weights or (1.0, 1.0)
    rule = (accuracy_reward, format_reward)

    def base() -> Model:
        return Model.from_pretrained(options.run / "base")

    plans: dict[str, tuple[Callable[[], Model], Sequence[RewardFunction], tuple[float, ...]]] = {
        "as_is": (base, rule, weights),
        "permuted": (base, tuple(map(permuted, rule)), weights),
        "format_only": (base, (format_reward,), (1.0,)),
        "no_retries": (lambda: base_without_retries(recipe), rule, weights)}
    found: dict[str, Any] = {"seed": recipe.seed}
    for name in options.only or plans:
        make, rewards, reward_weights = plans[name]
        print(name, flush=True)
        model = make()
        before = figures(model, recipe)
        reinforce(model, recipe, rewards, reward_weights)
        found[name] = {"before": before, "after": figures(model, recipe)}
        print(json.dumps(found[name], indent=1), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
