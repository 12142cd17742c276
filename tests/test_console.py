"""What train() says: a bar, figures every few steps, completions; and which states stay."""

import pytest
from fakes import FakeModel

from r1grpo.config import ConfigError, GRPOConfig, SFTConfig
from r1grpo.grpo import GRPOTrainer
from r1grpo.sft import SFTTrainer
from r1grpo.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer(["a", "b", "c"])
ROWS = [{"prompt_ids": [1], "completion_ids": [i, 2]} for i in (3, 4, 5, 6)]


def sft(**options):
    args = SFTConfig(max_steps=20, per_device_train_batch_size=2, learning_rate=0.1, **options)
    return SFTTrainer(FakeModel(8), args, ROWS)


def length(prompts, completions, completion_ids, **columns):
    return [float(len(ids)) for ids in completion_ids]


def grpo(**options):
    args = GRPOConfig(max_steps=4, per_device_train_batch_size=4, num_generations=4, max_completion_length=5,
                      steps_per_generation=2, **options)
    rows = [{"prompt": "a b"}, {"prompt": [{"role": "user", "content": "c"}]}]
    return GRPOTrainer(FakeModel(TOKENIZER.vocab_size), length, args, rows, processing_class=TOKENIZER)


def test_train_shows_a_short_bar_and_can_be_quiet(capsys):
    trainer = sft()
    trainer.train()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 10 and lines[-1].startswith("SFTTrainer 20/20 100%")
    assert f"loss {trainer.log_history[-1]['loss']:.3g}" in lines[-1]
    sft(disable_tqdm=True).train()
    assert capsys.readouterr().err == ""
    half = sft(disable_tqdm=True)
    [next(half) for _ in range(10)]
    half.args.disable_tqdm = False
    half.train()  # goes on where the iteration stopped
    assert capsys.readouterr().err.splitlines()[0].startswith("SFTTrainer 12/20")


def test_figures_are_said_every_logging_steps(capsys):
    trainer = sft(logging_steps=8, logging_first_step=True, disable_tqdm=True)
    trainer.train()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 8", "step 16"]
    said = trainer.log_history[7]
    assert f"step 8: loss {said['loss']:.4g}, grad_norm {said['grad_norm']:.4g}, learning_rate" in lines[1]
    assert len(trainer.log_history) == 20  # whatever is said


def test_a_line_of_figures_is_short_and_log_history_has_them_all(capsys):
    trainer = grpo(logging_steps=4, disable_tqdm=True)
    trainer.train()
    [line] = capsys.readouterr().err.splitlines()
    names = [one.rsplit(" ", 1)[0] for one in line.removeprefix("step 4: ").split(", ")]
    assert names == ["loss", "reward", "reward_std", "entropy", "mean_length", "grad_norm",
                     "learning_rate", "tokens_per_second", "peak_share"]
    assert {"rewards/length/mean", "completions/clipped_ratio"} <= trainer.log_history[-1].keys()


def test_completions_are_shown_once_a_rollout_or_with_the_figures(capsys):
    trainer = grpo(log_completions=True, disable_tqdm=True)
    trainer.train()
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("    [") for line in lines) == 2 * 8
    assert sorted({line for line in lines if line.startswith("prompt")}) == ["prompt: a b", "prompt: c"]
    assert all("[length " in line and ", advantage " in line for line in lines if line[0] == " ")
    grpo(log_completions=True, num_completions_to_print=1, logging_steps=4, disable_tqdm=True).train()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("step 4: loss") and lines[1].startswith("prompt: ")
    last = list(trainer.completion_rows())[0]
    assert f"advantage {last['advantage']:.4g}, {last['finish_reason']}] {last['completion']}" in lines[2]


def test_states_over_the_limit_leave(tmp_path):
    sft(save_steps=4, save_total_limit=2, output_dir=str(tmp_path)).train()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000016", "step-00000020"]
    again = sft(output_dir=str(tmp_path), logging_steps=3)  # none of these changes a bit
    again.load_checkpoint()
    assert again.step == 20


def test_a_run_that_goes_on_from_an_earlier_state_keeps_its_own(tmp_path):
    sft(save_steps=4, output_dir=str(tmp_path)).train()
    again = sft(save_total_limit=1, output_dir=str(tmp_path))
    again.load_checkpoint(tmp_path / "step-00000008")
    next(again)
    assert again.save_checkpoint().is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000009"]


@pytest.mark.parametrize("options", [{"save_total_limit": 0}, {"logging_steps": -1},
                                     {"logging_steps": 0.5}])
def test_options_that_cannot_be(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        SFTConfig(**options)


def test_completions_are_of_grpo_alone():
    with pytest.raises(ConfigError, match="log_completions.*GRPO's"):
        SFTConfig(log_completions=True)
    with pytest.raises(ConfigError, match="num_completions_to_print must be at least 1"):
        GRPOConfig(num_completions_to_print=0)
