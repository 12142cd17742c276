"""work.py - a run directory in work: safe points, the ledger, the bar, the durable training loop.

    DIR/work/PHASE/            the state of a trainer every few updates
    DIR/work/ledger.json       tokens, seconds and log-prob gaps by phase
    (manifest, logs and checkpoints: rundir.py)

A phase is data to be made or a trainer to be run. One that was finished is found on disk; one that
was not goes on from its newest state. Everything in it is a function of its options, so both end in
the same bits. A request to stop is met between two updates or batches, after the state has been
saved. No decision reads the clock; seconds are for the eye. Knows nothing about which phases there
are: run.py has those of the pipeline, commands/ those of one command.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from .checkpoint import load_newest, prune_checkpoints, save_checkpoint, step_name
from .config import EvalConfig
from .console import report
from .device import get_device
from .evaluate import evaluate
from .grpo import GRPOTrainer
from .model import Model
from .monitor import Monitor, Progress, mean
from .rewards import language_shares
from .rundir import RunDir
from .safe_files import remove_stray_temps, write_atomic
from .tasks import reflection_count
from .trainer import Trainer

Row = dict[str, Any]
Rows = list[Row]

CONFIG = "config.toml"


def run_facts(seed: int, dtype: str, device_name: str = "cpu") -> dict[str, Any]:
    """What a manifest says of the process that makes a run."""
    from . import __version__

    device = get_device(device_name)
    return {"version": __version__, "seed": seed, "dtype": dtype, "tier": device.tier,
            "threads": device.threads}


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and did, between two updates; the message says how to go on."""


class StopRequest:
    """SIGINT (Ctrl-C) and SIGTERM, noted while the block runs and met at the next safe point. The
    second one does not wait: nothing is lost but the updates since the last saved state."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # the only one that may
            self._before = {number: signal.signal(number, self._note)
                            for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Ledger:
    """What each phase took and measured, kept in a file. Only seconds may differ between runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        stored = json.loads(path.read_bytes()) if path.exists() else {}
        self.wall_seconds: float = stored.get("wall_seconds", 0.0)  # of all processes of the run
        self.phases: dict[str, dict[str, Any]] = stored.get("phases", {})
        self._phase, self._since = "", time.monotonic()

    @contextlib.contextmanager
    def timing(self, phase: str) -> Iterator[dict[str, Any]]:
        """Add the seconds of the block to a phase; gives the phase's entry to write figures in."""
        self._tick()
        entry = self.phases.setdefault(phase, {"seconds": 0.0})
        self._phase = phase
        try:
            yield entry
        finally:
            self.save()
            self._phase = ""

    def save(self) -> None:
        """Write the file, with the seconds up to now."""
        self._tick()
        content = {"wall_seconds": self.wall_seconds, "phases": self.phases}
        write_atomic(self.path, json.dumps(content, indent=1, allow_nan=False).encode())

    def _tick(self) -> None:
        now = time.monotonic()
        self.wall_seconds += now - self._since
        if self._phase:
            self.phases[self._phase]["seconds"] += now - self._since
        self._since = now

    def total(self, key: str, *names: str) -> Any:
        """Sum of a figure over some phases, or the phases of some stages without their evaluation;
        over everything if none is named."""
        return sum(entry.get(key, 0) for phase, entry in self.phases.items() if not names
                   or phase in names or (phase.partition("/")[0] in names
                                         and not phase.endswith("/evaluation")))

    def cost(self, *names: str) -> dict[str, float]:
        """Tokens and seconds of phases or stages."""
        return {key: self.total(key, *names)
                for key in ("loss_tokens", "processed_tokens", "sampled_tokens", "seconds")}


class Meter:
    """One progress bar over all phases. `plan` says how many sequences each samples or trains on;
    where the plan was a guess (how many samples are kept), a finished phase counts as planned."""

    def __init__(self, plan: dict[str, int], progress: Progress) -> None:
        self.plan, self.progress, self._ends = plan, progress, {}
        total = 0
        for phase, sequences in plan.items():
            total += sequences
            self._ends[phase] = total

    def advance(self, phase: str, sequences: int, skipped: bool = False, **figures: float) -> None:
        """Move on within a phase; skipped: done before this process, so it tells nothing of its
        pace."""
        sequences = max(0, min(sequences, self._ends[phase] - self.progress.done))
        self.progress.describe(phase)
        if skipped:
            self.progress.skip(sequences)
        else:
            self.progress.update(sequences, **figures)

    def finish(self, phase: str, skipped: bool = False) -> None:
        """Move on to the end of a phase."""
        left = self._ends[phase] - self.progress.done
        if left > 0:
            self.advance(phase, left, skipped)


class Selection:
    """Which state of an RL phase becomes its checkpoint: the one with the most reward on validation
    problems, the last of equals, among those after `first` updates (our choice). `worth` has the
    figures that make up the reward, with the weights that the stage itself trains with. It looks
    every `every` updates and, where states can be chosen, every `then`."""

    def __init__(self, problems: Rows, args: EvalConfig, worth: Mapping[str, float], every: int,
                 tokenizer: Any, first: int = 0, then: int | None = None) -> None:
        self.problems, self.args, self.every, self.tokenizer = problems, args, every, tokenizer
        self.worth, self.first, self.then = dict(worth), first, then or every
        self.step, self.reward = 0, -1.0
        self.figures: dict[str, float] = {}  # of the chosen state, as those of every look
        self.sampled_tokens = 0  # of all looks
        self.weights: dict[str, np.ndarray] = {}

    def look(self, model: Model, step: int, last: bool) -> dict[str, float] | None:
        """Measure where it is time to; returns the reward and its parts then."""
        if step % (self.then if step > self.first else self.every) and not last:
            return None
        found = evaluate(model, self.problems, self.args, self.tokenizer)
        self.sampled_tokens += sum(len(one["completion_ids"]) for one in found.samples)
        parts = {name: found.figures[name] for name in self.worth}
        reward = math.fsum(weight * parts[name] for name, weight in self.worth.items())
        figures = {"reward": reward, **parts}
        if step > self.first and reward >= self.reward:
            self.step, self.reward, self.figures = step, reward, figures
            self.weights = model.state_dict()
        return figures


class Work:
    """A locked run directory and what is going on in it. command: what resumes it, as typed."""

    def __init__(self, rundir: RunDir, stop: StopRequest, resumed: bool, command: str) -> None:
        self.rundir, self.stop, self.resumed, self.command = rundir, stop, resumed, command
        self.path = rundir.path
        (self.path / "work").mkdir(exist_ok=True)
        remove_stray_temps(self.path / "work")
        self.ledger = Ledger(self.path / "work" / "ledger.json")
        self.meter: Meter | None = None
        self.shown_groups = 1  # groups of each rollout that go to completions.jsonl

    def safe_point(self) -> None:
        """Everything worth keeping is on disk: stop here if asked to."""
        if self.stop.requested:
            self.rundir.commit()
            raise Stopped(f"stopped; to go on: {self.command}")

    def advance(self, phase: str, sequences: int, **figures: float) -> None:
        """Move the bar on within a phase."""
        if self.meter:
            self.meter.advance(phase, sequences, **figures)

    def finish(self, phase: str, skipped: bool = False) -> None:
        """Move the bar to the end of a phase."""
        if self.meter:
            self.meter.finish(phase, skipped)

    # ---- training ----

    def run_trainer(self, phase: str, trainer: Trainer, folder: Path, save_steps: int,
                    selection: Selection | None = None) -> int:
        """Run a trainer to its end, or on from its newest state in `folder`; returns the step of
        the weights that its model holds then (the selected ones where there is a selection)."""
        total = trainer.total_steps
        self.rundir.pin(trainer.model.device.pins)
        monitor = Monitor(phase, self.rundir.metrics.append)
        self._go_on(phase, folder, trainer, monitor, selection)
        sequences = sequences_a_step(trainer)
        self._advance_skipped(phase, sequences * trainer.step)
        with self.ledger.timing(phase) as entry:
            saved = trainer.step
            for metrics in trainer:
                step, last = trainer.step, trainer.step == total
                row = {key: value for key, value in metrics.items() if key != "step"}
                if isinstance(trainer, GRPOTrainer):
                    row |= self._look_at_rollout(phase, trainer)
                if selection and (looked := selection.look(trainer.model, step, last)):
                    row |= {f"eval/{name}": value for name, value in looked.items()}
                monitor.log_step(step, row)
                shown = {key: row[key] for key in ("reward", "loss") if key in row}
                self.advance(phase, sequences, peak_share=metrics["peak_share"],
                             **dict(islice(shown.items(), 1)))
                if self.meter:
                    self.meter.progress.write(report(trainer, metrics))
                if last or step % save_steps == 0 or self.stop.requested:
                    self._save(folder, trainer, monitor, selection)
                    saved = step
                if saved == step:
                    self.safe_point()
            entry |= _figures(trainer, selection)
        self.finish(phase)
        if selection is None:
            return trainer.step
        trainer.model.load_state_dict(selection.weights)
        return selection.step

    def _go_on(self, phase: str, folder: Path, trainer: Trainer, monitor: Monitor,
               selection: Selection | None) -> None:
        """Load the newest state of a phase, if there is one, and cut the logs back to it."""
        state = None
        if folder.exists():
            remove_stray_temps(folder)
            state = load_newest(folder)
        if state is not None:
            best = {k.removeprefix("best/"): v for k, v in state.arrays.items()
                    if k.startswith("best/")}
            arrays = {k: v for k, v in state.arrays.items() if not k.startswith("best/")}
            trainer.load_state_dict({"arrays": arrays, "meta": state.meta["trainer"]})
            monitor.load_state_dict(state.meta["monitor"])
            if selection:
                selection.step, selection.figures, selection.sampled_tokens = state.meta["best"]
                selection.reward = selection.figures.get("reward", selection.reward)
                selection.weights = best
        elif self.resumed and isinstance(trainer, GRPOTrainer):
            trainer.verdicts.load()  # of updates behind which no state was saved
        if self.resumed:
            self.rundir.metrics.truncate_to(trainer.step, phase)
            self.rundir.completions.truncate_to(trainer.step, phase)

    def _save(self, folder: Path, trainer: Trainer, monitor: Monitor,
              selection: Selection | None) -> None:
        """Logs first, then the state that they belong to."""
        self.rundir.commit()
        state = trainer.state_dict()
        arrays, meta = state["arrays"], {"trainer": state["meta"], "monitor": monitor.state_dict()}
        if selection:
            arrays = arrays | {f"best/{k}": v for k, v in selection.weights.items()}
            meta["best"] = [selection.step, selection.figures, selection.sampled_tokens]
        name = step_name(trainer.step)
        save_checkpoint(folder, name, arrays, meta)
        prune_checkpoints(folder, trainer.args.save_total_limit or 1, name)
        self.ledger.save()

    def _look_at_rollout(self, phase: str, trainer: GRPOTrainer) -> dict[str, float]:
        """Reflection and, where rows name a language, language figures of the rollout in work; at
        its first update, its first groups go to completions.jsonl."""
        batch = trainer.batch
        assert batch is not None
        done = batch.completions
        if batch.position == 1:
            for row in islice(trainer.completion_rows(), self.shown_groups * done.group_size):
                del row["logprobs"]  # the stored evaluations have them
                self.rundir.completions.append({"stage": phase, **row, "step": row["step"] + 1})
        figures = {"completions/reflection": mean([float(reflection_count(t))
                                                   for t in done.texts])}
        rows = [batch.rows[i // done.group_size] for i in range(len(done))]
        if all(row.get("language") for row in rows):
            shares = [one for one in language_shares(
                [], done.texts, [], language=[row["language"] for row in rows],
                template=[row.get("template") for row in rows], prefilled=done.prefilled)
                if one is not None]
            figures |= {"language_consistency": mean(shares) if shares else 0.0,
                        "no_words": 1.0 - len(shares) / len(done)}
        return figures

    def _advance_skipped(self, phase: str, sequences: int) -> None:
        if self.meter and sequences:
            self.meter.advance(phase, sequences, skipped=True)


def sequences_a_step(trainer: Trainer) -> int:
    """What an update counts for in the bar: in RL sequences are sampled, then trained on."""
    return trainer.args.per_device_train_batch_size * (2 if isinstance(trainer, GRPOTrainer)
                                                       else 1)


def _figures(trainer: Trainer, selection: Selection | None) -> dict[str, Any]:
    """What a finished trainer adds to the ledger. Loss tokens are those that were learned,
    processed tokens all of their sequences, a prompt as often as it has completions; sampled are
    those of all rollouts, used or not, and of the looks at validation problems."""
    tokens = {"loss_tokens": trainer.num_tokens, "processed_tokens": trainer.processed_tokens}
    if not isinstance(trainer, GRPOTrainer):
        return tokens
    looks = selection.sampled_tokens if selection else 0
    return {**tokens, "sampled_tokens": trainer.sampled_tokens + looks,
            "max_logprob_gap": trainer.max_logprob_gap, "gap_tokens": trainer.gap_tokens}
