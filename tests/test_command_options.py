"""Options of commands: preset, file, --set, flags; what a run stores is what it read."""

import re

import pytest

from r1grpo import cli
from r1grpo.commands.options import DISTILL, GRPO, SFT, read_options
from r1grpo.config import ConfigError, GRPOConfig, SFTConfig


def test_options_come_from_preset_file_settings_and_flags_in_that_order(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('preset = "r1_zero"\nbeta = 0.5\nseed = 1\nlayout = "gsm8k"\n'
                    'reward = "format"\n[columns]\nquestion = "Q"\n')
    found = read_options(GRPO, file, ["seed=2", "max_steps=none", "columns.answer=A",
                                      "report_to=none", "stop_token_ids=7", "min_p=0.1"],
                         {"layout": "math", "model": None})
    args, inputs = found.args, found.inputs
    assert (args.beta, args.seed, args.max_steps, args.min_p) == (0.5, 2, None, 0.1)
    assert args.num_generations == 16 and args.stop_token_ids == (7,) and args.report_to == ()
    assert (inputs.layout, inputs.reward) == ("math", ("format",))
    assert inputs.columns == {"question": "Q", "answer": "A"}
    assert args.save_steps == 10 and GRPOConfig().save_steps == 0  # a command saves by itself


def test_several_rewards_in_one_setting_are_those_of_the_flag():
    want = read_options(GRPO, None, [], {"reward": "accuracy,format"}).inputs.reward
    for setting in ("reward=accuracy,format", 'reward=["accuracy", "format"]'):
        assert read_options(GRPO, None, [setting], {}).inputs.reward == want == ("accuracy", "format")


def test_a_value_that_is_none_of_its_words_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="dtype is 'bf16', .*'bfloat16', did you mean 'bfloat16'"):
        read_options(GRPO, None, [], {"dtype": "bf16"})


def test_every_command_option_is_one_of_the_two_halves():
    """A name in both would be read twice, and one of them in vain."""
    from dataclasses import fields

    from r1grpo.commands.options import COLDSTART, CURATE, EVAL, JUDGE, REJECT
    for one in (GRPO, SFT, DISTILL, EVAL, REJECT, CURATE, JUDGE, COLDSTART):
        assert not {f.name for f in fields(one.inputs)} & {f.name for f in fields(one.trainer)}
        for name, preset in one.presets.items():
            assert isinstance(preset(), one.trainer), name


def test_presets_of_the_paper_are_there_by_name():
    found = read_options(DISTILL, None, [], {"preset": "distill.qwen_7b"}).args
    assert (found.learning_rate, found.per_device_train_batch_size) == (8e-5, 64)
    zero = read_options(GRPO, None, [], {"preset": "grpo.r1_zero"})
    assert zero.args.completion_length(8200) == 65536
    flat = read_options(GRPO, None, ["max_completion_length=[[0, 8], [2, 9]]"], {}).args
    assert (flat.completion_length(1), flat.completion_length(2)) == (8, 9)


def test_help_names_every_option_and_preset(capsys):
    for stage in (SFT, GRPO, DISTILL):
        with pytest.raises(SystemExit):
            cli.main([stage.name, "--help"])
        words = set(re.findall(r"\w+", capsys.readouterr().out))
        assert {*stage.keys(), *stage.presets} <= words and "output_dir" not in words


def test_one_set_takes_several(tmp_path):
    flags = cli._parser().parse_args(["grpo", "--set", "beta=0.5", "seed=2", "--set", "max_steps=3"])
    args = read_options(GRPO, None, flags.set, {}).args
    assert (args.beta, args.seed, args.max_steps) == (0.5, 2, 3)


def test_config_toml_of_a_run_gives_the_same_options(tmp_path):
    found = read_options(SFT, None, ["learning_rate=3e-5", "columns.prompt=Q"],
                         {"preset": "sft.r1", "model": str(tmp_path)})
    assert found.args.num_train_epochs == SFTConfig.r1().num_train_epochs
    file = tmp_path / "config.toml"
    file.write_bytes(found.toml())
    again = read_options(SFT, file, [], {})
    assert (again.inputs, again.args) == (found.inputs, found.args)
    assert again.hash() == found.hash()
