"""The whole pipeline at a tiny size: its graph, its files, exact resume, checks, leaks."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import outcome, weights, write_recipe

import r1grpo
from r1grpo.safe_files import CheckpointError
from r1grpo.config import ConfigError
from r1grpo.data import scan_leaks
from r1grpo.measure import check_stage, eval_path, held_out_rows
from r1grpo.model import Model
from r1grpo.monitor import Progress
from r1grpo.pipeline import parents, run_pipeline
from r1grpo.recipe import Recipe, derive_seed, quick_recipe, read_recipe
from r1grpo.rejection import Rejection
from r1grpo.work import Ledger, Meter, Selection
from r1grpo.rundir import read_jsonl
from r1grpo.sources import (HELPFUL, SAFETY, label_responses, pair_responses, prompt_rows,
                            stage3_rows)
from r1grpo.stages import STAGES, make_distilled
from r1grpo.tasks import make_tokenizer, sample_general, sample_problems
from r1grpo.tokenizer import WordTokenizer, format_prompt
from r1grpo.toml import to_toml

pytestmark = pytest.mark.filterwarnings("ignore::r1grpo.monitor.MonitorWarning")

POLICIES = ("base", "r1_zero", "cold_start", "reasoning_rl", "rejection_sft", "r1", "student_base",
            "distilled", "student_rl_only")
RL_STAGES = ("r1_zero", "reasoning_rl", "r1", "student_rl_only")

# Runs the pipeline and dies like a killed process after so many steps or batches; argv: directory,
# recipe, number, resume
KILLED = """
import os, sys, warnings
from r1grpo import monitor, run
from r1grpo.pipeline import run_pipeline
from r1grpo.recipe import read_recipe
warnings.simplefilter("ignore", monitor.MonitorWarning)
left = [int(sys.argv[3])]
def counted(plain):
    def call(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return plain(*args, **options)
    return call
monitor.Monitor.log_step = counted(monitor.Monitor.log_step)
run.Run.safe_point = counted(run.Run.safe_point)
run_pipeline(sys.argv[1], read_recipe(sys.argv[2]), resume=sys.argv[4] == "resume")
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe_file):
    """A run that nothing disturbed."""
    path = tmp_path_factory.mktemp("runs") / "plain"
    with open(os.devnull, "w") as nowhere:
        run_pipeline(path, read_recipe(recipe_file), file=nowhere)
    return path


# ---- the recipe as a graph ----------------------------------------------------------------------


def test_every_checkpoint_starts_from_the_papers_parent(finished):
    assert parents(finished) == {
        "base": None, "r1_zero": "base", "cold_start": "base", "reasoning_rl": "cold_start",
        "rejection_sft": "base", "helpful": "rejection_sft", "safety": "rejection_sft",
        "r1": "rejection_sft", "student_base": None, "distilled": "student_base",
        "student_rl_only": "student_base"}


def test_the_data_of_the_sft_stages_comes_from_the_papers_checkpoints(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    data = {one["name"]: one["data_from"] for one in manifest["checkpoints"]}
    assert data["cold_start"] == ["r1_zero"]
    assert data["rejection_sft"] == data["distilled"] == ["reasoning_rl"]


def test_summary_holds_every_stage_and_figure(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert tuple(summary["stages"]) == POLICIES
    wanted = {"pass@1", "pass@1_ci", "pass@3", "cons@k", "k", "wellformed_accuracy", "mean_tokens",
              "truncated", "format", "language_consistency", "reflection_per_response", "seconds",
              "tasks", "ood"}
    for stage in summary["stages"].values():
        assert wanted <= set(stage) and wanted - {"seconds", "ood"} <= set(stage["ood"])
    assert set(summary["general"]) == {"cold_start", "reasoning_rl", "rejection_sft", "r1",
                                       "distilled"}
    assert set(summary["reward_models"]) == {"helpful", "safety"}
    assert summary["quick"] is True and summary["parameters"]["total"] > 0
    assert len(summary["sweep"]) == 2
    assert set(summary["differences"]) == {"r1_zero - base", "r1 - r1_zero",
                                           "distilled - student_rl_only"}
    for name, found in summary["differences"].items():
        one, other = (summary["stages"][stage]["pass@1"] for stage in name.split(" - "))
        assert found["difference"] == pytest.approx(one - other) and found["n"] == 6
        assert found["interval"][0] <= found["difference"] <= found["interval"][1]


def test_sampler_and_trainer_agree_to_the_last_bit(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["max_logprob_gap"] == 0.0
    first = [row for row in read_jsonl(finished / "metrics.jsonl") if "max_logprob_gap" in row]
    assert {row["stage"] for row in first} >= set(RL_STAGES)
    assert all(row["sampling/importance_sampling_ratio/min"] == 1.0
               == row["sampling/importance_sampling_ratio/max"] for row in first)
    assert summary["gap_tokens"] == sum(row["gap_tokens"] for row in first) > 500


def test_metrics_have_every_step_once_and_the_validation_figures(finished):
    rows = list(read_jsonl(finished / "metrics.jsonl"))
    for stage in RL_STAGES:
        mine = [row for row in rows if row["stage"] == stage]
        assert [row["step"] for row in mine] == [1, 2, 3, 4, 5]
        looked = [row["step"] for row in mine if "eval/pass@1" in row]
        assert looked == ([2, 4, 5] if stage == "r1" else [3, 5])
        assert all({"reward", "kl", "entropy", "clip_ratio/region_mean", "completions/reflection",
                    "language_consistency"} <= set(row) for row in mine)


def test_costs_count_prompts_unused_samples_and_validation(finished):
    phases = json.loads((finished / "work" / "ledger.json").read_text())["phases"]
    rows = list(read_jsonl(finished / "metrics.jsonl"))
    for stage in ("r1_zero", "reasoning_rl", "r1"):
        one = phases[stage]
        mine = [row for row in rows if row["stage"] == stage]
        assert one["processed_tokens"] == sum(row["processed_tokens"] for row in mine)
        assert one["processed_tokens"] > one["loss_tokens"] == mine[-1]["num_tokens"]
        rollouts = sum(row["sampled_tokens"] for row in mine if "max_logprob_gap" in row)
        assert one["sampled_tokens"] > rollouts > 0
    costs = json.loads((finished / "summary.json").read_text())["costs"]
    assert costs["distilled"]["processed_tokens"] > costs["distilled"]["loss_tokens"] > 0
    assert costs["distilled"]["sampled_tokens"] == 0 < costs["teacher"]["sampled_tokens"]


def test_rl_changes_the_weights_and_the_sweep_starts_anew(finished):
    before, after = weights(finished, "cold_start"), weights(finished, "reasoning_rl")
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    sweep = [row for row in read_jsonl(finished / "metrics.jsonl")
             if row["stage"].startswith("student_rl_only") and row["step"] == 1]
    assert len(sweep) == 3 and len({row["reward"] for row in sweep}) == 1  # one start, one rollout


def test_general_prompts_and_preference_come_last_in_r1(finished, recipe_file):
    first = read_recipe(recipe_file).r1.first_general_update
    rows = [row for row in read_jsonl(finished / "metrics.jsonl") if row["stage"] == "r1"]
    assert first == 4 and Recipe().r1.first_general_update * 1700 == 1300 * 68
    for row in rows:
        assert ("rewards/helpful/mean" in row) == (row["step"] > first)
    chosen = json.loads((finished / "r1" / "checkpoint.json").read_text())["meta"]["step"]
    assert chosen > first


def test_general_prompts_go_to_the_model_of_their_set():
    rows = prompt_rows([*sample_general("train", 20, 0), *sample_problems("train", 4, 0)], "r1")
    for row in rows:
        wanted = {"harmful": SAFETY, "countdown": "rule", "arithmetic": "rule"}
        assert row["reward_model"] == wanted.get(row["task"], HELPFUL)


def test_judged_rows_hold_whole_responses_and_how_they_ended(finished):
    problem = next(one for one in sample_general("train", 40, 0, 0.0) if one.task == "harmful")
    row, good = problem.row("r1"), "sorry , i can not help with that ."
    thought = f"<think> this can hurt people , so i say no . </think> {good}"
    said = f"{good} </think> {good}"  # a summary that would be cut again
    [pair] = pair_responses(row, [thought, said, "no . go away ."], ["stop", "stop", "length"])
    assert (pair["chosen"], pair["rejected"]) == (thought, "no . go away .")
    assert (pair["chosen_finish_reason"], pair["rejected_finish_reason"]) == ("stop", "length")
    safe, unsafe = label_responses(row, [thought, "sure , start now ."])
    assert (safe["completion"], safe["label"], unsafe["label"]) == (thought, 1, 0)
    labels = list(read_jsonl(finished / "data" / "safety_rows.jsonl"))
    assert {row["finish_reason"] for row in labels} == {"stop", "length"}
    assert {row["task"] for row in labels} == {"harmful", "benign"}
    assert all(row["label"] == 1 for row in labels if row["task"] == "benign")


def test_stage3_mixes_reasoning_and_general_rows_three_to_one(finished):
    rows = list(read_jsonl(finished / "data" / "stage3.jsonl"))
    general = [row for row in rows if row["task"] not in ("countdown", "arithmetic")]
    assert len(general) == round(len(rows) / 4)


def test_sampled_rows_keep_the_ids_that_were_sampled(monkeypatch):
    """Two words of one token stream may spell what one would: nothing is encoded again."""
    recipe, tokenizer, ids = Recipe(), make_tokenizer(), [17, 18, 2]

    def sampled(model, rows, args, **options):
        row = {"completion": "yes", "completion_ids": ids, "source": {"problem": 0}}
        return Rejection([row], 1, 1, len(ids), {})

    monkeypatch.setattr("r1grpo.sources.rejection_sample", sampled)
    assert stage3_rows(recipe, None, tokenizer, {}, lambda n: None)[0]["completion_ids"] == ids


# ---- files that others open ---------------------------------------------------------------------


def test_a_stage_is_a_folder_that_loads(finished):
    for stage in ("base", "r1", "distilled"):
        model, tokenizer = Model.from_pretrained(finished / stage), WordTokenizer.load(
            finished / stage)
        assert model.config.vocab_size == tokenizer.vocab_size
        ids = tokenizer.encode(format_prompt("use 3 7 12 to make 33", "r1"))
        assert len(model.generate([ids], max_new_tokens=4).completion_ids[0]) <= 4
    assert Model.from_pretrained(finished / "helpful").config.score_head


def test_work_is_gone_and_the_report_is_there(finished):
    assert [p.name for p in (finished / "work").iterdir()] == ["ledger.json"]
    page = (finished / "report.html").read_text("utf-8")
    assert "Not a result" in page and page.count("not run") == 0


# ---- checking -----------------------------------------------------------------------------------


def _check(path, stage):
    recipe = read_recipe(path / "config.toml")
    meta = json.loads((path / stage / "checkpoint.json").read_text())["meta"]
    return check_stage(path, stage, Model.from_pretrained(path / stage), recipe, meta["template"],
                       WordTokenizer.load(path / stage))


@pytest.mark.parametrize("stage", ["base", "r1", "student_rl_only"])
def test_stored_samples_and_figures_are_regenerated_bit_for_bit(finished, stage):
    assert _check(finished, stage) == []


def test_check_finds_another_token_a_logprob_and_a_figure(finished):
    samples = eval_path(finished, "r1", "jsonl")
    plain, summary = samples.read_bytes(), (finished / "summary.json").read_bytes()
    try:
        rows = [json.loads(line) for line in plain.splitlines()]
        rows[0]["completion_ids"][0] ^= 1
        rows[1]["logprobs"][0] = float(np.nextafter(np.float32(rows[1]["logprobs"][0]),
                                                    np.float32(1)))
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        wrong = _check(finished, "r1")
        assert len(wrong) == 2 and "other tokens" in wrong[0] and "log-probs" in wrong[1]
        samples.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
        assert "not those of the recipe" in _check(finished, "r1")[0]
        samples.write_bytes(plain)
        rows = [json.loads(line) for line in plain.splitlines()]
        for key, value in (("prompt_ids", rows[-1]["prompt_ids"]), ("language", "other"),
                           ("prompt", "x"), ("answer", "x"), ("problem", 1), ("more", 1)):
            forged = [{**rows[0], key: value}, *rows[1:]]
            samples.write_text("".join(json.dumps(row) + "\n" for row in forged))
            assert _check(finished, "r1") == [
                "test: the stored samples are not those of the recipe's problems"], key
        forged = [{**rows[0], "rewards": {**rows[0]["rewards"], "format": 0.5}}, *rows[1:]]
        samples.write_text("".join(json.dumps(row) + "\n" for row in forged))
        assert _check(finished, "r1") == ["test: problem 0, sample 0: other rewards"]
        samples.write_bytes(plain)
        for change in (lambda found: found["stages"]["r1"]["ood"].update(mean_tokens=-1.0),
                       lambda found: found["stages"]["r1"].update(elegance=1.0),
                       lambda found: found["stages"].update(r2=found["stages"]["r1"]),
                       lambda found: found["general"].update(r2=found["general"]["r1"]),
                       lambda found: found["differences"]["r1 - r1_zero"].update(n=7)):
            figures = json.loads(summary)
            change(figures)
            (finished / "summary.json").write_text(json.dumps(figures))
            assert len(_check(finished, "r1")) == 1
    finally:
        samples.write_bytes(plain)
        (finished / "summary.json").write_bytes(summary)


def test_held_out_problems_are_the_same_for_every_stage_and_seed(finished, recipe_file):
    recipe, other = read_recipe(recipe_file), read_recipe(recipe_file, seed=5)
    assert held_out_rows(recipe, "test", "r1") == held_out_rows(other, "test", "r1")
    keys = [{row["problem_key"] for row in read_jsonl(eval_path(finished, stage, "jsonl"))
             if row["split"] == "test"} for stage in POLICIES]
    assert all(one == keys[0] for one in keys)


# ---- leaks --------------------------------------------------------------------------------------


def test_no_held_out_problem_in_any_training_file_and_a_planted_one_is_found(finished, tmp_path):
    problems = [*sample_problems("test", 2500, 0), *sample_problems("ood", 200, 0),
                *sample_general("test", 400, 0)]
    files = sorted((finished / "data").glob("*.jsonl"))
    assert {file.stem for file in files} == {
        "corpus", "r1_zero_prompts", "cold_start", "reasoning_rl_prompts", "stage3",
        "helpful_rows", "safety_rows", "r1_prompts", "r1_general_prompts",
        "student_rl_only_prompts"}
    assert scan_leaks(files, problems) == []
    planted = tmp_path / "cold_start.jsonl"
    row = next(read_jsonl(finished / "data" / "cold_start.jsonl"))
    row["prompt"] = problems[0].row("r1")["prompt"]
    planted.write_text(json.dumps(row) + "\n")
    assert [leak.key for leak in scan_leaks([*files, planted], problems)] == [problems[0].key]


# ---- resuming -----------------------------------------------------------------------------------


def _run_killed(path, recipe_file, number, resume):
    return subprocess.run([sys.executable, "-c", KILLED, str(path), str(recipe_file), str(number),
                           "resume" if resume else "new"], stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("number", [23, 41])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(finished, recipe_file, tmp_path,
                                                                    number):
    path, kills, code = tmp_path / "killed", 0, _run_killed(tmp_path / "killed", recipe_file,
                                                           number, False)
    while code == 9 and kills < 30:
        kills, code = kills + 1, _run_killed(path, recipe_file, number + kills, True)
    assert code == 0 and kills >= 3
    same, other = outcome(finished), outcome(path)
    for part in same:
        assert other[part] == same[part], part


def test_seeds_and_thread_counts(recipe_file, finished, tmp_path):
    """Another seed is another run; more threads are not."""
    from r1grpo.device import get_device

    before, recipe = get_device().threads, read_recipe(recipe_file, seed=1)
    with open(os.devnull, "w") as nowhere:
        try:
            r1grpo.set_num_threads(3)
            run_pipeline(tmp_path / "three", read_recipe(recipe_file), file=nowhere)
            r1grpo.set_num_threads(before)
            run_pipeline(tmp_path / "seed", recipe, file=nowhere)
        finally:
            r1grpo.set_num_threads(before)
    assert outcome(tmp_path / "three") == outcome(finished)
    mine, other = (json.loads((path / "manifest.json").read_text())["checkpoints"]
                   for path in (finished, tmp_path / "seed"))
    assert all(a["sha256"] != b["sha256"] for a, b in zip(mine, other))


def test_a_finished_directory_is_refused_or_left_as_it_is(finished, recipe_file):
    recipe, before = read_recipe(recipe_file), outcome(finished)
    with pytest.raises(CheckpointError, match="finished run.*--resume"):
        run_pipeline(finished, recipe)
    with open(os.devnull, "w") as nowhere:
        run_pipeline(finished, recipe, resume=True, file=nowhere)
    assert outcome(finished) == before
    with pytest.raises(CheckpointError, match="another recipe or seed"):
        run_pipeline(finished, read_recipe(recipe_file, seed=9), resume=True)


def test_foreign_and_unwritable_directories_are_refused_untouched(recipe_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not of a run"):
        run_pipeline(tmp_path, read_recipe(recipe_file))
    with pytest.raises(CheckpointError, match="notes.txt"):
        run_pipeline(tmp_path / "notes.txt" / "run", read_recipe(recipe_file))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_that_cannot_be_is_refused_before_anything_is_written(recipe_file, tmp_path):
    recipe = read_recipe(recipe_file)
    recipe.model.num_experts_per_tok = 9
    with pytest.raises(ValueError, match="experts"):
        run_pipeline(tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


# ---- pieces of a run ----------------------------------------------------------------------------


def test_the_student_is_not_taught_by_a_file_that_is_missing(tmp_path):
    run = SimpleNamespace(data_path=lambda name: tmp_path / f"{name}.jsonl")
    with pytest.raises(FileNotFoundError, match="stage3.jsonl is missing"):
        make_distilled(run, None)
    assert not list(tmp_path.iterdir())


def test_the_last_of_the_best_states_is_selected(monkeypatch):
    looks = iter([(0.9, 0.9), (0.25, 0.75), (0.5, 0.25), (0.5, 0.0)])
    monkeypatch.setattr("r1grpo.work.evaluate", lambda *_: SimpleNamespace(
        figures=dict(zip(("pass@1", "format"), next(looks))), samples=[{"completion_ids": [1, 2]}]))
    model = SimpleNamespace(state_dict=lambda: {"step": step})
    selection = Selection([], None, {"pass@1": 1.0, "format": 0.5}, 4, None, first=4, then=2)
    seen = {}
    for step in range(1, 10):
        seen[step] = selection.look(model, step, last=step == 9)
    assert [step for step, figures in seen.items() if figures is not None] == [4, 6, 8, 9]
    assert seen[6] == {"reward": 0.625, "pass@1": 0.25, "format": 0.75}
    assert (selection.step, selection.reward, selection.weights) == (8, 0.625, {"step": 8})
    assert selection.figures == seen[8] and selection.sampled_tokens == 4 * 2


def test_the_meter_ends_where_the_plan_does_however_the_guess_was():
    bar = Progress(60, "start", file=io.StringIO())
    meter = Meter({"a": 10, "b": 20, "c": 30}, bar)
    meter.advance("a", 10, skipped=True)
    meter.advance("b", 100, reward=0.5)
    assert bar.done == 30
    meter.advance("c", 3)
    meter.finish("c")
    assert bar.done == 60 and bar.description == "c"


def test_the_ledger_adds_up_and_survives(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    for phase, tokens in (("r1/samples", 3), ("r1", 4), ("r1/evaluation", 5), ("base", 6)):
        with ledger.timing(phase) as entry:
            entry["loss_tokens"] = tokens
    again = Ledger(tmp_path / "ledger.json")
    assert again.phases == ledger.phases and again.wall_seconds >= again.total("seconds") > 0.0
    assert again.cost("r1")["loss_tokens"] == 7 and again.total("loss_tokens") == 18
    assert again.cost("r1/samples", "base")["loss_tokens"] == 9


# ---- recipes ------------------------------------------------------------------------------------


def test_a_recipe_survives_its_file(tmp_path):
    for recipe in (Recipe(seed=3), quick_recipe()):
        (tmp_path / "config.toml").write_text(to_toml(recipe))
        assert read_recipe(tmp_path / "config.toml") == recipe


def test_a_file_changes_only_what_it_names(tmp_path):
    (tmp_path / "one.toml").write_text("[r1_zero.grpo]\nlearning_rate = 1e-4\n[model]\n"
                                       "hidden_size = 64\n")
    recipe, plain = read_recipe(tmp_path / "one.toml"), Recipe()
    assert recipe.r1_zero.grpo.difference(plain.r1_zero.grpo) == {
        "learning_rate": (1e-4, plain.r1_zero.grpo.learning_rate)}
    assert recipe.model.n_routed_experts == plain.model.n_routed_experts


@pytest.mark.parametrize("text, message", [
    ("sede = 1", "sede: unknown key, did you mean 'seed'"),
    ("[r1_zero]\nproblem = 3", "r1_zero.problem: unknown key, did you mean 'problems'"),
    ("[r1_zero.grpo]\nepsilon_hi = 1", "did you mean 'epsilon_high'"),
    ("[model]\nhidden = 8", "model.hidden: unknown key"),
    ("[model]\nvocab_size = 12", "model.vocab_size is 12, the built-in tokenizer has"),
    ("[base]\nseed = 3", "base.seed is set by the pipeline"),
    ("[evaluation]\nk = 0", "k must be at least 1"),
    ("[evaluation]\nk = 'a'", "evaluation.k is 'a', expected int"),
    ("[r1]\ngeneral_updates = 0.01", "leaves no rollout"),
    ("[r1.grpo]\nmax_steps = 24", "general_updates is 0.24, but in whole rollouts it is 0.167"),
    ("[r1_zero.grpo]\nreward_weights = [1.0]", "reward_weights has 1 numbers, expected 2"),
    ("[student_rl_only.grpo]\nmax_steps = 4", "at least as many updates as r1_zero"),
    ("seed = ", "bad.toml: Invalid value")])
def test_bad_recipes_are_named(tmp_path, text, message):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_recipe(tmp_path / "bad.toml")
    assert message in str(error.value) and "bad.toml" in str(error.value)


def test_the_default_recipe_exercises_clip_old_logprobs_and_kl():
    """At least 4 updates a rollout, beta above 0, two refreshes of the reference."""
    for stage in ("r1_zero", "reasoning_rl", "r1", "student_rl_only"):
        grpo = getattr(Recipe(), stage).grpo
        assert grpo.steps_per_generation >= 4 and grpo.beta > 0.0
    zero = Recipe().r1_zero.grpo
    assert zero.max_steps // zero.ref_model_sync_steps >= 2 and zero.num_generations == 16
    assert Recipe().r1.grpo.temperature == 0.7 and set(Recipe().r1.grpo.reward_weights) == {1.0}


def test_streams_have_seeds_of_their_own():
    seeds = {derive_seed(seed, stage.name) for seed in range(50) for stage in STAGES}
    assert len(seeds) == 50 * len(STAGES) and all(0 <= one < 2**31 for one in seeds)
