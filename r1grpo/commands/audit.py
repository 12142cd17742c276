"""audit.py - `r1grpo audit DIR`: the judged samples of a run, the most suspicious first.

Reads DIR/samples.jsonl, of a pipeline's run DIR/samples/PHASE.jsonl and those of the stage in work, and, where
there are none, the part of the samples that completions.jsonl keeps; changes nothing. What a model wrote is shown with its
control characters spelled out, so that it cannot write to the terminal anything but text.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..brief import brief, brief_names
from ..rundir import read_jsonl
from ..samples import suspicion, weight
from ..toml import suggest

Row = dict[str, Any]
_SHOWN = 600  # characters of a prompt or a completion; --full shows all


def run(flags: argparse.Namespace) -> int:
    """The command; flags are those of cli.py."""
    if flags.limit < 1:
        raise ValueError(f"--limit is {flags.limit}, must be at least 1")
    seen = Counter({"samples": 0, "matching": 0, "suspicious": 0})

    def matching() -> Iterator[tuple[int, int, Row]]:
        for row in samples_of(flags.folder):
            seen["samples"] += 1
            if _matches(row, flags):
                seen["matching"] += 1
                seen["suspicious"] += bool(suspicion(row))
                yield weight(row), -seen["samples"], row

    chosen = [row for *_, row in heapq.nlargest(flags.limit, matching(), key=lambda one: one[:2])]
    if not chosen:
        _refuse_unknown(flags)
    for row in chosen:
        print(json.dumps(row, ensure_ascii=True) if flags.json else _shown(row, flags.full), end="\n")
    if not flags.json:
        print(f"{len(chosen):,} of {seen['matching']:,} samples that match, {seen['suspicious']:,} of them "
              f"suspicious; {seen['samples']:,} in all")
    return 0


def samples_of(folder: Path) -> Iterator[Row]:
    """All samples of a run, in the order in which they were judged."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no run: there is no such folder")
    found = [*folder.glob("samples.jsonl"), *sorted(folder.glob("samples/*.jsonl")),
             *sorted(folder.glob("work/**/samples.jsonl"))] or [*folder.glob("completions.jsonl")]
    if not found:
        raise FileNotFoundError(f"{folder} holds no samples: neither samples.jsonl nor completions.jsonl")
    for path in found:
        phase = {"stage": path.stem} if path.parent.name == "samples" else {}
        for row in read_jsonl(path):
            yield phase | row


def _refuse_unknown(flags: argparse.Namespace) -> None:
    """ValueError where --reward or --reason asks for what no sample of the run has."""
    rewards: set[str] = set()
    reasons: set[str] = set()
    for row in samples_of(flags.folder):
        rewards.update(row.get("rewards") or {})
        reasons.update((row.get("verdicts") or {}).values())
    for option, asked, known in (("--reward", flags.reward, rewards), ("--reason", flags.reason, reasons)):
        if asked is not None and not {asked, f"{asked}_reward"} & known:
            raise ValueError(f"{option} {brief(asked)}: no sample of {flags.folder} has it; there are "
                             f"{brief_names(sorted(known))}{suggest(asked, known)}")


def _matches(row: Row, flags: argparse.Namespace) -> bool:
    rewards = row.get("rewards") or {}
    names = [flags.reward, f"{flags.reward}_reward"] if flags.reward else list(rewards)[:1]
    value = next((rewards[name] for name in names if name in rewards), None)
    said = json.dumps(row.get("prompt"), ensure_ascii=False) + str(row.get("completion"))
    return ((flags.step is None or row.get("step") == flags.step)
            and (flags.key is None or str(row.get("problem_key")) == flags.key)
            and (flags.reward is None or value is not None)
            and (flags.above is None or value is not None and value > flags.above)
            and (flags.below is None or value is not None and value < flags.below)
            and (flags.reason is None or flags.reason in (row.get("verdicts") or {}).values())
            and (flags.contains is None or flags.contains in said)
            and (not flags.canary or bool(row.get("canary")))
            and (not flags.signs or bool(row.get("signs")))
            and (not flags.suspicious or bool(suspicion(row))))


def _shown(row: Row, full: bool) -> str:
    parts = [f"{name} {'-' if value is None else f'{value:.4g}'}"
             for name, value in (row.get("rewards") or {}).items()]
    words, levels = row.get("details") or {}, row.get("sandbox") or {}
    reasons = [f"{name}: {reason}{_why(words.get(name, ''), levels.get(name))}"
               for name, reason in (row.get("verdicts") or {}).items()]
    prompt, key = row.get("prompt"), row.get("problem_key")
    head = [*([row["stage"]] if row.get("stage") else []), f"step {row.get('step')}", f"sample {row.get('sample', '-')}", *([f"{key}"] if key else []),
            *([f"ended by {row['finish_reason']}"] if row.get("finish_reason") else [])]
    lines = ["=== " + ", ".join(head), *(f"!!! {one}" for one in suspicion(row)), "    " + ", ".join(parts),
             *(["    " + ", ".join(reasons)] if reasons else []),
             _text(prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False), full),
             "---", _text(row.get("completion") or f"ids {row.get('completion_ids')}", full), ""]
    return "\n".join(_plain(line) for line in lines)


def _why(words: str, level: str | None) -> str:
    """What stands behind a reason: the verdict's words, and its sandbox where they do not name it."""
    held = f"sandbox {level}" if level else ""
    said = [one for one in (words, "" if held in words else held) if one]
    return f" ({'; '.join(said)})" if said else ""


def _text(text: str, full: bool) -> str:
    """The beginning and the end of a text: there the answer is."""
    if full or len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _plain(text: str) -> str:
    """Text that a terminal only shows."""
    return "".join([one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text])
