"""Errors about options, configurations and rows are short and named, whatever stands in the files."""

from __future__ import annotations

import json

import pytest

from r1grpo import GRPOConfig, ModelConfig, SFTConfig, load_rows
from r1grpo.brief import brief, brief_names
from r1grpo.commands.options import GRPO, read_options
from r1grpo.config import ConfigError
from r1grpo.recipe import read_recipe
from r1grpo.toml import from_dict, read_table

LONG, MANY = "x" * 1_000_000, list(range(100_000))


@pytest.mark.parametrize("value", [1, -2.5, "text", "it's", None, True, [1, 2], (1,), {"a": [1]}, 10**30])
def test_what_is_short_is_shown_as_it_is(value):
    assert brief(value) == repr(value)


@pytest.mark.parametrize("value", [LONG, LONG.encode(), MANY, [LONG] * 9, {LONG: LONG}, 10**4000, 10**9999,
                                   [[[[[MANY]]]]], set(MANY)], ids=lambda value: type(value).__name__)
def test_what_is_long_is_not(value):
    assert 2 < len(brief(value)) < 210


def test_names():
    assert brief_names([]) == "none" and brief_names("ab") == "a, b"
    assert brief_names(["a"] * 25).endswith("a, a and 5 more") and len(brief_names([LONG] * 99)) < 2200


FILES = {
    "a list for a number": (f"learning_rate = {MANY}", "learning_rate is [0, 1, 2"),
    "a long text for a number": (f'learning_rate = "{LONG}"', "learning_rate is 'xxx"),
    "a long text for a choice": (f'loss_type = "{LONG}"', "loss_type is 'xxx"),
    "a long key": (f"{LONG} = 1", "xxx"),
    "a long place": (f"[columns]\n{LONG} = 1", "columns"),
    "a list for a schedule": (f"max_completion_length = {MANY}", "max_completion_length"),
    "a long number": ("max_steps = " + "9" * 99_999, "4300 digits"),
    "deep arrays": ("beta = " + "[" * 99_999, "nested too deep"),
    "deep tables": ("beta = " + "{a=" * 99_999, "nested too deep"),
    "no UTF-8": ("beta = '\udcff'", "can't decode"),
    "no TOML": ("= " + LONG, "line 1"),
}


@pytest.mark.parametrize("case", sorted(FILES))
def test_files_of_options(case, tmp_path):
    text, words = FILES[case]
    file = tmp_path / "my.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    for read in (lambda: read_options(GRPO, file, [], {}), lambda: from_dict(GRPOConfig, read_table(file)),
                 lambda: read_recipe(file)):
        with pytest.raises(ConfigError) as caught:
            read()
        assert len(str(caught.value)) < 1200
        assert words in str(caught.value) or "unknown" in str(caught.value)  # not of this reader
    assert str(file) in str(caught.value)


def test_settings_are_as_short():
    for one in (f"learning_rate={LONG}", f"learning_rate={MANY}", f"{LONG}=1", LONG,
                "learning_rate=" + "[" * 99_999):
        with pytest.raises(ConfigError) as caught:
            read_options(GRPO, None, [one], {})
        assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("make", [
    lambda: GRPOConfig(loss_type=LONG), lambda: GRPOConfig(learning_rate=LONG),
    lambda: GRPOConfig(**{LONG: 1}), lambda: GRPOConfig(max_completion_length=MANY),
    lambda: GRPOConfig(report_to=LONG), lambda: SFTConfig.distill(LONG),
    lambda: ModelConfig.from_dict({"vocab_size": MANY}), lambda: ModelConfig.from_dict({"vocab_size": 10**4000}),
    lambda: ModelConfig.from_dict({"model_type": LONG}),
    lambda: ModelConfig.from_dict({"hidden_act": LONG}),
    lambda: ModelConfig.from_dict({"rms_norm_eps": 10**4000}),
    lambda: ModelConfig.from_dict({f"key {i}": i for i in MANY}),
    lambda: ModelConfig.from_dict({"eos_token_id": MANY, "vocab_size": 200_000}),
    lambda: ModelConfig.from_dict({"vocab_size": 9, "rope_scaling": {"rope_type": LONG}})])
def test_options_and_configurations(make):
    with pytest.raises(ValueError) as caught:
        make()
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("row", [
    {LONG: 1}, {"prompt": MANY}, {"question": "a", "answer": MANY}, {"messages": [LONG]},
    {str(i): 1 for i in MANY}, {"conversations": [{"from": LONG, "value": "a"}]}],
    ids=lambda row: min(row)[:20])
def test_rows(row, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="line 1|row") as caught:
        load_rows(file)
    assert len(str(caught.value)) < 1200
    file.write_text(f'{{"{LONG}": 1, "{LONG}": 1}}\n')
    with pytest.raises(ValueError, match="twice") as caught:
        load_rows(file)
    assert len(str(caught.value)) < 1200
