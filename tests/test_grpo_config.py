"""Run configs: presets with the published numbers, refusals by name, TOML there and back."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from r1grpo.config import ConfigError, EvalConfig, GRPOConfig, RewardConfig, SFTConfig
from r1grpo.toml import from_dict, read_table, to_toml
from r1grpo.trainer import data_order, learning_rate_at


@dataclass
class Recipe:
    seed: int = 0
    name: str = "x"
    mix: dict[str, float] = field(default_factory=lambda: {"countdown": 0.75})
    sft: SFTConfig = field(default_factory=SFTConfig)
    grpo: GRPOConfig = field(default_factory=GRPOConfig)


def test_presets_hold_the_published_numbers():
    zero = GRPOConfig.r1_zero()
    assert (zero.learning_rate, zero.beta, zero.temperature, zero.num_generations) == \
        (3e-6, 0.001, 1.0, 16)
    assert zero.generation_batch_size == 8192 and zero.prompts_per_rollout == 512
    assert zero.steps_per_generation == 16 and zero.per_device_train_batch_size == 512
    assert zero.sync_ref_model and zero.ref_model_sync_steps == 400
    assert zero.max_steps == 10400
    assert zero.max_completion_length == ((0, 32768), (8200, 65536))
    assert [zero.completion_length(step) for step in (0, 8199, 8200, 10399)] == \
        [32768, 32768, 65536, 65536] and zero.sampling(8200).max_completion_length == 65536
    assert GRPOConfig.r1_stage1().epsilon == 10.0
    two = GRPOConfig.r1_stage2()
    assert (two.temperature, two.max_steps, two.epsilon) == (0.7, 1700, 10.0)
    maths = GRPOConfig.deepseekmath()
    assert (maths.num_generations, maths.beta, maths.generation_batch_size) == (64, 0.04, 1024)
    dapo = GRPOConfig.dapo()
    assert (dapo.epsilon, dapo.epsilon_high, dapo.beta, dapo.loss_type) == (0.2, 0.28, 0, "dapo")
    assert dapo.filter_zero_std_samples and dapo.prompts_per_rollout == 512
    assert GRPOConfig.dr_grpo().scale_rewards == "none" and GRPOConfig.trl().std_ddof == 1
    r1 = SFTConfig.r1()
    assert r1.learning_rate == 5e-5 and r1.learning_rate * r1.min_lr_rate == pytest.approx(5e-6)
    assert {name: SFTConfig.distill(name).learning_rate for name in (
        "qwen_1_5b", "qwen_7b", "qwen_14b", "qwen_32b", "llama_8b", "llama_70b")} == {
        "qwen_1_5b": 1e-4, "qwen_7b": 8e-5, "qwen_14b": 7e-5, "qwen_32b": 6e-5, "llama_8b": 5e-5,
        "llama_70b": 2e-5}
    small = SFTConfig.distill()
    assert small == SFTConfig.distill("qwen_1_5b") and small.lr_scheduler_type == "cosine"
    assert (small.per_device_train_batch_size, small.max_length, small.min_lr_rate) == \
        (64, 32768, 0.1) and 2 <= small.num_train_epochs <= 3
    with pytest.raises(ConfigError, match="no student 'qwen_7B', .*did you mean 'qwen_7b'"):
        SFTConfig.distill("qwen_7B")
    gspo = GRPOConfig.gspo()
    assert (gspo.importance_sampling_level, gspo.loss_type) == ("sequence", "grpo")
    assert (gspo.epsilon, gspo.epsilon_high, gspo.steps_per_generation) == (3e-4, 4e-4, 4)
    assert GRPOConfig.trl().ref_model_mixup_alpha == 0.6
    assert RewardConfig().part == "summary" and RewardConfig(kind="pointwise").part == "whole"
    assert GRPOConfig.r1_zero(beta=0.0, sync_ref_model=False).beta == 0.0


def test_difference_names_what_differs():
    assert GRPOConfig.r1_stage1(max_steps=10400).difference(GRPOConfig.r1_zero()) == \
        {"epsilon": (10.0, 0.2),
         "max_completion_length": (32768, ((0, 32768), (8200, 65536)))}


@pytest.mark.parametrize("option, words", [
    ("use_vllm", "one engine"), ("vllm_gpu_memory_utilization", "one engine"),
    ("gradient_accumulation_steps", "micro_batch_tokens"), ("clip_ratio_c", "set delta"),
    ("load_in_4bit", "no quantised training"), ("deepspeed", "one process, one device"),
    ("vllm_server_host", "one engine"), ("kl_loss_type", "kl_estimator"),
    ("generation_batch_size", "steps_per_generation"), ("clip_ratio_low", "set epsilon"),
    ("num_generation", "did you mean 'num_generations'"), ("nonsense", "unknown option")])
def test_unsupported_and_unknown_options_are_named(option, words):
    with pytest.raises(ConfigError, match=words) as caught:
        GRPOConfig(**{option: 2})
    assert option in str(caught.value)


def test_options_of_trl_that_ask_for_what_is_done_anyway_are_taken():
    plain = GRPOConfig(use_vllm=False, gradient_accumulation_steps=1, bf16=False,
                       remove_unused_columns=False, repetition_penalty=1.0)
    assert plain == GRPOConfig()
    with pytest.raises(ConfigError, match="'use_vllm' is not supported"):
        GRPOConfig(use_vllm=True)
    with pytest.raises(ConfigError, match="'gradient_accumulation_steps' is not supported"):
        GRPOConfig(gradient_accumulation_steps=True)
    assert GRPOConfig(scale_rewards=False).scale_rewards == "none"
    assert GRPOConfig(scale_rewards=True).scale_rewards == "group"


def test_gspo_is_another_name():
    assert GRPOConfig(loss_type="gspo") == GRPOConfig(importance_sampling_level="sequence")


def test_completion_length_schedules():
    config = GRPOConfig(max_completion_length=[[0, 4], [10, 8]])
    assert config.max_completion_length == ((0, 4), (10, 8))
    assert [config.completion_length(step) for step in (0, 9, 10, 99)] == [4, 4, 8, 8]
    assert from_dict(Recipe, {"grpo": {"max_completion_length": [[0, 4], [10, 8]]}}).grpo == config
    assert GRPOConfig(max_completion_length=7).completion_length(99) == 7
    for bad in (0, True, "8", 1.5, [], [8], [[0, 4, 5]], [[1, 4]], [[0, 4], [0, 8]],
                [[0, 4], [9, 0]], [[0, 4], [9, 1.5]]):
        with pytest.raises(ConfigError, match="max_completion_length must be at least 1, or pairs"):
            GRPOConfig(max_completion_length=bad)


@pytest.mark.parametrize("options, word", [
    ({"temperature": -1}, "temperature"), ({"temperature": 0.0}, "temperature must be above 0"),
    ({"num_generations": 1}, "num_generations must be at least 2"),
    ({"top_p": 0.0}, "top_p"), ({"beta": -0.1}, "beta"),
    ({"loss_type": "sapo"}, "loss_type"), ({"per_device_train_batch_size": 7}, "num_generations"),
    ({"ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha must be above 0"),
    ({"ref_model_mixup_alpha": 1.1}, "ref_model_mixup_alpha"), ({"max_steps": 0}, "max_steps"),
    ({"loss_type": "cispo"}, "epsilon_high must be given for loss_type 'cispo'"),
    ({"loss_type": "cispo", "epsilon_high": 5.0, "delta": 4.0}, "delta must be None"),
    ({"delta": 0.0}, "delta must be above 0"), ({"num_iterations": 0}, "num_iterations"),
    ({"kl_estimator": "k4"}, "kl_estimator"),
    ({"importance_sampling_level": "group"}, "importance_sampling_level must be"),
    ({"loss_type": "gspo", "beta": 0.1, "use_bias_correction_kl": True}, "use_bias_correction_kl"),
    ({"sync_ref_model": True}, "sync_ref_model"), ({"scale_rewards": "Group"}, "scale_rewards"),
    ({"learning_rate": float("nan")}, "learning_rate"), ({"stop_strings": ("",)}, "stop_strings")])
def test_values_that_cannot_be(options, word):
    with pytest.raises(ConfigError, match=word):
        GRPOConfig(**options)


def test_eval_config():
    with pytest.raises(ConfigError, match="k must"):
        EvalConfig(k=0)
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        EvalConfig(temprature=1.0)


def test_toml_round_trip(tmp_path):
    recipe = Recipe(3, 'quote " \\ \n 中文 \x7f', {"a b": 1.0, "c": 1e-7},
                    SFTConfig.r1(), GRPOConfig.r1_zero(stop_strings=("</answer>",), min_p=0.1))
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    again = from_dict(Recipe, read_table(path))
    assert again == recipe
    assert again.grpo.stop_strings == ("</answer>",)  # a tuple again, not a list


@pytest.mark.parametrize("text, words", [
    ("[grpo]\nepsilonn = 1", r"grpo\.epsilonn.*did you mean 'epsilon'"),
    ("[grpo]\nuse_vllm = true", r"grpo\.use_vllm.*one engine"),
    ("[grp]\n", "grp.*did you mean 'grpo'"), ("seed = 1.5", "seed is 1.5, expected int"),
    ("seed = true", "seed is True"), ("[grpo]\nloss_type = 'x'", "grpo.loss_type.*'dapo'"),
    ("[mix]\na = 'b'", "mix.a"), ("sft = 1", "sft is 1"), ("[grpo]\nbeta = -1", "grpo: .*beta"),
    ("[grpo]\nmax_completion_length = 'x'", "grpo.max_completion_length is 'x'"),
    ("[grpo]\nmax_completion_length = [[1, 2]]", "grpo: .*max_completion_length must be"),
    ("[grpo]\nstop_strings = [1]", r"stop_strings\[0\]"), ("seed = ", "recipe.toml")])
def test_toml_errors_name_the_place(tmp_path, text, words):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        from_dict(Recipe, read_table(path))


def test_toml_takes_integers_for_floats():
    assert from_dict(Recipe, {"grpo": {"beta": 1, "epsilon_high": 2}}).grpo.epsilon_high == 2.0


def test_none_that_is_no_default_cannot_be_written():
    with pytest.raises(ConfigError, match="max_length"):
        to_toml(RewardConfig(max_length=None))


def test_learning_rate_schedules():
    args = GRPOConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate_at(args, s, 10) for s in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear = dataclasses.replace(args, lr_scheduler_type="linear", min_lr_rate=0.1)
    assert learning_rate_at(linear, 4, 10) == 1.0
    assert learning_rate_at(linear, 9, 10) == pytest.approx(0.1)
    cosine = GRPOConfig(learning_rate=1.0, lr_scheduler_type="cosine", min_lr_rate=0.1)
    rates = [learning_rate_at(cosine, s, 11) for s in range(11)]
    assert rates[0] == 1.0 and rates[10] == pytest.approx(0.1) and rates[5] == pytest.approx(0.55)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate_at(cosine, 0, 1) == 1.0


def test_data_order_is_a_permutation_per_epoch_and_a_function_of_position():
    whole = data_order(7, 3, 0, 21)
    for epoch in range(3):
        assert sorted(whole[7 * epoch:7 * epoch + 7]) == list(range(7))
    assert whole[:7] != whole[7:14]
    assert data_order(7, 3, 5, 6) == whole[5:11]
    assert data_order(7, 4, 0, 21) != whole
    assert data_order(3, 0, 2, 4, shuffle=False) == [2, 0, 1, 2]
