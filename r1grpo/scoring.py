"""scoring.py - completions -> rewards: the reward functions of a run, and the log of what they said.

A reward function is f(prompts, completions, completion_ids, **columns) -> list[float | None | Verdict];
where the prompt is a list of messages, the completion is one too, [{"role": "assistant", "content"}];
columns are the dataset's, one entry a completion, and finish_reasons ("stop" or "length"), and where
a prompt opened the thought (<think> last) prefilled (True or False); num_generations is a number: so
many neighbours are one group. None: not applicable (NaN in the arrays here).

    total_i = sum_k weight_k r_ik   over the parts that apply; NaN where none does

A dense reward says of each token what it is worth: it has `returns(ids)` -> (T) besides, a function of
the ids alone. What it returns as a reward function is logged and stands in no total; its returns,
times its weight, go into the advantages of the tokens.

Which rewards apply is a function's own business (None), or the row's: a column reward_funcs with names,
as metrics have them, with or without their ending _reward. The others are not asked about such a row.

A function that runs programs says by an attribute `sandbox` at which level (verifiers/sandbox.py); that
is written with each sample.

They are asked, and what they return is checked, in judging.py, where Verdicts and Pooled functions are
explained. A verdict may come from outside (a sandbox, a deadline), so it need not be the same twice.
VerdictLog writes it durably before the update that uses it; a resumed run samples the same completions
and takes their verdicts from the log instead of asking again. Knows nothing about
models or gradients.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .brief import brief
from .judging import ROUTE, Judging, RewardError, RewardFunction, Scores
from .rollout import Completions, completion_text, prefilled
from .toml import ConfigError
from .verifiers import VerifierPool


class Rewards:
    """The reward functions of a run, in order, and behind them its audits, which are in no total.
    pool: where Pooled ones are called."""

    def __init__(self, functions: RewardFunction | Sequence[RewardFunction],
                 weights: Sequence[float] | None = None, pool: VerifierPool | None = None,
                 audits: RewardFunction | Sequence[RewardFunction] = ()) -> None:
        self.functions = [functions] if callable(functions) else list(functions)
        audits = [audits] if callable(audits) else list(audits)
        if not self.functions:
            raise RewardError("reward_funcs is empty")
        for one in (*self.functions, *audits):
            if not callable(one):
                raise RewardError(f"reward_funcs holds {brief(one)}, which cannot be called")
        self.names = [getattr(one, "__name__", type(one).__name__) for one in self.functions]
        if len(set(self.names)) < len(self.names):
            raise RewardError(f"two reward functions have one name: {', '.join(self.names)}")
        self.weights = np.ones(len(self.functions)) if weights is None else np.array(weights, float)
        if self.weights.shape != (len(self.functions),) or not np.isfinite(self.weights).all():
            raise RewardError(f"reward_weights needs {len(self.functions)} finite numbers "
                              f"({', '.join(self.names)}), got {brief(weights)}")
        self.counts = np.array([not hasattr(one, "returns") for one in self.functions])
        if not self.counts.any():
            raise RewardError(f"reward_funcs holds dense rewards alone ({', '.join(self.names)}); a "
                              f"group is compared by the others")
        self.audits = [f"audit_{getattr(one, '__name__', type(one).__name__)}" for one in audits]
        if len({*self.names, *self.audits}) < len(self.names) + len(audits):
            raise RewardError(f"two audits have one name: {', '.join(self.audits)}")
        for name, one in zip(self.names, self.functions):
            before = getattr(one, "after", None)
            known = [other for other, other_one in zip(self.names, self.functions)
                     if not hasattr(other_one, "after")]
            if before is not None and before not in known:
                raise RewardError(f"reward function {name!r} takes the verdicts of {before!r}, which is none "
                                  f"of {', '.join(known) or '(none)'}")
        self.functions += audits
        self.names += self.audits
        self.weights = np.append(self.weights, np.zeros(len(audits)))
        self.counts = np.append(self.counts, np.zeros(len(audits), bool))
        self.sandboxes = {name: one.sandbox for name, one in zip(self.names, self.functions)
                          if hasattr(one, "sandbox")}  # levels, of those that run programs
        self.pool = pool or VerifierPool()

    @property
    def signature(self) -> list[list[Any]]:
        """[name, weight] of each part in order, audits with weight 0: what a resumed run must share."""
        return [[name, weight] for name, weight in zip(self.names, self.weights.tolist())]

    def judging(self, rows: Sequence[dict[str, Any]], prompt_ids: Sequence[Sequence[int]],
                group_size: int, audited: Iterable[int] = ()) -> Judging:
        """Judge a rollout while it is sampled; rows (P) are the dataset rows of the prompts, audited
        the numbers of the completions that the audits are asked about."""
        return Judging(self, rows, prompt_ids, group_size, audited)

    def score(self, rows: Sequence[dict[str, Any]], completions: Completions,
              audited: Iterable[int] = ()) -> Scores:
        """Judge a rollout that has been sampled."""
        with self.judging(rows, completions.prompt_ids, completions.group_size, audited) as judging:
            return judging.finish(completions)

    def route(self, row: dict[str, Any]) -> set[str]:
        """The names of the functions that judge a row; RewardError for a name that none has."""
        wanted, names = row.get(ROUTE), self.names[:len(self.names) - len(self.audits)]
        if wanted is None:
            return set(names)
        known = {spelled: name for name in names
                 for spelled in (name.removesuffix("_reward"), name)}
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        if strange := [name for name in wanted if name not in known]:
            raise RewardError(f"a row's {ROUTE} names {brief(strange[0])}, which is none of "
                              f"{', '.join(names)}")
        return {known[name] for name in wanted}

    def counted(self, parts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of rewards by part (n, parts): those (n, counted) that a total is made of, their weights."""
        return parts[:, self.counts], self.weights[self.counts]

    def total(self, parts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weighted sum (n) of the parts (n, parts) that count and apply; NaN where none does."""
        parts, weights = self.counted(parts)
        total = np.where(np.isnan(parts), 0.0, parts * weights).sum(axis=1)
        return np.where(np.isnan(parts).all(axis=1), np.nan, total)

    def returns(self, completion_ids: Sequence[NDArray[np.int32]], parts: NDArray[np.float64]
                ) -> list[NDArray[np.float64]] | None:
        """Weighted sum (T) over the dense rewards that apply to each completion, by parts (n, parts);
        None where the run has none."""
        dense = [(k, weight, one) for k, (weight, one) in enumerate(zip(self.weights, self.functions))
                 if hasattr(one, "returns")]
        if not dense:
            return None
        return [sum((weight * one.returns(ids.tolist()) for k, weight, one in dense if not np.isnan(row[k])),
                    np.zeros(len(ids))) for ids, row in zip(completion_ids, parts, strict=True)]


class VerdictLog:
    """Append-only JSONL of the verdicts of each rollout, and beside it samples.jsonl with what they are
    of (samples.py), which a line of verdicts says the length of: every sample stands there once. Without
    a path it does nothing. names: of the parts. A new run begins new logs at its first verdict, so another
    reward function in the same folder never meets old verdicts; load() takes the files up, which is what
    a resume does, and refuses those of other functions."""

    def __init__(self, path: str | Path | None, names: Sequence[str]) -> None:
        self.path, self.names = Path(path) if path else None, list(names)
        self._known: dict[tuple[int, int, str], dict[str, Any]] = {}
        self._mode = "wb"

    def load(self) -> None:
        """Remember what the file holds and go on behind it. ConfigError, with nothing changed, where
        other functions gave its verdicts."""
        if self.path and self.path.exists():
            whole, known = 0, {}
            with self.path.open("rb") as file:
                for line in file:
                    try:
                        entry = json.loads(line)
                        key = (entry["step"], entry["attempt"], entry["completions"])
                        if not (line.endswith(b"\n") and "rewards" in entry):
                            break
                        known[key] = entry
                    except (ValueError, KeyError, TypeError):
                        break
                    names = entry.get("names", self.names)  # older lines say nothing of them
                    if names != self.names:
                        raise ConfigError(f"{self.path}: its verdicts are those of {', '.join(names)}, this "
                                          f"run's would be those of {', '.join(self.names)}")
                    whole += len(line)
            self._known = known
            os.truncate(self.path, whole)  # a kill may have torn the last line
            if self.samples.exists():
                os.truncate(self.samples, max((one.get("samples", 0) for one in self._known.values()),
                                              default=0))
        self._mode = "ab"

    def foresees(self, step: int, attempt: int) -> bool:
        """Whether there are verdicts of this rollout, if it is what it was."""
        return any(key[:2] == (step, attempt) for key in self._known)

    def recall(self, step: int, attempt: int, completions: Completions) -> Scores | None:
        """The scores written for exactly these completions, or None."""
        found = self._known.get((step, attempt, digest(completions))) if self._known else None
        return None if found is None else Scores(
            np.array([[math.nan if v is None else v for v in row] for row in found["rewards"]], np.float64),
            found.get("reasons", {}))

    @property
    def samples(self) -> Path:
        """The other file."""
        assert self.path is not None
        return self.path.with_name("samples.jsonl")

    def write(self, step: int, attempt: int, completions: Completions, scores: Scores,
              samples: Iterable[dict[str, Any]] = ()) -> None:
        """On disk when this returns; samples: their rows."""
        key = (step, attempt, digest(completions))
        if self.path is None or key in self._known:
            return
        rows = [[None if math.isnan(v) else v for v in row] for row in scores.parts.tolist()]
        entry = {"step": step, "attempt": attempt, "completions": key[2],
                 "names": self.names, "rewards": rows,
                 **({"reasons": scores.reasons} if scores.reasons else {})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry["samples"] = self._append(self.samples, samples)
        self._append(self.path, [entry])
        self._mode = "ab"

    def _append(self, path: Path, rows: Iterable[dict[str, Any]]) -> int:
        """Rows at the end of a file, durable; its length then."""
        with path.open(self._mode) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str).encode(
                    errors="backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()


def digest(completions: Completions) -> str:
    """Fingerprint of prompts and completions, by ids."""
    h = hashlib.blake2b(digest_size=16)
    for ids in (*completions.prompt_ids, *completions.completion_ids):
        data = np.asarray(ids, dtype="<i4").tobytes()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()


def pack_rollout(completions: Completions) -> dict[str, NDArray[Any]]:
    """Arrays of a rollout for a checkpoint: ids and log-probs end to end, with their lengths."""
    def flat(lists: Sequence[Any], dtype: type) -> NDArray[Any]:
        return np.concatenate([np.asarray(one, dtype) for one in lists])
    prompts, ids = completions.prompt_ids, completions.completion_ids
    return {"rollout/prompt_ids": flat(prompts, np.int32),
            "rollout/prompt_lengths": np.array([len(one) for one in prompts], np.int64),
            "rollout/completion_ids": flat(ids, np.int32),
            "rollout/completion_lengths": np.array([len(one) for one in ids], np.int64),
            "rollout/logprobs": flat(completions.logprobs, np.float32)}


def unpack_rollout(arrays: dict[str, NDArray[Any]], finish_reasons: Sequence[str],
                   tokenizer: Any) -> Completions:
    """The rollout of pack_rollout's arrays; its text is decoded anew."""
    def split(name: str, lengths: str) -> list[NDArray[Any]]:
        ends = np.cumsum(arrays[f"rollout/{lengths}"])[:-1]
        return [np.ascontiguousarray(one) for one in np.split(arrays[f"rollout/{name}"], ends)]
    prompts = [one.tolist() for one in split("prompt_ids", "prompt_lengths")]
    ids = split("completion_ids", "completion_lengths")
    return Completions(prompts, len(ids) // len(prompts), ids,
                       split("logprobs", "completion_lengths"), list(finish_reasons),
                       [completion_text(tokenizer, one) if tokenizer else "" for one in ids],
                       prefilled(tokenizer, prompts, len(ids) // len(prompts)))
