"""tables.py - DIR/seedN/ARM.json -> the ablations' part of docs/experiments.md and its pictures.

A view: every number comes from the files, every sentence here says what was done, none what it showed.
Differences are paired over the 200 test problems; "resolved" counts the seeds whose 95 % interval does
not hold 0. Knows nothing about models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from r1grpo.charts import Series, interval_chart, overlay_chart
from r1grpo.evaluate import interval

Found = dict[str, Any]
Results = dict[str, dict[int, Found]]  # arm -> seed -> its file

NAMES = {"cons@k": "cons@16", "wellformed_accuracy": "acc. if well-formed",
         "language_consistency": "one language", "mean_tokens": "tokens",
         "reflection_per_response": "\"wait\" etc.", "words_per_paragraph": "words a paragraph",
         "repeated": "repeated 8-grams"}


@dataclass(frozen=True)
class Ablation:
    """One question: the rows of its table (label -> arm or stage), the figures shown beside pass@1, the
    pairs whose difference is taken."""

    name: str
    title: str
    done: str
    rows: Mapping[str, str]
    columns: Sequence[str]
    pairs: Sequence[tuple[str, str]] = ()


ABLATIONS = (
    Ablation("cold_start", "Without cold start",
             "The first RL stage (reward accuracy + 0.5 format + 0.2 language) on the base model itself "
             "instead of the cold-started one; same problems, updates, random streams. Once in the plain "
             "template, which the base knows from its documents, and once in the chat template, which it "
             "does not: there an answer has to be boxed behind the closed thought.",
             {"cold start, no RL": "cold_start", "cold start + RL": "reasoning_rl",
              "RL on base": "no_cold_start", "RL on base, chat": "no_cold_start_chat"},
             ("cons@k", "format", "language_consistency", "mean_tokens", "reflection_per_response"),
             (("reasoning_rl", "no_cold_start"),)),
    Ablation("language", "Without the language reward",
             "The first RL stage without its language reward.",
             {"before": "cold_start", "with": "reasoning_rl", "without": "no_language"},
             ("cons@k", "format", "language_consistency", "mean_tokens", "reflection_per_response"),
             (("reasoning_rl", "no_language"),)),
    Ablation("repetition", "With and without a repetition penalty",
             "The recipe, as R1's, has none. Here R1-Zero's RL is run with one: 0.5 times the share of "
             "repeated 8-grams of tokens (about one trial) is taken off the reward.",
             {"base": "base", "without": "r1_zero", "with": "repetition_penalty"},
             ("repeated", "format", "mean_tokens", "truncated", "reflection_per_response"),
             (("repetition_penalty", "r1_zero"),)),
    Ablation("hackable", "A reward model that can be hacked, against rules",
             "A model with a scalar head (the base's weights) learns from 2,600 judged samples of the base "
             "what a right answer looks like; R1-Zero's RL then takes its sigmoid in the place of the rule. "
             "The last weights are measured, since nothing but the learned reward may choose them. The "
             "picture has seed 0: what the reward model says in training, and the share of right answers on "
             "the validation problems.",
             {"base": "base", "rules": "r1_zero", "learned reward": "reward_model"},
             ("cons@k", "wellformed_accuracy", "format", "mean_tokens", "reflection_per_response"),
             (("r1_zero", "reward_model"),)),
    Ablation("band", "Unfiltered prompts against the band of 0.2 to 0.625",
             "Of R1-Zero's 3,000 prompts those are kept that the base solves with a rate within the band, of "
             "8 samples each; the RL sees as many prompts as before, out of fewer.",
             {"base": "base", "all prompts": "r1_zero", "band": "band"},
             ("cons@k", "format", "mean_tokens", "truncated", "reflection_per_response"),
             (("band", "r1_zero"),)),
    Ablation("length", "A length reward",
             "R1-Zero's RL with the cosine reward (its published values: 1 to 2 if right, -10 to 0 if wrong, "
             "-10 at the limit of 256 tokens) in the place of accuracy.",
             {"base": "base", "off": "r1_zero", "cosine": "cosine_length"},
             ("cons@k", "format", "mean_tokens", "truncated", "reflection_per_response"),
             (("cosine_length", "r1_zero"),)),
    Ablation("cap", "A cap on length",
             "R1-Zero's RL with completions of at most 64 tokens instead of 256; both are measured at 256. "
             "The language of the task has no line breaks: a paragraph ends where the next reflection word "
             "stands, so it is about one trial.",
             {"base": "base", "256": "r1_zero", "64": "cap_64"},
             ("words_per_paragraph", "mean_tokens", "truncated", "reflection_per_response", "format"),
             (("cap_64", "r1_zero"),)),
    Ablation("sft_rl", "SFT alone against SFT + RL",
             "The two places where the pipeline does RL behind SFT.",
             {"base": "base", "SFT (cold start)": "cold_start", "+ RL": "reasoning_rl",
              "SFT (rejection)": "rejection_sft", "+ RL, all scenarios": "r1"},
             ("cons@k", "format", "language_consistency", "mean_tokens", "reflection_per_response"),
             (("reasoning_rl", "cold_start"), ("r1", "rejection_sft"))),
    Ablation("sft_data", "SFT data x1, x4, x16, filtered or not",
             "The student's base learns from the first 300, 1,200 or 4,800 samples of reasoning_rl: those "
             "that are right, well-formed and readable, or all as they come. Three epochs each.",
             {"student's base": "student_base", **{f"{count:,} {label}": f"sft_{count}_{kind}"
                                                   for count in (300, 1200, 4800)
                                                   for kind, label in (("all", "as they come"),
                                                                       ("kept", "filtered"))}},
             ("cons@k", "wellformed_accuracy", "format", "mean_tokens", "reflection_per_response"),
             tuple((f"sft_{count}_kept", f"sft_{count}_all") for count in (300, 1200, 4800))),
    Ablation("sizes", "Three sizes",
             "R1-Zero's RL on a dense model of 2 layers of width 48, on the student (dense, 3 layers of 64) "
             "and on the default model (mixture of experts, 4 layers of 96), each pre-trained on the same "
             "documents. The first two use the learning rate that the student's sweep chose.",
             {"2 x 48": "small", "3 x 64": "student_rl_only", "4 x 96": "r1_zero"},
             ("cons@k", "format", "mean_tokens", "truncated", "reflection_per_response")),
    Ablation("baseline", "GRPO against REINFORCE without a critic",
             "Advantages are the reward minus the mean of the whole rollout, not of the prompt's group, and "
             "not divided by a standard deviation. Samples, clip and updates are GRPO's.",
             {"base": "base", "GRPO": "r1_zero", "REINFORCE": "reinforce"},
             ("cons@k", "format", "mean_tokens", "truncated", "reflection_per_response"),
             (("r1_zero", "reinforce"),)))


def read_results(folder: Path) -> Results:
    """All files of `folder`, by arm and seed."""
    found: Results = {}
    for path in sorted(folder.glob("seed*/*.json")):
        one = json.loads(path.read_bytes())
        found.setdefault(one["arm"], {})[one["seed"]] = one
    return found


def rounded(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def table(ablation: Ablation, results: Results, seeds: Sequence[int]) -> list[str]:
    """pass@1 of every seed, its median, and the medians of the other figures."""
    columns = [NAMES.get(name, name) for name in ablation.columns]
    lines = ["| pass@1 | " + " | ".join([*(f"seed {seed}" for seed in seeds), "median", *columns]) + " |",
             "|---" * (len(seeds) + 2 + len(columns)) + "|"]
    for label, arm in ablation.rows.items():
        ran = [results[arm][seed]["figures"] for seed in seeds if seed in results.get(arm, {})]
        if not ran:
            continue
        cells = [rounded(results[arm][seed]["figures"]["pass@1"]) if seed in results[arm] else "not run"
                 for seed in seeds]
        medians = [rounded(median(one[name] for one in ran)) for name in ("pass@1", *ablation.columns)]
        lines.append(f"| {label} | " + " | ".join([*cells, *medians]) + " |")
    return lines


def differences(ablation: Ablation, results: Results, seeds: Sequence[int]) -> list[str]:
    """One line a pair: the paired difference of each seed with its interval."""
    label = {arm: name for name, arm in ablation.rows.items()}
    lines = []
    for one, other in ablation.pairs:
        cells, resolved, both = [], 0, 0
        for seed in seeds:
            if seed in results.get(one, {}) and seed in results.get(other, {}):
                gaps = [a - b for a, b in zip(results[one][seed]["right"], results[other][seed]["right"],
                                              strict=True)]
                low, high = interval(gaps, -1.0, 1.0)
                both, resolved = both + 1, resolved + (low > 0.0 or high < 0.0)
                cells.append(f"{sum(gaps) / len(gaps):+.3f} ({low:+.3f} to {high:+.3f})")
        if both:
            lines.append(f"- {label[one]} - {label[other]}, pass@1 paired: {', '.join(cells)}; resolved in "
                         f"{resolved} of {both} seeds")
    return lines


def notes(name: str, results: Results) -> list[str]:
    """What an arm found besides its figures."""
    def each(arm: str, say: Any) -> str:
        return "; ".join(f"seed {seed}: {say(one)}" for seed, one in sorted(results.get(arm, {}).items()))

    if name == "hackable":
        return ["- the reward model on 600 held-out judged samples, and its mean reward at the last update: "
                + each("reward_model", lambda one: f"{one['held_out']['accuracy']:.3f} (always the larger "
                       f"class: {one['held_out']['base_rate']:.3f}), {one['curve']['reward'][-1][1]:.3f}")]
    if name == "band":
        return ["- prompts in the band, never solved, always solved: "
                + each("band", lambda one: "{kept} of {prompts}, {never}, {always}".format(**one["data"]))]
    if name == "sizes":
        return ["- 2 x 48 before RL: " + each("small", lambda one: rounded(one["before"]))
                + "; the others' bases: " + each("student_base", lambda one: rounded(one["figures"]["pass@1"]))
                + " and " + each("base", lambda one: rounded(one["figures"]["pass@1"]))]
    return []


def picture(ablation: Ablation, results: Results, seeds: Sequence[int]) -> str:
    """pass@1 with its interval, every row and seed; the course of training where that is the point."""
    if ablation.name == "hackable" and 0 in results.get("reward_model", {}):
        learned, rules = (results["reward_model"][0]["curve"], results.get("r1_zero", {}))
        lines = [Series("learned reward", [(x, y) for x, y in learned["reward"]], 1),
                 Series("right, validation", [(0.0, results["base"][0]["figures"]["pass@1"]),
                                              *((x, y) for x, y in learned["validation"])], 0, True)]
        if 0 in rules:
            end = learned["reward"][-1][0]
            level = rules[0]["figures"]["pass@1"]
            lines.append(Series("right, RL by rules", [(0.0, level), (end, level)], 2))
        return overlay_chart("what the reward model says, and what is right (seed 0)", lines)
    drawn = [(f"{label}, {seed}", results[arm][seed]["figures"]["pass@1"],
              results[arm][seed]["figures"]["pass@1_ci"], color % 5)
             for color, (label, arm) in enumerate(ablation.rows.items())
             for seed in seeds if seed in results.get(arm, {})]
    return interval_chart(f"{ablation.title}: pass@1, by seed", drawn)


def budget_section(results: Results, seeds: Sequence[int], images: Path) -> list[str]:
    """pass@1 and cons@16 against the thinking budget, cons@j against the number of votes."""
    stages = [stage for stage in ("base", "r1_zero", "r1", "distilled") if stage in results]
    curves = {name: [Series(stage, _medians([results[stage][seed]["budgets"][key] for seed in seeds
                                             if seed in results[stage]]), color, True)
                     for color, stage in enumerate(stages)]
              for name, key in (("pass@1", "pass@1"), ("cons@16", "cons@k"))}
    for name, drawn in curves.items():
        (images / f"budget_{name.partition('@')[0]}.svg").write_text(overlay_chart(
            f"{name} against the thinking budget (tokens)", drawn, 1.0, log_x=True) + "\n")
    budgets = [int(x) for x, _ in curves["pass@1"][0].points]
    lines = ["### pass@1 and cons@16 against the thinking budget", "",
             "A completion that has not ended within the budget counts as unanswered; the samples are the "
             "stored ones, cut. Medians of the seeds. Below, cons@j over the first j samples.", "",
             "![pass@1](img/ablations/budget_pass.svg)", "",
             "![cons@16](img/ablations/budget_cons.svg)", "",
             "| tokens | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    lines += [f"| {one.name}, {name} | " + " | ".join(f"{y:.3f}" for _, y in one.points) + " |"
              for name, drawn in curves.items() for one in drawn]
    votes = {stage: _medians([results[stage][seed]["votes"] for seed in seeds if seed in results[stage]])
             for stage in stages}
    counts = [int(x) for x, _ in votes[stages[0]]]
    lines += ["", "| votes | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    return lines + [f"| {stage} | " + " | ".join(f"{y:.3f}" for _, y in points) + " |"
                    for stage, points in votes.items()] + [""]


def _medians(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    return [(points[0][0], median(y for _, y in points)) for points in zip(*curves)]


def sections(folder: Path, docs: Path) -> list[str]:
    """The lines of docs/experiments.md; pictures go to docs/img/ablations."""
    results = read_results(folder)
    seeds = sorted({seed for arms in results.values() for seed in arms})
    images = docs / "img" / "ablations"
    images.mkdir(parents=True, exist_ok=True)
    lines = ["## Ablations", "", "Made by `python -m benchmarks.ablations` (benchmarks/ablations/arms.py says "
             "what each arm is). pass@1 of the 200 test problems by seed; the other columns are medians of "
             "the seeds; dots with 95 % intervals over problems. One run a seed and arm: where intervals "
             "differ between seeds, the seed matters more than the change. PPO is out of scope: its critic "
             "is a second model of the policy's size with losses of its own, which the recipe that is "
             "reproduced here does without; REINFORCE is what GRPO without groups comes down to.", ""]
    for one in ABLATIONS:
        if not any(arm in results for arm in one.rows.values()):
            continue
        (images / f"{one.name}.svg").write_text(picture(one, results, seeds) + "\n")
        lines += [f"### {one.title}", "", one.done, "", f"![{one.title}](img/ablations/{one.name}.svg)", "",
                  *table(one, results, seeds), ""]
        if more := [*differences(one, results, seeds), *notes(one.name, results)]:
            lines += [*more, ""]
    return lines + budget_section(results, seeds, images)
