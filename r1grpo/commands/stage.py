"""stage.py - what the commands that write a directory share: checks, safe points, DIR/final.

    DIR/config.toml         every option (options.py); --resume reads it
    DIR/manifest.json       who ran what
    DIR/metrics.jsonl       one line an update
    DIR/completions.jsonl   completions of each rollout, with rewards
    DIR/verdicts.jsonl      every verdict, durable before the update that uses it
    DIR/samples.jsonl       what they are of (r1grpo audit)
    DIR/work/               states to go on from; may be removed when the run is done
    DIR/final/              the model and its tokenizer, as transformers and vLLM load them; of a
                            training with adapters those alone, as PEFT does, unless they are merged

A command checks its request, reads text, plans memory, loads weights, makes its trainer and has it
try the rewards; only then does it write. Ctrl-C stops at the next safe point and names the command
that goes on, to the same bits. Knows nothing about what is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..algebra import sft_algebra, show
from ..checkpoint import load_newest
from ..monitor import Progress
from ..plan import MICRO_TOKENS, MemoryPlan, check_fits
from ..rundir import RunDir, check_command, check_run_dir
from ..safe_files import CheckpointError, write_atomic
from ..scoring import Rewards
from ..sft import SFTTrainer
from ..toml import ConfigError
from ..trainer import Trainer
from ..verifiers.sandbox import try_level
from ..work import CONFIG, Meter, StopRequest, Work, run_facts, sequences_a_step
from .options import EVAL, Command, Options, differences, read_options

Row = dict[str, Any]
FINAL = "final"
_SHOWN = 64  # completions of a rollout that go to completions.jsonl: whole groups, at least one


def options_of(command: Command, flags: argparse.Namespace, *names: str) -> Options:
    """The options of a command line, its directory checked; names: flags that are options. A run
    that is resumed or checked brings its own."""
    out: Path | None = flags.out
    again = flags.resume or getattr(flags, "check", False)
    if out is None and (again or not flags.plan and command is not EVAL):
        raise ConfigError("--out is missing: the directory of the run")
    if again and not (out / CONFIG).is_file():  # type: ignore[operator]
        raise CheckpointError(f"{out} holds no run: {CONFIG} is missing", out or "")
    if out and again:
        check_command(out, f"r1grpo {command.name}")
    given = {name: getattr(flags, name) for name in names}
    options = read_options(command, flags.config, flags.set, given,
                           out / CONFIG if out and again else None)
    if out and not flags.plan and not getattr(flags, "check", False):
        check_run_dir(out, options.hash(), flags.resume, f"r1grpo {command.name}",
                      differences(options, out / CONFIG))
    return options


@contextlib.contextmanager
def working(options: Options, out: Path, resumed: bool, facts: Mapping[str, Any] | None = None
            ) -> Iterator[Work]:
    """The directory of a run in work; when the block ends well the run is finished. facts: what its
    manifest says of it; None: those of a run with a model."""
    command = f"r1grpo {options.command.name}"
    if facts is None:
        inputs = options.inputs
        facts = {**run_facts(options.args.seed, inputs.dtype, inputs.device), "model": inputs.model}
    with RunDir(out, options.hash(), facts, resumed, command) as rundir, StopRequest() as stop:
        work = Work(rundir, stop, resumed, f"{command} --out {out} --resume")
        write_atomic(out / CONFIG, options.toml())
        yield work
        rundir.finish()


def note_sandboxes(work: Work, rewards: Rewards) -> None:
    """Say, and write into the manifest, what holds the programs that rewards run."""
    held = {name: f"{level} ({try_level(level)[0]})" for name, level in rewards.sandboxes.items()}
    for name, words in held.items():
        print(f"sandbox of {name}: {words}")
    if held:
        work.rundir.manifest.run["sandbox"] = held
        work.rundir.manifest.save()


@contextlib.contextmanager
def showing(work: Work, phases: Mapping[str, int], args: Any = None) -> Iterator[None]:
    """A bar over the sequences of some phases; args: options that may say to leave it out."""
    with Progress(sum(phases.values()), next(iter(phases)), file=sys.stderr,
                  quiet=getattr(args, "disable_tqdm", False)) as bar:
        work.meter = Meter(dict(phases), bar)
        yield


def planned(trainer: Trainer) -> int:
    """The sequences of a whole training, for the bar."""
    return sequences_a_step(trainer) * trainer.total_steps


def warn_of_size(takes: int, there: int, what: str, option: str) -> None:
    """Say where a batch, of a preset perhaps, is larger than all the data."""
    if takes > there:
        warnings.warn(f"{what} takes {takes:,} and there are {there:,}: each is in it "
                      f"{takes / there:.3g} times; for fewer: --set {option}=...", stacklevel=2)


def show_sft(trainer: SFTTrainer) -> str:
    """What the batch options of an SFT mean."""
    warn_of_size(trainer.args.per_device_train_batch_size, len(trainer.bins), "an update of " + (
        "bins" if trainer.args.packing else "rows"), "per_device_train_batch_size")
    found = f"{trainer.dropped:,} rows dropped, {trainer.shortened:,} cut\n" \
        if trainer.dropped or trainer.shortened else ""
    lengths = [len(one) for one in trainer.examples]
    return found + show(sft_algebra(trainer.args, lengths, len(trainer.bins), trainer.total_steps,
                                    trainer.args.micro_batch_tokens or MICRO_TOKENS))


def fits(flags: argparse.Namespace, plan: MemoryPlan) -> bool:
    """Whether to go on: --plan shows the plan and stops; what cannot fit raises with its table."""
    if flags.plan:
        print(plan)
        return False
    check_fits(plan)
    return True


def train(work: Work, phase: str, trainer: Trainer, save_steps: int, merge: bool) -> None:
    """Run a trainer to its end and write DIR/final, whole or not at all: the model, or where it has
    adapters that are not to be merged those alone. The tokenizer's files are those of the folder that
    the model was loaded from."""
    group = getattr(trainer.args, "num_generations", _SHOWN)
    work.shown_groups = max(1, _SHOWN // group)
    folder = work.path / "work" / "train"
    finished = work.rundir.manifest.run.get("finished", False)
    if finished and not (folder.exists() and load_newest(folder)):
        return  # its states were removed; there is nothing to go on from
    step = work.run_trainer(phase, trainer, folder, save_steps or sys.maxsize)
    if trainer.model.lora is not None and not merge:
        trainer.model.save_adapter(work.path / FINAL)
    else:
        trainer.model.save_pretrained(work.path / FINAL)
    work.rundir.manifest.add(FINAL, None, step, folder_hash(work.path / FINAL))


def folder_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def in_chunks(work: Work, phase: str, rows: Sequence[Row], size: int,
              make: Callable[[int, Sequence[Row]], Row]) -> list[Row]:
    """make(first, part) of every `size` rows, from DIR/work/PHASE where it was done already."""
    folder = work.path / "work" / phase
    folder.mkdir(exist_ok=True)
    found = []
    with work.ledger.timing(phase):
        for first in range(0, len(rows), size):
            path, part = folder / f"{first:08d}.json", rows[first:first + size]
            done = path.exists()
            if not done:
                work.safe_point()
                text = json.dumps(make(first, part), ensure_ascii=False, allow_nan=False)
                write_atomic(path, text.encode())
            found.append(json.loads(path.read_bytes()))
            if work.meter:
                work.meter.advance(phase, len(part), skipped=done)
    work.safe_point()
    return found


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """JSON lines, whole or not at all."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(path, "".join(lines).encode())
