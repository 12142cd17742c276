"""inputs.py - what a command works with: model folder, tokenizer, rows with prompts, rewards.

    tokenizer of the folder, rows of the file    text and columns, no weights read yet
    prompts                                      through the chat template where there is one
    rewards                                      names, or FILE.py:function of the user's

Everything that can be wrong with a request is found here, before weights are loaded and before a
file is written. Knows nothing about trainers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..brief import brief, brief_text
from ..config import EvalConfig
from ..contamination import Decontamination, decontaminate
from ..hf_tokenizer import Tokenizer
from ..layouts import as_messages
from ..load_folder import ModelFolder
from ..lora import LoraConfig
from ..model import Model
from ..model_config import ModelConfig
from ..model_source import ModelSource, find_model
from ..plan import MemoryPlan, plan_memory
from ..rewards import Pooled, reference_problem
from ..rewards.named import COLUMNS, MAKERS, named_reward
from ..rollout import fit_vocabulary
from ..rows import load_rows
from ..scoring import RewardFunction
from ..toml import ConfigError, suggest
from ..trainer import prompt_ids_of
from ..verifiers.code_tests import read_tests
from .options import DataInputs, Inputs, TrainInputs

Row = dict[str, Any]

# prompts of base models, which know no chat; {prompt} is the question. Our wording of what
# DeepSeek-R1's table 1 asks for (arXiv 2501.12948v2)
TEMPLATES = {
    "zero": "A user asks and an assistant answers. The assistant first works the problem out in "
            "its mind, between <think> and </think>, then gives the answer between <answer> and "
            "</answer>.\nUser: {prompt}\nAssistant:",
}

# by name behind a question: reflection and verification, as prompts of DeepSeek-R1's cold start ask for
# them (arXiv 2501.12948v1, 2.3.1); our wording
INSTRUCTIONS = {
    "reflect": "Think about it at length between <think> and </think>: try an approach, check each step, go back "
               "where you find a mistake, and verify the result in another way. Behind </think> summarise the "
               r"solution in a few sentences, with the final answer in \boxed{}.",
}


def require(inputs: Any, *names: str) -> None:
    """Refuse a request that lacks one of the options."""
    for name in names:
        if not getattr(inputs, name):
            raise ConfigError(f"--{name} is missing" if name in ("model", "data")
                              else f"{name} is missing: --set {name}=...")


def source_of(inputs: Inputs) -> ModelSource:
    """The folders of the model: of a path, or of an id of the hub."""
    return find_model(inputs.model, inputs.revision)


def open_tokenizer(inputs: Inputs) -> Tokenizer:
    """The tokenizer of the model, whose architecture is checked on the way."""
    tokenizer = Tokenizer.from_pretrained(source_of(inputs).tokenizer)
    tokenizer.check_fits(open_config(inputs))
    return tokenizer


def open_config(inputs: Inputs) -> ModelConfig:
    """The architecture; the headers of all its files are checked, no weight is read. A reward model is
    refused: every command samples or teaches the model."""
    with ModelFolder(source_of(inputs).weights) as folder:
        if folder.config.score_head:
            raise ConfigError(f"{inputs.model} is a reward model: it scores text and writes none")
        return folder.config


def adapters_of(inputs: Inputs) -> LoraConfig | None:
    """The adapters that the model will have: those of its folder, or new ones."""
    found, wanted = source_of(inputs).adapter, getattr(inputs, "lora", None)
    if found and wanted:
        raise ConfigError(f"lora: {inputs.model} holds adapters already, which are trained as they are")
    return found.lora if found else wanted


def open_model(inputs: Inputs, tokenizer: Tokenizer, seed: int = 0) -> Model:
    """The weights to be trained, with new adapters where the options ask for them; ids that the
    tokenizer has not are never sampled."""
    model = Model.from_pretrained(inputs.model, inputs.device, inputs.dtype, revision=inputs.revision,
                                  lora=getattr(inputs, "lora", None), seed=seed)
    fit_vocabulary(model, tokenizer)
    return model


def open_sampler(inputs: Inputs, tokenizer: Tokenizer) -> Model:
    """The same of a model that is only asked: frozen, which takes less memory and changes no bit."""
    model = Model.from_pretrained(inputs.model, inputs.device, inputs.dtype, revision=inputs.revision,
                                  frozen=True)
    fit_vocabulary(model, tokenizer)
    return model


def sampling_plan(inputs: Inputs, args: EvalConfig, rows: Sequence[Row]) -> MemoryPlan:
    """What sampling these problems takes, batch_prompts at a time."""
    bare = next((i for i, row in enumerate(rows) if "prompt_ids" not in row), None)
    if bare is not None:
        raise ValueError(f"{inputs.data}: row {bare} is a whole conversation, and only a prompt can be sampled; "
                         f"it has {', '.join(rows[bare])}")
    return plan_memory(open_config(inputs), dtype=inputs.dtype, frozen=True, lora=adapters_of(inputs),
                       device=inputs.device, prompts=min(args.batch_prompts, len(rows)),
                       num_generations=args.k,
                       prompt_length=max(len(row["prompt_ids"]) for row in rows),
                       max_new_tokens=args.max_completion_length,
                       speculative=args.speculative)


def read_rows(inputs: DataInputs) -> list[Row]:
    """All rows of the data file; says what they are."""
    rows = load_rows(inputs.data, inputs.layout, inputs.columns, inputs.split, inputs.limit)
    print(rows.note)
    return rows


def stand_in_eval_data(rows: Sequence[Row], inputs: TrainInputs) -> Decontamination:
    """Which rows stand in the files of eval_data, or twice; says so."""
    held_out = []
    for file in inputs.eval_data or ():
        held_out.append(load_rows(file))
        print(held_out[-1].note)
    report = decontaminate(rows, [row for one in held_out for row in one], inputs.ngram)[1]
    print(report)
    return report


def open_rows(inputs: Inputs, tokenizer: Tokenizer) -> list[Row]:
    """The rows of the data file, without those that stand in eval_data, with the ids of their
    prompts; says what they are."""
    rows = read_rows(inputs)
    if isinstance(inputs, TrainInputs) and inputs.eval_data:
        gone = {one.row for one in stand_in_eval_data(rows, inputs).dropped}
        rows = [row for i, row in enumerate(rows) if i not in gone]
        if not rows:
            raise ValueError(f"{inputs.data}: no row is left that eval_data does not hold")
    return with_prompt_ids(rows, inputs, tokenizer)


def tokenizer_mark(inputs: Inputs) -> str:
    """What tells two tokenizers apart: rows that hold ids name theirs in a column."""
    content = json.loads((source_of(inputs).tokenizer / "tokenizer.json").read_bytes())
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def with_prompt_ids(rows: Sequence[Row], inputs: Inputs, tokenizer: Tokenizer) -> list[Row]:
    """Rows with prompt_ids, the prompt as the model will see it: a text goes through the chat
    template (with system and instruction) or through `template`; the column prompt stays what the
    file has. Ids that another model's tokenizer made are dropped. Rows without a prompt (whole
    conversations) stay as they are, those with a completion get messages for a prompt."""
    chat = tokenizer.chat_template is not None if inputs.chat is None else inputs.chat
    if chat and inputs.template is not None:
        raise ConfigError("template is for models without a chat template; set system or "
                          "instruction, or chat=false")
    if not chat and inputs.system is not None:
        raise ConfigError("system needs a chat template, which this model has not; set template")
    template = TEMPLATES.get(inputs.template or "", inputs.template) or "{prompt}"
    if "{prompt}" not in template:
        raise ConfigError(f"template {brief(template)} has no {{prompt}}{suggest(template, TEMPLATES)}")
    given = inputs.instruction
    instruction = INSTRUCTIONS.get(given or "", given)
    if given and given not in INSTRUCTIONS and (near := suggest(given, INSTRUCTIONS)):
        raise ConfigError(f"instruction {brief(given)} is neither a sentence nor of {', '.join(INSTRUCTIONS)}{near}")
    mark, done = tokenizer_mark(inputs), []
    for i, row in enumerate(rows):
        if row.get("tokenizer", mark) != mark:
            row = {key: value for key, value in row.items()
                   if key not in ("prompt_ids", "completion_ids", "tokenizer")}
        if "prompt" not in row or "prompt_ids" in row:
            done.append(row)
            continue
        if chat:
            [shown] = as_messages([row], inputs.system, instruction)
            if "completion" in row:  # what the template makes of both is sft.py's business
                done.append(shown)
                continue
        elif isinstance(row["prompt"], str):
            question = row["prompt"] if instruction is None else f"{row['prompt']}\n\n{instruction}"
            shown = {"prompt": template.replace("{prompt}", question)}
        else:
            raise ConfigError(f"{inputs.data}: the prompts are messages, and the model has no chat "
                              f"template")
        done.append({**row, "prompt_ids": prompt_ids_of(shown, tokenizer,
                                                        f"{inputs.data} row {i}")})
    return done


# ---- rewards ------------------------------------------------------------------------------------


def open_rewards(names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None,
                 longest: int | None = None) -> list[RewardFunction]:
    """Reward functions by name, with their options, or FILE.py:function; such a file is the user's code
    and is run. longest: tokens of the longest completion (rewards/named.py)."""
    for name in options or ():
        if name not in names:
            raise ConfigError(f"reward_options.{brief_text(name)}: the rewards are "
                              f"{', '.join(names)}{suggest(name, names)}")
    def find(other: str) -> Any:
        found = _reward(other)
        return found.__name__ if other in names else found
    return [_reward(name, (options or {}).get(name, {}), longest, find) for name in names]


def check_columns(inputs: Any, rows: Sequence[Row]) -> None:
    """Refuse rows that a named reward could say nothing about, or whose answers cannot be right; what is
    right may be another's word."""
    options = inputs.reward_options
    decides = {name: options.get(name, {}).get("correct", name) for name in inputs.reward}
    for name, decider in decides.items():
        wanted = COLUMNS.get(decider, ())
        if "answer" in wanted and any(row.get("task") == "equation" for row in rows):
            continue  # which have numbers and target; check_answers
        if wanted and not any(row.get(one) is not None for row in rows for one in wanted):
            raise ValueError(f"{inputs.data}: reward {name!r} needs a column "
                             f"{' or '.join(map(repr, wanted))}; the rows have "
                             f"{', '.join(map(repr, rows[0]))}")
    if any("answer" in COLUMNS.get(one, ()) for one in decides.values()):
        check_answers(rows, str(inputs.data))
    if "code" in decides.values():
        check_tests(rows, str(inputs.data), options.get("code", {}).get("code_language", "python"))


def check_tests(rows: Sequence[Row], name: str, language: str) -> None:
    """Refuse rows whose column tests is no list of tests that a program of a language could take."""
    for i, row in enumerate(rows):
        if row.get("tests") is not None:
            try:
                read_tests(row["tests"], language)
            except ValueError as error:
                raise ValueError(f"{name}: row {i}: {error}") from None


def check_answers(rows: Sequence[Row], name: str) -> None:
    """Refuse rows whose reference no completion could match, by the rule of each."""
    found = [(i, why) for i, row in enumerate(rows) if (why := reference_problem(row))]
    if found:
        shown = "; ".join(f"row {i} ({brief(rows[i].get('answer'))}): {why}" for i, why in found[:5])
        raise ValueError(f"{name}: {len(found)} of {len(rows)} answers cannot be checked: {shown}"
                         f"{'; ...' if len(found) > 5 else ''}")


def _reward(name: str, options: Mapping[str, Any] = MappingProxyType({}), longest: int | None = None,
            find: Callable[[str], Any] | None = None) -> RewardFunction:
    if name in MAKERS:
        return named_reward(name, options, longest, find or _reward)
    if options:
        raise ConfigError(f"reward_options.{name!r}: a function of a file takes none")
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ConfigError(f"reward {brief(name)} is none of {', '.join(MAKERS)}, nor of the form "
                          f"FILE.py:function{suggest(name, MAKERS)}")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"reward {brief(name)}: there is no file {path}")
    # the name is of the file's content, so that no other module is met under it
    key = f"r1grpo_reward_{hashlib.blake2b(path.read_bytes(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec and spec.loader  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"reward {name!r}: {path} raises {type(error).__name__}: {error}"
                          ) from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [one for one, value in vars(module).items()
                 if callable(value) and not one.startswith("_")]
        raise ConfigError(f"reward {name!r}: {path} has no function {function!r}"
                          f"{suggest(function, known)}; it has {', '.join(known) or 'none'}")
    if isinstance(found, Pooled):
        found.import_name = f"{path.resolve()}:{function}"  # no worker knows the key
    return found
