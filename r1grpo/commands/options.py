"""options.py - what a command was asked to do: preset, then FILE.toml, then --set, then flags.

    model = "Qwen2.5-0.5B"         own options of the command (a dataclass below)
    data = "gsm8k_train.jsonl"
    preset = "r1_zero"             named options of the trainer, which the other keys change
    learning_rate = 2e-6           options of the trainer (GRPOConfig, SFTConfig, EvalConfig)

One flat table: the keys of FILE.toml are those of --set key=value, whose value is TOML or, failing
that, text; "none" is no value where an option may have none. A key that neither half has is refused
with the nearest one that exists. What a run was given is written to its config.toml, where --resume
finds it and another --config may start from it. A resumed run may change what cannot change its
bits, nothing else.
Knows nothing about models or data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..brief import brief
from ..config import EvalConfig, GRPOConfig, JudgeConfig, SFTConfig
from ..config.checks import require
from ..config.training import FREE_OPTIONS, LENGTH_OPTIONS
from ..lora import LoraConfig
from ..toml import (ConfigError, from_dict, merge_tables, parse_toml, read_table, suggest,
                    table_to_toml, to_dict)

Table = dict[str, Any]

# where a run finds things may change between two of its processes: what it finds is compared
# (the dataset's fingerprint, the state's tensors)
_PLACES = {"model", "data", "eval_data", "teacher", "ranker", "examples", "samples_of"}


@dataclass
class DataInputs:
    """What every command on a data file takes."""

    data: str = ""
    layout: str | None = None  # of the data's columns; None: found by the first row
    columns: dict[str, str] = field(default_factory=dict)  # our name -> the file's
    split: str | None = None  # where data is a folder of files
    limit: int | None = None  # the first rows alone


@dataclass
class JudgeInputs(DataInputs):
    """And what a judge is asked: for preference pairs, or which responses are safe."""

    ask: Literal["pairs", "labels"] = "pairs"


@dataclass
class Inputs(DataInputs):
    """What every command on a model and a data file takes."""

    model: str = ""  # a folder of weights or of adapters, or an id of the hub
    revision: str | None = None  # branch, tag or commit of an id of the hub
    system: str | None = None  # a system message in front of every prompt
    instruction: str | None = None  # behind every question; or a name: reflect
    template: str | None = None  # of a text prompt, with {prompt} in it; or a name: zero
    chat: bool | None = None  # the model's chat template; None: where it has one
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda", "cuda/fast"] = "cpu"


@dataclass
class TrainInputs(Inputs):
    """And what must not be learned."""

    eval_data: tuple[str, ...] | None = None  # files; rows like theirs are dropped from data, and shown
    ngram: int = 10  # words in a row that make two rows alike; DeepSeek-R1's number


@dataclass
class RewardInputs(TrainInputs):
    """And what decides over a completion."""

    reward: tuple[str, ...] = ("accuracy",)  # names, or FILE.py:function
    reward_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # how they are made (rewards/named.py)


@dataclass
class AdapterInputs:
    """What else a training takes: low-rank adapters, then DIR/final holds them alone or, merged, a
    whole model."""

    lora: LoraConfig | None = None
    merge: bool = False


@dataclass
class SFTInputs(AdapterInputs, TrainInputs):
    """All of fine-tuning."""


@dataclass
class GRPOInputs(AdapterInputs, RewardInputs):
    """And what becomes of prompts longer than max_prompt_length."""

    audit: tuple[str, ...] = ()  # rewards by name that are asked about audit_share of the samples
    long_prompts: Literal["refuse", "drop"] = "refuse"


@dataclass
class EvalInputs(Inputs):
    """The same for a measurement."""

    reward: tuple[str, ...] = ("accuracy",)
    reward_options: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class RejectInputs(RewardInputs):
    """And what is kept of the samples."""

    max_per_problem: int = 1
    ranker: str | None = None  # folder of a reward model: the best by its score are kept
    filters: tuple[str, ...] = ()  # of readable.FILTERS, which samples must pass


@dataclass
class ColdStartInputs(RejectInputs):
    """And where the candidates come from."""

    filters: tuple[str, ...] = ("language", "paragraphs", "code", "repetition")
    examples: str | None = None  # file of worked ones (prompt, completion), shown before the question
    shots: int = 2  # how many of them
    samples_of: str | None = None  # folder of a run: its samples, instead of new ones

    def __post_init__(self) -> None:
        require(self, {"shots must be at least 1": self.shots >= 1})


@dataclass
class CurateInputs(RewardInputs):
    """And which problems are kept: by their pass rate, then so many of each type."""

    low: float = 0.2
    high: float = 0.625  # Light-R1's interval
    balance: str | None = None  # column of the types, such as task
    per_type: int | None = None  # rows of each at most; None: as many as the rarest has

    def __post_init__(self) -> None:
        require(self, {
            "low and high must be within 0 and 1, low not above high": 0 <= self.low <= self.high <= 1,
            "per_type must be at least 1": self.per_type is None or self.per_type >= 1,
            "per_type needs balance, the column of the types": self.per_type is None or bool(self.balance)})


@dataclass
class DistillInputs(AdapterInputs, RejectInputs):
    """And who is asked: without a teacher, data are rows that one has written."""

    teacher: str | None = None
    teacher_revision: str | None = None
    samples: int = 4  # of the teacher, a problem
    temperature: float = 1.0
    max_completion_length: int = 512


MODEL = ("model", "revision", "data", "layout", "dtype", "device")  # options that are flags too
ADAPTERS = ("lora", "merge")


@dataclass(frozen=True)
class Command:
    """The two halves of a command's options, its defaults and its presets."""

    name: str
    inputs: type[DataInputs]
    trainer: type
    presets: Mapping[str, Callable[..., Any]]
    defaults: Mapping[str, Any]
    free: frozenset[str] = frozenset()  # what a resumed run may have otherwise, beside FREE_OPTIONS

    def keys(self) -> list[str]:
        """The names of its options."""
        return [one.name for half in (self.inputs, self.trainer) for one in dataclasses.fields(half)
                if one.name != "output_dir"]

    def base(self, preset: str | None) -> Table:
        """The trainer's options before anything is changed."""
        if preset is None:
            return to_dict(self.trainer(**self.defaults))
        name = preset.removeprefix(f"{self.name}.")
        if name not in self.presets:
            raise ConfigError(f"preset {brief(preset)} is none of {', '.join(self.presets)}"
                              f"{suggest(name, self.presets)}")
        return to_dict(self.presets[name](**self.defaults))


@dataclass
class Options:
    """The checked options of one command."""

    command: Command
    inputs: Any
    args: Any
    preset: str | None = None

    def table(self) -> Table:
        """All of them, as in config.toml; the preset is spelled out."""
        table = {**to_dict(self.inputs), **to_dict(self.args)}
        return {key: value for key, value in table.items() if value != {}}

    def toml(self) -> bytes:
        """The text of config.toml."""
        title = f"# r1grpo {self.command.name} --config THIS --out DIR"
        note = f"; began as preset {self.preset}" if self.preset else ""
        return f"{title}{note}\n\n{table_to_toml(self.table())}".encode()

    def fixed(self) -> Table:
        """The options that a resumed run must share, as JSON would give them back."""
        free = FREE_OPTIONS | _PLACES | self.command.free
        if getattr(self.args, "lr_scheduler_type", "") == "constant":
            free |= LENGTH_OPTIONS
        table = {key: value for key, value in self.table().items() if key not in free}
        return json.loads(json.dumps({"command": self.command.name, **table}))

    def hash(self) -> str:
        """What tells two runs apart."""
        text = json.dumps(self.fixed(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_options(command: Command, file: Path | None, settings: Sequence[str],
                 flags: Mapping[str, Any], stored: Path | None = None) -> Options:
    """The options of a command line. stored: config.toml of the run that is resumed, under all
    others; a difference that would change its bits raises ConfigError."""
    before = read_table(stored) if stored else {}
    table = merge_tables(before, read_table(file) if file else {})
    for one in settings:
        table = merge_tables(table, _setting(one))
    table = merge_tables(table, {key: value for key, value in flags.items() if value is not None})
    options = _build(command, table)
    if stored:
        if changed := _changed(_build(command, before), options):
            raise ConfigError(f"{stored.parent} holds a run with other options: {changed}; leave them "
                              f"as they are, or choose another --out")
    return options


def differences(options: Options, stored: Path) -> str:
    """What of a stored config.toml is otherwise here; "" where nothing, or where it cannot be read."""
    try:
        return _changed(_build(options.command, read_table(stored)), options)
    except ConfigError:
        return ""


def _changed(before: Options, options: Options) -> str:
    then, now = _flat(before.fixed()), _flat(options.fixed())
    return "; ".join(f"{key} is {brief(then.get(key))} there, {brief(now.get(key))} here"
                     for key in sorted(then.keys() | now) if then.get(key) != now.get(key))


def _flat(table: Mapping[str, Any], where: str = "") -> Table:
    """A nested table with the keys that --set takes."""
    flat: Table = {}
    for key, value in table.items():
        flat |= _flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {where + key: value}
    return flat


def _build(command: Command, table: Mapping[str, Any]) -> Options:
    table = dict(table)
    preset = table.pop("preset", None)
    own, theirs = (typing.get_type_hints(one) for one in (command.inputs, command.trainer))
    if "output_dir" in table:
        raise ConfigError("output_dir is set by --out; leave it out")
    for key in table:
        if key not in own and key not in theirs:
            refusal = command.trainer.refusal(key)  # type: ignore[attr-defined]
            near = suggest(key, [*own, *theirs]) or f"; `r1grpo {command.name} --help` lists them"
            raise ConfigError(refusal if "not supported" in refusal
                              else f"unknown option {brief(key)}{near}")
    inputs = from_dict(command.inputs, {key: _placed(key, _read_as(own[key], value))
                                        for key, value in table.items() if key in own})
    args = from_dict(command.trainer, {
        **command.base(preset), **{key: _read_as(theirs[key], value)
                                   for key, value in table.items() if key in theirs}})
    if getattr(inputs, "merge", False) and inputs.lora is None:
        raise ConfigError("merge is for adapters, and none are trained: --lora R")
    return Options(command, inputs, args, preset)


def _read_as(hint: Any, value: Any) -> Any:
    """A single value for an option that takes several; none for one that may have none."""
    optional = type(None) in typing.get_args(hint)
    if optional and value == "none":
        return None
    kinds = [one for one in typing.get_args(hint) if one is not type(None)] if optional else [hint]
    several = all(typing.get_origin(one) is tuple for one in kinds)
    return [value] if several and not isinstance(value, list) else value


def _placed(key: str, value: Any) -> Any:
    """Where a run finds things, whole: it may be resumed from another directory."""
    if key in _PLACES and isinstance(value, list):
        return [_placed(key, one) for one in value]
    if key in _PLACES and value and isinstance(value, str) and Path(value).exists():
        return str(Path(value).absolute())
    if key in ("reward", "audit", "filters") and isinstance(value, list):  # "accuracy,format" is two
        names = [name for one in value for name in (one.split(",") if isinstance(one, str) else [one])]
        return [_placed_function(one) for one in names]
    if key == "reward_options" and isinstance(value, dict):
        return {name: {**table, "correct": _placed_function(table["correct"])}
                if isinstance(table, dict) and "correct" in table else table for name, table in value.items()}
    return value


def _placed_function(name: Any) -> Any:
    """FILE.py:function with its file's whole path; any other name as it is."""
    file, colon, function = str(name).rpartition(":")
    return f"{Path(file).absolute()}:{function}" if colon and file.endswith(".py") else name


def _setting(text: str) -> Table:
    """key=value as a table; dots in the key go down."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {brief(text)} is not of the form key=value")
    try:
        found: Any = parse_toml(f"value = {value}", "--set")["value"]
    except ConfigError:
        found = value
    for part in reversed(key.strip().split(".")):
        found = {part: found}
    return found


def with_output_dir(args: Any, path: Path) -> Any:
    """A trainer's options for a run in `path`, whose states work.py saves."""
    return dataclasses.replace(args, output_dir=str(path), save_steps=0)


# ---- the commands -------------------------------------------------------------------------------

_GRPO_PRESETS = {name: getattr(GRPOConfig, name) for name in (
    "r1_zero", "r1_stage1", "r1_stage2", "deepseekmath", "dapo", "dr_grpo", "gspo", "trl")}
_STUDENTS = {name: partial(SFTConfig.distill, name) for name in (
    "qwen_1_5b", "qwen_7b", "qwen_14b", "qwen_32b", "llama_8b", "llama_70b")}

GRPO = Command("grpo", GRPOInputs, GRPOConfig, _GRPO_PRESETS, {"save_steps": 10})
SFT = Command("sft", SFTInputs, SFTConfig, {"r1": SFTConfig.r1}, {"save_steps": 50})
DISTILL = Command("distill", DistillInputs, SFTConfig, _STUDENTS, {"save_steps": 50})
REJECT = Command("reject", RejectInputs, EvalConfig, {}, {"batch_prompts": 16})
COLDSTART = Command("coldstart", ColdStartInputs, EvalConfig, {}, {"batch_prompts": 16})
CURATE = Command("curate", CurateInputs, EvalConfig, {}, {"batch_prompts": 16, "k": 8},
                 frozenset({"low", "high", "balance", "per_type"}))
JUDGE = Command("judge", JudgeInputs, JudgeConfig, {}, {},
                frozenset({"url", "key_env", "threads", "timeout", "retries", "deadline", "cache"}))
EVAL = Command("eval", EvalInputs, EvalConfig, {}, {"batch_prompts": 16})
