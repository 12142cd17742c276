"""plan.py - how much memory a run will take, before it starts.

    parameters + gradients + moments + the buffers of every kind of call + the reference

The bytes come from the core, which runs the functions that place its tensors without memory
(csrc/model/plan.c), so that the plan is what will be allocated. What a GPU holds beside, scratch
memory of its ops and cuBLASLt's workspace, its ops say themselves (csrc/model/rehearse.c). Rows marked * are there one at a
time and count with the largest. Left out: the interpreter, its libraries, the data.

    print(plan_memory(config, length=4096))          a table
    check_fits(plan_training(config, args))          MemoryError with that table if it cannot fit

Knows nothing about trainers but their options, nothing about time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from .batch import as_count
from .config import GRPOConfig, RewardConfig, SFTConfig, TrainingConfig
from .cuda import describe_gpu
from .device import get_device
from .lora import LoraConfig
from .model_config import ModelConfig
from .sampling import check_speculative

__all__ = ["MemoryPlan", "available_memory", "check_fits", "plan_memory", "plan_training"]

MICRO_TOKENS = 4096  # packed rows of a micro-batch when nobody says
_PART_ROWS = 2048  # csrc/model/micro.c
SLOTS = 128  # sequences decoded at a time, as far as they fit a GiB of KV
GIB = 2.0**30
_BUFFERS = ("acts", "head", "cache")  # of a pass


@dataclass(frozen=True)
class Item:
    """What takes `bytes`; one_at_a_time: its memory is given back before the next such item's."""

    name: str
    bytes: int
    one_at_a_time: bool = False


@dataclass(frozen=True, repr=False)
class MemoryPlan:
    """Items, and their total; shown as a table in GiB. device: whose memory it is."""

    items: tuple[Item, ...]
    device: str = "cpu"
    host: int = 0  # bytes of the host's memory, where that is another

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(item.bytes for item in self.items if not item.one_at_a_time) + \
            max((item.bytes for item in self.items if item.one_at_a_time), default=0)

    def bytes_of(self, name: str) -> int:
        """Bytes of all items whose name starts so."""
        return sum(item.bytes for item in self.items if item.name.startswith(name))

    def __str__(self) -> str:
        rows = [(item.name + " *" * item.one_at_a_time, item.bytes) for item in self.items
                if item.bytes]
        sums = [("total (* one at a time)", self.total),
                *([("beside it, in the host's memory", self.host)] if self.host else [])]
        width = max(len(name) for name, _ in [*rows, *sums])
        lines = [f"{name:<{width}}  {size / GIB:9.3f} GiB" for name, size in [*rows, *sums]]
        return "\n".join([*lines[:len(rows)], "-" * len(lines[0]), *lines[len(rows):]])

    __repr__ = __str__


@dataclass(frozen=True)
class _Engine:
    """A configuration as the core's plan functions take it."""

    device: _core.Device
    sizes: dict[str, Any]  # the fields of r1_config
    dtype: Any
    frozen: bool = False
    offload: bool = False  # on a GPU

    def model(self) -> dict[str, int]:
        fields = {**self.sizes, "frozen": self.frozen, "offload": self.offload}
        return _core.plan_model(self.device, fields, self.dtype)

    def weights(self, name: str) -> list[Item]:
        found = self.model()
        what = "vectors" if self.frozen else "float32 master"
        return [Item(f"{name}, {what}", found["master"] + found["vectors"]),
                Item(f"{name}, packed copy", found["packed"])]

    def largest(self) -> int:
        """Bytes of the largest parameter in float32, which exists while it is loaded."""
        return max(4 * E * max(O, 1) * I  # noqa: E741 - the core's letters
                   for _, E, O, I, _ in _core.Model.layout(self.sizes))  # noqa: E741

    def one_pass(self, length: int, sequences: int, rows: int, keep: Any, prompt: int = 1,
                 groups: Sequence[int] = (1,), pairs: bool = False) -> dict[str, int]:
        """Log-probs or a gradient of sequences of equal length, in micro-batches of `rows`; so many
        neighbours share a prompt (of several such numbers the largest of each kind of buffer), or two
        stay together."""
        # one micro-batch is like the next, and has at most so many
        some = min(sequences, max(rows, _PART_ROWS) // (length - prompt + 1) + 1 + pairs)
        some -= some % (1 + pairs)
        start, first = np.arange(some + 1, dtype=np.int64) * length, np.full(some, prompt, np.int32)
        if start[-1] >= 2**31:
            raise ValueError(f"{some} sequences of {length} tokens are too many for one call")
        found = [_core.plan_pass(self.device, self.sizes, self.dtype, start.astype(np.int32), first,
                                 None if pairs else np.arange(some, dtype=np.int32) // group, rows,
                                 pairs, keep)
                 for group in groups]
        return {part: max(one[part] for one in found) for part in found[0]}


def plan_memory(config: ModelConfig | dict[str, Any], *, dtype: str = "float32",
                length: int | None = None, sequences: int = 1 << 20, training: bool = True,
                micro_batch_tokens: int | None = None, recompute: bool = False,
                scoring: bool = False, reference: str | None = None, prompts: int = 0,
                num_generations: int = 1, prompt_length: int = 1,
                max_new_tokens: int | None = None, slots: int = SLOTS, speculative: bool = False,
                checkpoint: bool = False, lora: LoraConfig | None = None, frozen: bool = False,
                pairs: bool = False, device: str = "cpu", shuffled: bool = False,
                offload: bool = False) -> MemoryPlan:
    """The plan of one model and all calls on it.

    length: tokens of the longest sequence in training and scoring (None: the context); sequences: of
    one call, each as long. training: gradients, moments and a pass with gradient, micro_batch_tokens
    and recompute as in `Model.sft_gradient`; scoring: `Model.logprobs`, of all samples where some are
    drawn. prompts > 0: sampling num_generations completions of max_new_tokens (None: all the context
    leaves) to that many prompts of prompt_length, the KV at its worst, which is when no two live
    sequences share a prompt. speculative: with guesses of the MTP module. In training and scoring,
    too, num_generations neighbours share a prompt of prompt_length; shuffled: or perhaps not, where a
    call has some of them at random. reference: a second model that scores, "frozen", "offloaded" (its
    file counts nothing; on a GPU two of its layers count, and the host's memory) or with a float32
    "master". offload: the moments, or a frozen model's layers, are off a GPU, in the host's memory.
    checkpoint: the trainer saves its state. lora: adapters are trained and nothing else. frozen: the model is (see `Model`), so that training means
    nothing. pairs: sequences are pairs, which a micro-batch does not part.
    """
    config = config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)
    context = config.max_position_embeddings
    check_speculative(config, speculative)
    fields = {**config.core()[0], **(lora.sizes() if lora else {})}
    core = _Engine(get_device(device), fields, dtype, frozen, offload and device != "cpu")
    training = training and not frozen
    length = min(context, as_count(context if length is None else length, "length", 1))
    sequences = as_count(sequences, "sequences", 1 + pairs)
    rows = MICRO_TOKENS if micro_batch_tokens is None else \
        as_count(micro_batch_tokens, "micro_batch_tokens", 1)
    shared = {"prompt": min(as_count(prompt_length, "prompt_length", 1), length),
              "groups": [as_count(num_generations, "num_generations", 1)] + [1] * shuffled}
    items, sizes = core.weights("parameters"), core.model()
    calls = [sizes]  # each with what a GPU then holds for itself
    host, moments = sizes["host"], sizes["moments"] or sizes["host"]
    weights = moments // 2 if lora else sizes["master"] + sizes["vectors"]
    state = weights + moments if checkpoint else 0  # of adapters alone, where there are any
    if training:
        found = core.one_pass(length, sequences, rows, "stream" if recompute else "all", pairs=pairs,
                              **shared)
        calls.append(found)
        how = ", recomputed" if recompute else ""
        items += [Item("gradients", sizes["grads"]), Item("Adam's moments", sizes["moments"]),
                  Item(f"training: activations{how}", found["acts"]),
                  Item("training: head", found["head"]), Item("training: KV", found["cache"]),
                  Item("update: shared gradients added" + ", moments on their way" * core.offload,
                       sizes["update"], True)]
    forward = []
    if scoring:
        scored = max(sequences, prompts * num_generations)
        forward.append(core.one_pass(length, scored, MICRO_TOKENS, "none", **shared))
    if prompts:
        room = context - 1 if max_new_tokens is None else max_new_tokens
        session = _core.plan_decode(core.device, core.sizes, core.dtype, prompts, num_generations,
                                    prompt_length, room, slots, speculative)
        forward.append(session["pass"])
        items += [Item(f"sampling: KV of {session['slots']} sequences", session["kv"], True),
                  Item("sampling: lists and results", session["rest"])]
    if forward:  # one workspace, as large as the largest call asks
        calls += forward
        items.append(Item("without gradient: activations, head, KV", sum(
            max(one[part] for one in forward) for part in _BUFFERS)))
    if not training:  # what sampling does not take later
        later = sum(item.bytes for item in items[2:] if not item.one_at_a_time)
        items.append(Item("loading: the largest tensor, beyond that",
                          max(0, core.largest() - later), True))
    if reference:
        found = core.one_pass(length, 1 << 20, MICRO_TOKENS, "none", **shared)  # a whole rollout
        in_file = reference == "offloaded" and device == "cpu"
        second = dataclasses.replace(core, frozen=reference != "master",
                                     offload=reference == "offloaded" and not in_file)
        items += [*second.weights("reference")[:1 if in_file else 2],
                  Item("reference: activations, head, KV", sum(found[part] for part in _BUFFERS))]
        calls += [found, second.model()]
        host += second.model()["host"]
        state += state and sizes["master"] + sizes["vectors"]
    if own := max(one["own"] for one in calls):
        items.append(Item("scratch memory of ops, cuBLASLt's workspace", own))
    if state and device == "cpu":  # the arrays; the file is streamed
        items.append(Item("checkpoint, while it is written", state, True))
    elif state:
        host += state
    return MemoryPlan(tuple(items), device, host)


def plan_training(config: ModelConfig | dict[str, Any], args: TrainingConfig,
                  dtype: str = "float32", length: int | None = None,
                  prompt_length: int | None = None, lora: LoraConfig | None = None,
                  sequences: int | None = None, device: str = "cpu") -> MemoryPlan:
    """The plan of a trainer with these options on a model of this configuration.

    length: tokens of the longest row (SFT, reward models), prompt_length: of the longest prompt
    (GRPO); None: what the options allow, else the context. lora: the model has these adapters, and
    is its own reference. sequences: of one update; None: the batch size, or with packing as many as
    a micro-batch takes."""
    config = config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)
    context = config.max_position_embeddings
    common: dict[str, Any] = {
        "dtype": dtype, "sequences": sequences or args.per_device_train_batch_size,
        "micro_batch_tokens": args.micro_batch_tokens, "recompute": args.gradient_checkpointing,
        "checkpoint": args.output_dir is not None, "lora": lora, "device": device,
        "offload": args.offload_optimizer}
    if isinstance(args, GRPOConfig):
        limit = args.max_completion_length  # of every rollout, or a schedule
        completion = limit if isinstance(limit, int) else max(length for _, length in limit)
        longest = prompt_length or args.max_prompt_length or max(context - completion, 1)
        return plan_memory(
            config, length=longest + completion,
            reference=args.reference_kind(dtype) if args.beta > 0 and lora is None else None,
            scoring=args.importance_sampling_level == "sequence" or args.beta > 0 and bool(lora),
            prompts=args.prompts_per_rollout, num_generations=args.num_generations,
            prompt_length=min(longest, context - 1), max_new_tokens=completion,
            speculative=args.speculative, shuffled=args.steps_per_generation > 1, **common)
    if isinstance(args, RewardConfig) and args.kind == "pairwise":
        common["sequences"] *= 2
        common["pairs"] = True
    if isinstance(args, SFTConfig) and args.packing and sequences is None:
        common["sequences"] = 1 << 20
    limit = args.max_length if isinstance(args, SFTConfig | RewardConfig) else None
    return plan_memory(config, length=length or limit, scoring=True, **common)


# ---- what there is ----------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _group_room(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Bytes that a control group has left; its page cache can be taken back. None: no limit."""
    most, now = _read(folder / limit).strip(), _read(folder / used).strip()
    if not most.isdigit() or not now.isdigit() or int(most) >= 2**60:
        return None
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    return max(0, int(most) - int(now) + int(stat.get(cache, 0)))


def available_memory(device: str = "cpu") -> int:
    """Bytes that this process may still take: of a GPU, what is free; else what the system calls
    available, and no more than its control groups (v1 and v2, with all parents) leave. 2^63 - 1 where
    nobody says."""
    if device != "cpu":
        return describe_gpu()[1]
    found = [2**63 - 1]
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    root = Path("/sys/fs/cgroup")
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inside = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(inside) + 1):
            room = _group_room(base.joinpath(*inside[:depth]), *names)
            if room is not None:
                found.append(room)
    return min(found)


def resident_memory(device: str = "cpu") -> int:
    """Bytes that this process holds now; 0 where nobody says. Of a GPU, all that is taken: whose it is
    nobody says."""
    if device != "cpu":
        _, free, total = describe_gpu()
        return total - free
    pages = _read(Path("/proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


@contextmanager
def explained(plan: Callable[[], MemoryPlan]) -> Iterator[None]:
    """A MemoryError in here gets the table of what was asked for."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{error}\n{plan()}") from None


def check_fits(plan: MemoryPlan, available: int | None = None, allocated: int = 0) -> None:
    """MemoryError with the plan's table where it needs more than there is.

    available: bytes (None: available_memory of its device); allocated: bytes of the plan that this
    process has taken already, a loaded model's say: resident_memory() is a bound."""
    have = available_memory(plan.device) if available is None else available
    if plan.host > available_memory():
        raise MemoryError(f"this run needs {plan.host / GIB:.2f} GiB of the host's memory and "
                          f"{available_memory() / GIB:.2f} GiB can be had:\n{plan}")
    if plan.total - allocated > have:
        raise MemoryError(
            f"this run needs {plan.total / GIB:.2f} GiB and {(have + allocated) / GIB:.2f} GiB can be "
            f"had:\n{plan}\nmicro_batch_tokens and gradient_checkpointing lower the activations, "
            f"fewer or shorter completions the KV, ref_model_offload or beta 0 the reference, on a GPU "
            f"offload_optimizer the moments")
