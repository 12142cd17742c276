"""Bad input: a clear exception that names the thing, before work starts; never a crash or a half.

Every case runs on one model, and at the end that model still gives the bits it gave at the start.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import r1grpo.safe_files
from models import V, make
from r1grpo import Model, ModelConfig, set_num_threads

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """At the end its weights are what they were, its gradient is clear, and it works."""
    made = make("moe").add_score_head()
    before = {k: v.tobytes() for k, v in made.state_dict().items()}
    logprobs = made.logprobs([[1, 2]], [[3, 4]])[0].tobytes()
    yield made
    assert {k: v.tobytes() for k, v in made.state_dict().items()} == before
    assert made.logprobs([[1, 2]], [[3, 4]])[0].tobytes() == logprobs
    assert not any(g.any() for g in made.grad_dict().values())


IDS: list[tuple[Any, type[Exception], str]] = [
    ([[1, V]], ValueError, rf"\[0\] contains id {V}, outside the vocabulary of {V}"),
    ([[1], [2, -1]], ValueError, r"\[1\] contains id -1"),
    ([np.array([2**40])], ValueError, r"\[0\] contains id 1099511627776"),
    ([[1, 2**70]], TypeError, r"\[0\] must hold integers"),
    ([[1.0, 2.0]], TypeError, r"\[0\] must hold integers, not float64"),
    ([[True]], TypeError, r"\[0\] must hold integers, not bool"),
    ([[1, None]], TypeError, r"\[0\] must hold integers, not object"),
    ([["a"]], TypeError, r"\[0\] must hold integers"),
    ([[[1, 2]]], ValueError, r"\[0\] must be a sequence of ids, has 2 dimensions"),
    ([[1, [2]]], ValueError, r"\[0\] is not a flat sequence"),
    ([1, 2, 3], TypeError, r"must be a sequence of sequences; .*\[0\] is 1"),
    (np.arange(3), TypeError, "must be a sequence of sequences"),
    (["a prompt"], TypeError, "must be a sequence of sequences; .* is 'a prompt'"),
    ("a prompt", TypeError, "not str"), (None, TypeError, "not NoneType"),
    (5, TypeError, "not int"),
]


@pytest.mark.parametrize("ids, error, match", IDS)
def test_token_ids(model: Model, ids: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match="prompts.*" + match):
        model.generate(ids)
    with pytest.raises(error, match="prompt_ids.*" + match):
        model.logprobs(ids, [[1]] * (len(ids) if hasattr(ids, "__len__") else 1))
    with pytest.raises(error, match="completion_ids.*" + match):
        model.sft_gradient([[1]], ids)
    if isinstance(ids, list):
        with pytest.raises(error, match="prompt_ids.*" + match):
            model.score(ids)


GENERATE = [
    ({"num_generations": 0}, ValueError, "num_generations"),
    ({"num_generations": 2**40}, ValueError, "num_generations"),
    ({"num_generations": 1.0}, TypeError, "num_generations"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
    ({"max_new_tokens": None}, TypeError, "max_new_tokens"),
    ({"temperature": -0.1}, ValueError, "temperature"),
    ({"temperature": NAN}, ValueError, "temperature"),
    ({"temperature": INF}, ValueError, "temperature"),
    ({"temperature": "1"}, TypeError, "temperature"),
    ({"temperature": None}, TypeError, "temperature"),
    ({"top_k": -1}, ValueError, "top_k"), ({"top_k": 2.5}, TypeError, "top_k"),
    ({"top_p": 0.0}, ValueError, "top_p"), ({"top_p": 1.01}, ValueError, "top_p"),
    ({"top_p": NAN}, ValueError, "top_p"), ({"min_p": -0.1}, ValueError, "min_p"),
    ({"min_p": 1.1}, ValueError, "min_p"), ({"min_p": NAN}, ValueError, "min_p"),
    ({"seed": -1}, ValueError, "seed"), ({"seed": 2**64}, ValueError, "seed"),
    ({"seed": 1.5}, TypeError, "seed"), ({"seed": None}, TypeError, "seed"),
    ({"step": -1}, ValueError, "step"), ({"step": "0"}, TypeError, "step"),
    ({"stop_token_ids": [V]}, ValueError, "stop_token_ids"),
    ({"stop_token_ids": 1}, ValueError, "stop_token_ids"),
    ({"stop_token_ids": "</s>"}, ValueError, "stop_token_ids"),
    ({"stop_token_ids": [1.5]}, TypeError, "stop_token_ids"),
    ({"sample_ids": [0]}, ValueError, "sample_ids has 1 entries for 2 prompts"),
    ({"sample_ids": [0, -1]}, ValueError, "sample_ids"),
    ({"sample_ids": [0, 2**31]}, ValueError, "sample_ids"),
    ({"sample_ids": [0, 1.5]}, TypeError, "sample_ids"),
    ({"topk": 5}, TypeError, "topk"),
]


@pytest.mark.parametrize("options, error, match", GENERATE, ids=[str(o) for o, *_ in GENERATE])
def test_options_of_generate(model: Model, options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        model.generate([[1], [2]], **options)


def test_prompts_without_tokens_or_room(model: Model) -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        model.generate([[1], []])
    with pytest.raises(ValueError, match=r"prompts\[0\] has 160 tokens and leaves no room"):
        model.generate([[1] * 160])
    for call in (model.logprobs, model.sft_gradient):
        with pytest.raises(ValueError, match=r"prompt_ids\[0\] is empty"):
            call([[]], [[1]])
        with pytest.raises(ValueError, match=r"prompt_ids\[1\] \+ completion_ids\[1\] are 161 tokens"):
            call([[1], [1] * 100], [[1], [1] * 61])
        with pytest.raises(ValueError, match="3 completion_ids are not a multiple of 2 prompt_ids"):
            call([[1], [2]], [[1]] * 3)
        with pytest.raises(ValueError, match="without prompt_ids"):
            call([], [[1]])


def policy(model: Model, **changes: Any) -> Any:
    options = dict(advantages=[1.0, 2.0], weights=[1.0, 1.0], old_logprobs=[[-1.0] * 2, [-1.0]])
    return model.policy_gradient([[1]], [[2, 3], [4]], **{**options, **changes})


PER_TOKEN = [
    ([1.0], ValueError, "has 1 entries for 2 completions"),
    ([1.0] * 3, ValueError, "has 3 entries"),
    ([[1.0], 1.0], ValueError, r"\[0\] has shape \(1,\), the completion has 2 tokens"),
    ([1.0, [[1.0]]], ValueError, r"\[1\] has shape"),
    ([NAN, 1.0], ValueError, r"\[0\] contains NaN or infinity"),
    ([1.0, [INF]], ValueError, r"\[1\] contains NaN"),
    ([1e300, 1.0], ValueError, r"\[0\] contains NaN"),
    ([1.0, "x"], TypeError, r"\[1\]"), ([1.0, {}], TypeError, r"\[1\]"),
    (3.0, TypeError, "one number or array a completion"), ("ab", TypeError, "one number or array"),
]


@pytest.mark.parametrize("name", ["advantages", "weights", "old_logprobs", "ref_logprobs"])
@pytest.mark.parametrize("value, error, match", PER_TOKEN)
def test_numbers_per_completion(model: Model, name: str, value: Any, error: type[Exception],
                                match: str) -> None:
    with pytest.raises(error, match=name + ".*" + match):
        policy(model, **{name: value}, **({"beta": 0.1} if name == "ref_logprobs" else {}))
    if name == "weights":
        with pytest.raises(error, match=name + ".*" + match):
            model.sft_gradient([[1]], [[2, 3], [4]], value)


@pytest.mark.parametrize("name", ["advantages", "old_logprobs"])
def test_what_policy_gradient_needs(model: Model, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        policy(model, **{name: None})
    with pytest.raises(ValueError, match="ref_logprobs are needed"):
        policy(model, beta=0.1)


SCALARS = [("epsilon", -0.1), ("epsilon", NAN), ("epsilon_high", -1.0), ("beta", -0.5),
           ("beta", NAN),
           ("entropy_coef", NAN), ("mtp_coef", NAN), ("mtp_coef", -1), ("balance_coef", INF),
           ("total_tokens", 0), ("total_tokens", -1.0), ("total_tokens", NAN), ("total_tokens", INF),
           ("micro_batch_tokens", 0), ("micro_batch_tokens", -5), ("temperature", -1), ("top_p", 0.0)]


@pytest.mark.parametrize("name, value", SCALARS)
def test_numbers_of_policy_gradient(model: Model, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        policy(model, **{name: value}, ref_logprobs=[-1.0, -1.0])
    with pytest.raises(TypeError, match=name):
        policy(model, **{name: "x"}, ref_logprobs=[-1.0, -1.0])


def test_losses_that_the_model_has_not() -> None:
    dense = make("dense")
    with pytest.raises(ValueError, match="no MTP module"):
        dense.sft_gradient([[1]], [[2]], mtp_coef=0.1)
    with pytest.raises(ValueError, match="no score head"):
        dense.score([[1]])
    with pytest.raises(ValueError, match="weights"):
        dense.sft_gradient([[1]], [[2]], weights=[-1.0])


REWARDS = [
    (dict(ids=[[1]]), "1 sequences are not pairs"), (dict(ids=[[1], []]), "is empty"),
    (dict(ids=[[1], [1] * 161]), "beyond the context"), (dict(ids=[[1], [2]], kind="listwise"),
    "kind"),
    (dict(ids=[[1], [2]], kind="pointwise"), "labels has 0 entries for 2"),
    (dict(ids=[[1], [2]], kind="pointwise", labels=[1.0]), "labels has 1 entries"),
    (dict(ids=[[1], [2]], kind="pointwise", labels=[1.0, NAN]), r"labels\[1\] contains NaN"),
    (dict(ids=[[1], [2]], kind="pointwise", labels=[1.0, 1.5]), r"labels must be in \[0, 1\]"),
    (dict(ids=[[1], [2]], total=NAN), "total"), (dict(ids=[[1], [2]], total=0), "total"),
]


@pytest.mark.parametrize("options, match", REWARDS)
def test_reward_gradient(model: Model, options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        model.reward_gradient(**options)


UPDATE = [("learning_rate", NAN), ("learning_rate", -1.0), ("learning_rate", INF), ("betas", (1.0, 0.9)),
          ("betas", (0.9, -0.1)), ("betas", (0.9, NAN)), ("eps", -1e-8), ("eps", NAN),
          ("weight_decay", -0.1), ("weight_decay", NAN), ("max_grad_norm", -1.0),
          ("max_grad_norm", NAN)]


@pytest.mark.parametrize("name, value", UPDATE)
def test_update(model: Model, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        model.update(**{"learning_rate": 1e-3, name: value})
    with pytest.raises(TypeError, match=name):
        model.update(**{"learning_rate": 1e-3, name: ("x", "y")})
    with pytest.raises(ValueError, match="rate"):
        model.update_router_bias(NAN)


@pytest.mark.parametrize("n, error", [(0, ValueError), (-1, ValueError), (10**6, ValueError),
                                      (1.5, TypeError), ("2", TypeError), (True, TypeError)])
def test_thread_counts(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="threads"):
        set_num_threads(n)


@pytest.mark.parametrize("options, error, match", [
    (dict(device="cuda"), RuntimeError, "CUDA"),
    (dict(device="tpu"), ValueError, "device 'tpu'"),
    (dict(dtype="float16"), ValueError, "'float16', must be one of float32, bfloat16"),
    (dict(seed=-1), ValueError, "seed"), (dict(seed=2**64), ValueError, "seed"),
    (dict(seed=0.5), TypeError, "seed")])
def test_models(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Model(ModelConfig.tiny_dense(), **options)


@pytest.mark.parametrize("config", ["tiny", None, 5, [("vocab_size", 3)]])
def test_configs_of_a_wrong_kind(config: Any) -> None:
    with pytest.raises(TypeError, match="config"):
        Model(config)


# ---- state dicts ---------------------------------------------------------------------------------


NAME = "model.layers.1.mlp.experts.3.up_proj.weight"
STATES: list[tuple[Callable[[dict], Any], str]] = [
    (lambda s: s.pop(NAME), f"missing {NAME} "),
    (lambda s: s.update(more=np.zeros(3, np.float32)), "surplus more"),
    (lambda s: s.update({NAME: s[NAME].T}),
     rf"{NAME} is float32 \(32, 12\), expected float32 \(12, 32\)"),
    (lambda s: s.update({NAME: s[NAME].reshape(-1)}), rf"{NAME} is float32 \(384,\)"),
    (lambda s: s.update({NAME: s[NAME].astype(np.int32)}), f"{NAME} is int32"),
    (lambda s: s.update({NAME: s[NAME].astype(np.complex64)}), f"{NAME} is complex64"),
    (lambda s: s.update({NAME: np.full((12, 32), "x")}), f"{NAME} is <U1"),
    (lambda s: s.update({NAME: "x"}), f"{NAME} is <U1"), (lambda s: s.update({NAME: None}), NAME),
]


@pytest.mark.parametrize("spoil, match", STATES)
def test_state_dicts(model: Model, spoil: Callable[[dict], Any], match: str) -> None:
    state = {k: v + 1 for k, v in model.state_dict().items()}  # whatever is written is seen at the end
    spoil(state)
    with pytest.raises(ValueError, match=match):
        model.load_state_dict(state)


def test_more_tokens_than_a_call_takes_are_named(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from r1grpo.batch import MAX_TOKENS, pack
    long = np.zeros(1 << 21, np.int32)
    with pytest.raises(ValueError, match=f"1024 sequences of {1 << 31} tokens.* takes {MAX_TOKENS}"):
        pack([long], [[]] * 1024, 40, 1 << 22, 40)
    monkeypatch.setattr("r1grpo.batch.MAX_TOKENS", 5)
    with pytest.raises(ValueError, match="2 prompts of 6 tokens are too many.* takes 5"):
        model.generate([[1, 2, 3]] * 2)


def test_all_faults_of_a_state_dict_are_named(model: Model) -> None:
    with pytest.raises(ValueError, match="missing model.embed.*missing model.norm.*surplus x"):
        model.load_state_dict({"x": np.zeros(1)})
    with pytest.raises(TypeError, match="state dict"):
        model.load_state_dict([1])
    with pytest.raises(ValueError, match="optimizer state differs"):
        model.load_optimizer_state({})
    with pytest.raises(ValueError, match="different parameters"):
        model.copy_weights_from(make("dense"))


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make("dense").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


CONFIGS = [
    (b"", "Expecting value"), (b"{", ""), (b"[1, 2]", "a config is a dict"),
    (b"null", "a config is a dict"),
    (b'"x"', "a config is a dict"), (b"\xff\xfe\x00", ""), (b"[" * 100_000, ""),
    (b'{"vocab_size": -1}', "vocab_size"), (b'{"vocab_size": 1e400}', "vocab_size"),
    (b'{"rope_theta": NaN}', "rope_theta"), (b'{"vocab_size": "40"}', "vocab_size"),
    (b'{"hidden_size": ' + b"9" * 5000 + b"}", ""),
    (b'{"hiden_size": 24}', "did you mean 'hidden_size'"),
]


@pytest.mark.parametrize("text, match", CONFIGS, ids=range(len(CONFIGS)))
def test_config_files(saved: Path, text: bytes, match: str) -> None:
    (saved / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match="config.json.*" + match):
        Model.from_pretrained(saved)


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere has no config.json"):
        Model.from_pretrained(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        Model.from_pretrained(saved)
    os.mkfifo(saved / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        Model.from_pretrained(saved)


def safetensors_file(header: Any, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: Any = (4, 4), begin: int = 0, end: int = 64, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE = {
    "empty": b"", "short": b"\0" * 7, "no header": bytes(8),
    **{f"header of {n}": n.to_bytes(8, "little") + b"{}" for n in (2**64 - 1, 2**63, 2**64 - 8, 10, 10**9)},
    "not utf-8": safetensors_file(b"\xff\xfe{}"), "spaces": safetensors_file(b" " * 1000),
    "garbage after": safetensors_file(b"{}x"), "nesting": safetensors_file(b"[" * 100_000),
    "not a dict": safetensors_file([1]), "metadata": safetensors_file({"__metadata__": {"a": 1}}),
    "wrap to small": safetensors_file({"a": entry((4194305, 4194305, 211106198978564), 0, 16)}),
    "wrap of bytes": safetensors_file({"a": entry((2**62,), 0, 0)}),
    "huge dimension": safetensors_file({"a": entry((2**63,))}),
    "negative": safetensors_file({"a": entry((-1,))}),
    "real": safetensors_file({"a": entry((1.5,))}),
    "text": safetensors_file({"a": entry(("4",))}), "null": safetensors_file({"a": entry((None,))}),
    "backwards": safetensors_file({"a": entry((4, 4), 64, 0)}),
    "beyond": safetensors_file({"a": entry((4, 5), 0, 80)}),
    "overlap": safetensors_file({"a": entry((4, 4)), "b": entry((4, 4))}),
    "hole": safetensors_file({"a": entry((2,), 0, 8), "b": entry((2,), 56, 64)}),
    "trailing": safetensors_file({"a": entry((2,), 0, 8)}),
    "end": safetensors_file({"a": entry((4, 4), 0, 2**64 - 1)}),
    "dtype": safetensors_file({"a": entry(dtype="F31")}),
    "int": safetensors_file({"a": entry(dtype="I32")}),
    "bf16": safetensors_file({"a": entry((32,), dtype="BF16")}),
    "f8": safetensors_file({"a": entry((64,), dtype="F8_E4M3")}),
    "another model": safetensors_file({"a": entry()}),
    "odd names": safetensors_file({"../../x": entry((4,), 0, 16), "": entry((12,), 16, 64)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weight_files(saved: Path, name: str) -> None:
    (saved / "model.safetensors").write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match="model.safetensors|state dict"):
        Model.from_pretrained(saved)


def test_truncated_and_flipped_weight_files(saved: Path) -> None:
    """Cut at every byte of its header and at some of its data; each bit of the header flipped: refused,
    or, where a flip only renames a tensor or moves one of equal size, read without a crash."""
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for cut in (*range(0, header, 7), header, header + 1, (header + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="model.safetensors"):
            Model.from_pretrained(saved)
    refused = 0
    for at in range(0, 8 * header, 31):
        spoiled = bytearray(whole)
        spoiled[at // 8] ^= 1 << at % 8
        path.write_bytes(spoiled)
        try:
            Model.from_pretrained(saved)
        except ValueError:
            refused += 1
    assert refused > 0.9 * (8 * header / 31)


# ---- saving --------------------------------------------------------------------------------------


def test_saving_where_it_cannot_be(tmp_path: Path) -> None:
    model = make("dense")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        model.save_pretrained(tmp_path / "file" / "below")
    with pytest.raises(OSError, match="proc"):
        model.save_pretrained("/proc/r1grpo-model")
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_saving_into_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        make("dense").save_pretrained(tmp_path / "m")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    model, other = make("dense"), make("dense", seed=1)
    model.save_pretrained(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for name in (call, "replace") if call == "rename" else (call,):
        monkeypatch.setattr(r1grpo.safe_files.os, name, full)
    for target in ("new", "old"):
        with pytest.raises(OSError, match=target):
            other.save_pretrained(tmp_path / target)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before


FULL_DISK = """
import pathlib, sys
from models import make
folder = pathlib.Path(sys.argv[1])
make("dense").save_pretrained(folder / "a")
try:
    make("moe").save_pretrained(folder / "b")
except OSError as error:
    assert "b" in str(error) and "bytes wanted" in str(error), error
    assert [p.name for p in folder.iterdir()] == ["a"]
    print("refused")
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 64 KiB of its own, where the second model has no room."""
    mount = "mount -t tmpfs -o size=64k tmpfs \"$1\" || exit 99; exec \"$2\" -c \"$3\" \"$1\""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", mount, "sh", tmp_path, sys.executable,
                           FULL_DISK], capture_output=True, text=True, env={
                               **os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    assert done.stdout == "refused\n", done.stderr


def test_weights_that_are_not_numbers_do_no_harm() -> None:
    """They load (a diverged model may be looked at), draw ids of the vocabulary, and cannot train."""
    model = make("moe")
    for bad in (NAN, INF, -INF, 1e30):
        model.load_state_dict({k: np.full_like(v, bad) for k, v in model.state_dict().items()})
        for how in ({}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.1}):
            out = model.generate([[1, 2]], 2, max_new_tokens=3, stop_token_ids=(), **how)
            assert all(((c >= 0) & (c < V)).all() for c in out.completion_ids)
        model.zero_grad()
        loss = model.sft_gradient([[1, 2]], [[3, 4]], mtp_coef=0.3, balance_coef=0.1)
        if not math.isfinite(float(loss)):
            with pytest.raises(FloatingPointError):
                model.update(1e-3)
