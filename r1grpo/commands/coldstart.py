"""coldstart.py - `r1grpo coldstart`: samples for the cold start, out to be edited by hand and back.

    --model FOLDER --data PROBLEMS --out DIR     DIR/candidates.jsonl: right and readable samples
        --set instruction=reflect                of a prompt that asks for reflection and verification
        --set examples=WORKED.jsonl shots=2      of a prompt with worked examples in front
        --set samples_of=RUN                     that a run, such as R1-Zero's, has drawn already
    --out DIR --edited MINE.jsonl                DIR/rows.jsonl: what came back, for `r1grpo sft`
                                                 DIR/figures.json: how many were edited, dropped
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..coldstart import (END_SHOT, IDS, TamperedError, candidates_of, choose_examples, match_samples, of_a_run,
                         take_back, with_examples)
from ..json_rows import open_text, read_lines
from ..rejection import Sieve
from ..rows import load_rows
from ..rundir import Manifest, read_jsonl
from ..safe_files import CheckpointError, write_atomic
from ..scoring import RewardFunction, Rewards
from ..toml import ConfigError
from ..work import Work
from .audit import samples_of
from .inputs import (Row, check_columns, open_rows, open_sampler, open_tokenizer, require, sampling_plan,
                     with_prompt_ids)
from .options import COLDSTART, MODEL, Options
from .reject import check_ranker, describe, draw_rows, open_correct, open_filters, open_rank
from .stage import fits, note_sandboxes, options_of, showing, working, write_rows

Drawn = tuple[list[Row], dict[str, Any], str | None]  # what is kept, counts, a text that ends answers
Draw = Callable[[Work], Drawn]

CANDIDATES, ROWS, FIGURES = "candidates.jsonl", "rows.jsonl", "figures.json"


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    flags.resume = flags.resume or flags.edited is not None  # what is taken back is of a run that is there
    options = options_of(COLDSTART, flags, "reward", *MODEL)
    require(options.inputs, "model", "data", "reward")
    return _sample(options, flags) if flags.edited is None else _take_back(options, flags)


# ---- out ----------------------------------------------------------------------------------------


def _sample(options: Options, flags: argparse.Namespace) -> int:
    inputs = options.inputs
    correct, filters = open_correct(inputs, options.args), open_filters(inputs.filters)
    tokenizer = open_tokenizer(inputs)
    rows = open_rows(inputs, tokenizer)
    check_columns(inputs, rows)
    check_ranker(inputs, rows)
    bare = next((i for i, row in enumerate(rows) if "prompt" not in row or "prompt_ids" not in row), None)
    if bare is not None:
        raise ValueError(f"{inputs.data}: row {bare} has no prompt of text that could be asked; it has "
                         f"{', '.join(rows[bare])}")
    ask = _of_a_run if inputs.samples_of is not None else _of_the_model
    draw = ask(options, flags, rows, tokenizer, correct)
    if draw is None:
        return 0
    also = [*(["best by score"] if inputs.ranker else []), *(f"passes {name}" for name in filters)]
    with working(options, flags.out, flags.resume) as work, showing(work, {"samples": len(rows)}):
        found, counts, end = draw(work)
        write_rows(flags.out / CANDIDATES, candidates_of(found, correct.__name__, also, end))
    print(describe(counts))
    print(f"{flags.out / CANDIDATES}\nedit a copy of it, then: r1grpo coldstart --out {flags.out} --edited COPY")
    return 0


def _of_the_model(options: Options, flags: argparse.Namespace, rows: Sequence[Row], tokenizer: Any,
                  correct: RewardFunction) -> Draw | None:
    """Samples of the model; None where only its memory plan was asked for."""
    inputs, args, end = options.inputs, options.args, None
    scaffold: dict[str, Any] = {} if inputs.instruction is None else {"instruction": inputs.instruction}
    shown: list[list[int]] = []
    if inputs.examples is not None:
        examples = _open_examples(inputs.examples)
        shown = [choose_examples(examples, row, inputs.shots, args.seed, i) for i, row in enumerate(rows)]
        chat = tokenizer.chat_template is not None if inputs.chat is None else inputs.chat
        if not chat:  # a base model goes on where the examples end
            end = END_SHOT
            inputs = dataclasses.replace(inputs, template=inputs.template or "{prompt}\nSolution:")
            args = dataclasses.replace(args, stop_strings=(*args.stop_strings, END_SHOT))
        plain = [{key: value for key, value in row.items() if key not in IDS} for row in rows]
        asked = with_prompt_ids([{**row, "prompt": with_examples(row["prompt"], [examples[k] for k in some])}
                                 for row, some in zip(plain, shown)], inputs, tokenizer)
        rows = [{**row, "prompt_ids": one["prompt_ids"]} for row, one in zip(plain, asked)]
    if not fits(flags, sampling_plan(inputs, args, rows)):
        return None
    rank, model = open_rank(inputs), open_sampler(inputs, tokenizer)

    def draw(work: Work) -> Drawn:
        found, counts = draw_rows(work, model, rows, args, tokenizer, correct, inputs, rank)
        for row in found:
            number = row["source"]["problem"]
            row["source"] |= scaffold | ({"examples": shown[number]} if shown else {})
        return found, counts, end

    return draw


def _open_examples(file: str) -> list[Row]:
    """Worked examples; a file of problems may have them as solutions."""
    examples = load_rows(file)
    print(examples.note)
    found = [{"prompt": row.get("prompt"), "completion": row.get("completion", row.get("solution"))}
             for row in examples]
    for i, row in enumerate(found):
        if not all(isinstance(text, str) and text.strip() for text in row.values()):
            raise ValueError(f"examples: {file} row {i} needs a 'prompt' and a 'completion' or 'solution', all text")
    return found


def _of_a_run(options: Options, flags: argparse.Namespace, rows: Sequence[Row], tokenizer: Any,
              correct: RewardFunction) -> Draw | None:
    """Samples that a run has drawn already: no weights are read, but those of a ranker."""
    inputs, run_folder = options.inputs, Path(options.inputs.samples_of)
    if inputs.examples is not None:
        raise ConfigError("samples_of and examples are two sources; give one")
    facts = Manifest.load(run_folder / "manifest.json").run
    matched = match_samples(rows, samples_of(run_folder))
    if not any(matched):
        raise ValueError(f"{run_folder} has no sample of a prompt of {inputs.data}")
    if flags.plan:
        print("nothing is sampled")
        return None
    rank, dropped = open_rank(inputs), Counter[str]()
    sieve = Sieve(open_filters(inputs.filters), None, rank, inputs.max_per_problem)
    source = {"run": run_folder.name, "model": Path(str(facts.get("model", ""))).name, "seed": facts["seed"]}

    def draw(work: Work) -> Drawn:
        def tell() -> None:
            work.safe_point()
            work.advance("samples", 1)

        note_sandboxes(work, Rewards(correct))
        found = list(of_a_run(rows, matched, correct, sieve, tokenizer, source, dropped, tell))
        sampled = sum(map(len, matched))
        return found, {"problems": len(rows), "kept": len(found), "sampled": sampled, "dropped": dropped}, None

    return draw


# ---- back ---------------------------------------------------------------------------------------


def _take_back(options: Options, flags: argparse.Namespace) -> int:
    inputs, path = options.inputs, flags.out / CANDIDATES
    if not path.is_file():
        raise CheckpointError(f"{flags.out} holds no {CANDIDATES} yet: r1grpo coldstart --out {flags.out} --resume",
                              path)
    with open_text(flags.edited) as stream:
        back = list(read_lines(stream, flags.edited.name))
    if not back:
        raise ValueError(f"{flags.edited}: there is no row")
    correct = open_correct(inputs, options.args)
    try:
        found = take_back(list(read_jsonl(path)), back, correct, open_tokenizer(inputs),
                          open_filters(inputs.filters))
    except TamperedError as error:
        raise ValueError(f"{path}: {error}; to have it again: r1grpo coldstart --out {flags.out} --resume") from None
    with working(options, flags.out, True) as work:
        note_sandboxes(work, Rewards(correct))
        write_rows(flags.out / ROWS, found.rows)
        write_atomic(flags.out / FIGURES, json.dumps(found.counts, indent=1).encode())
    counts = found.counts
    print(f"{len(found.rows):,} rows: {counts['as_sampled']:,} as sampled, {counts['edited']:,} edited and judged "
          f"again; {counts['dropped']:,} candidates dropped")
    print(flags.out / ROWS)
    return 0
