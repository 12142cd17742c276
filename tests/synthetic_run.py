"""A run directory with made-up figures, for tests of the report. No model is involved."""

import json
import math
import random
from pathlib import Path

import numpy as np

from r1grpo.rundir import RunDir

PASS = {"base": 0.21, "r1_zero": 0.68, "cold_start": 0.55, "reasoning_rl": 0.71,
        "rejection_sft": 0.66, "r1": 0.74, "student_base": 0.12, "distilled": 0.31,
        "student_rl_only": 0.24}
PARENTS = {"base": (None, ()), "r1_zero": ("base", ()), "cold_start": ("base", ("r1_zero",)),
           "reasoning_rl": ("cold_start", ()), "rejection_sft": ("base", ("reasoning_rl",)),
           "r1": ("rejection_sft", ()), "student_base": (None, ()),
           "distilled": ("student_base", ("reasoning_rl",)),
           "student_rl_only": ("student_base", ())}
HOSTILE = '</span><script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" </think>'
PROBLEMS = [("en", "3,7,12|33", "User: Reach 33 from 3 , 7 , 12 . Assistant:"),
            ("zh", "2,5,9|17", "User: 用 2 , 5 , 9 得到 17 。 Assistant:"),
            ("en", "4,6,11|13", "User: Reach 13 from 4 , 6 , 11 . Assistant:")]


def make_figures(name: str, shift: float = 0.0) -> dict:
    """All fields of summary.json for one stage."""
    p = max(PASS[name] - shift, 0.01)
    return {"pass@1": p, "pass@1_ci": [max(p - 0.03, 0.0), p + 0.03], "pass@16": min(p + 0.2, 1.0),
            "cons@k": min(p + 0.12, 1.0), "k": 16, "wellformed_accuracy": min(p + 0.05, 1.0),
            "mean_tokens": 30 + 60 * p, "truncated": 0.04, "format": 0.93,
            "language_consistency": 0.97, "reflection_per_response": 2.4 * p,
            "seconds": 75 + 100 * p}


def make_summary(quick: bool = False) -> dict:
    """summary.json of a full run."""
    stages = {name: {**make_figures(name),
                     "tasks": {"countdown": make_figures(name, 0.03),
                               "arithmetic": make_figures(name, -0.05)},
                     "ood": make_figures(name, 0.15)} for name in PASS}
    return {"seed": 7, "wall_seconds": 1042.5, "quick": quick, "stages": stages,
            "parameters": {"total": 1234567, "active": 543210},
            "differences": {"r1 - r1_zero": {"difference": 0.0625, "interval": [-0.011, 0.136],
                                             "n": 200}},
            "max_logprob_gap": 0.0, "gap_tokens": 3456789,
            "general": {name: {"refusal": 0.9, "over_refusal": 0.06, "rubric_mean": 0.5 + i / 10,
                               "n": 120, "refusal_n": 23, "over_refusal_n": 17}
                        for i, name in enumerate(("rejection_sft", "r1"))},
            "reward_models": {"helpful": {"accuracy": 0.91, "n": 300},
                              "safety": {"accuracy": 0.96, "n": 240, "base_rate": 0.815,
                                         "balanced_accuracy": 0.927}},
            "costs": {"distilled": {"seconds": 41.0, "tokens": 250000},
                      "student_rl_only": {"seconds": 133.0, "tokens": 1900000},
                      "teacher_seconds": 512.0}}


def make_completion(stage: str, language: str, rng: random.Random) -> str:
    """Something of the right shape for the stage."""
    again = "等等 ," if language == "zh" else "wait ,"
    trials = "".join(f"try {rng.randint(1, 9)} * {rng.randint(2, 9)} = {rng.randint(10, 80)} no , "
                     f"{again} " for _ in range(0 if stage == "base" else rng.randint(1, 3)))
    if stage == "base":
        return "<answer> 3 + 7 * 12 </answer>"
    thinking = f"<think> {trials}7 * 3 = 21 + 12 = 33 yes </think>"
    if stage == "r1_zero":
        return f"{thinking} <answer> 7 * 3 + 12 </answer>"
    return rf"{thinking} The chain is \boxed{{ 7 * 3 + 12 }} ."


def write_run(path: Path, quick: bool = False, steps: int = 40) -> Path:
    """Fill `path` as a finished pipeline would, with one hostile completion at r1."""
    rng = random.Random(0)
    facts = {"version": "0", "seed": 7, "dtype": "float32", "tier": "avx2", "threads": 2}
    with RunDir(path, "hash", facts) as run:
        for stage, (parent, data_from) in PARENTS.items():
            if stage in ("r1_zero", "reasoning_rl", "r1", "student_rl_only"):
                _log_steps(run.metrics, stage, steps, rng)
            _log_samples(run.completions, stage, rng)
            run.save_stage(stage, {"w": np.ones(2, np.float32)}, {}, parent, steps, data_from)
        run.write_json("summary.json", make_summary(quick))
        run.finish()
    return path


def _log_steps(log, stage: str, steps: int, rng: random.Random) -> None:
    start, end = PASS[PARENTS[stage][0]], PASS[stage]
    for step in range(1, steps + 1):
        rise = 1 - math.exp(-4 * step / steps)
        level = start + (end - start) * rise

        def noisy(value: float) -> float:
            return max(value * (1 + rng.gauss(0, 0.06)), 0.0)

        row = {"stage": stage, "step": step, "reward": noisy(level + 0.2),
               "completions/mean_length": noisy(30 + 40 * rise),
               "completions/reflection": noisy(0.3 + 2 * rise),
               "language_consistency": min(noisy(0.95), 1.0), "kl": noisy(0.02 * rise),
               "entropy": noisy(0.5 - 0.2 * rise), "clip_ratio/region_mean": noisy(0.01)}
        if step % 10 == 0:
            row["eval/pass@1"] = noisy(level)
        if stage == "r1" and step == 3:
            row["alarms"] = ["truncation"]
        log.append(row)


def _log_samples(log, stage: str, rng: random.Random) -> None:
    for index, (language, key, prompt) in enumerate(PROBLEMS):
        for _ in range(2):
            text = make_completion(stage, language, rng)
            if stage == "r1" and index == 0:
                text = "<think> " + HOSTILE + text
            ids = list(range(len(text.split()) + 1))
            log.append({"stage": stage, "eval": "test", "problem_key": key, "task": "countdown",
                        "language": language, "prompt": prompt, "completion": text,
                        "completion_ids": ids, "rewards": {"accuracy": 1.0, "format": 0.5},
                        "logprobs": [-min(rng.expovariate(2), 5.0) for _ in ids],
                        "finish_reason": "stop"})


def read_summary(path: Path) -> dict:
    """summary.json of a run directory."""
    return json.loads((path / "summary.json").read_text("utf-8"))
