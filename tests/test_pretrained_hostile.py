"""Folders that lie: every fault is one clear error, found before a weight is read or memory is taken."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import make
from r1grpo import Model, ModelConfig, Tokenizer
from r1grpo.load_folder import INDEX, ModelFolder
from r1grpo.safetensors_file import MAX_HEADER, SafetensorsFile
from safetensors import SafetensorError, safe_open
from test_pretrained import entries, write_file, write_folder

STATE = make("dense").state_dict()
CONFIG = make("dense").config


def refused(folder: Path, match: str, error: type[Exception] = ValueError) -> str:
    """Loading raises that error with a short message, allocates little, and writes nothing."""
    before = sorted((p.name, p.lstat().st_mtime_ns) for p in folder.parent.rglob("*"))
    tracemalloc.start()
    with pytest.raises(error, match=match) as caught:
        Model.from_pretrained(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20, f"{peak} bytes to find a fault"
    assert len(str(caught.value)) < 20_000
    assert sorted((p.name, p.lstat().st_mtime_ns) for p in folder.parent.rglob("*")) == before
    return str(caught.value)


# ---- one file ------------------------------------------------------------------------------------


def packed(header: Any, data: int = 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def one(**changes: Any) -> dict:
    return {"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes}


A = json.dumps(one())[1:-1]
FILES = {
    "no bytes": (b"", "0 bytes"), "seven": (bytes(7), "7 bytes"), "no header": (bytes(8), "Expecting value"),
    **{f"header of {n}": (packed(b"{}", 0, n), f"header would have {n} bytes")
       for n in (2**60, 2**63, 2**64 - 1, 2**64 - 8, 11, MAX_HEADER + 1)},
    "not utf-8": (packed(b"{\xff}"), "utf-8"), "utf-16": (packed('{"a": 1}'.encode("utf-16")), "utf-8"),
    "list": (packed([1]), "no JSON object"), "garbage after": (packed(b"{} x"), "Extra data"),
    "deep": (packed(b"[" * 100_000), "nested"), "deep entry": (packed(b'{"a":' * 50_000), "nested"),
    "many digits": (packed(b'{"a": ' + b"9" * 5000 + b"}"), "4300"),
    "many items": (packed(b"[" + b"[]," * 2_700_000 + b"0]"), "too many items"),
    "same name": (packed(f"{{{A},{A}}}".encode()), "the key 'a' stands twice"),
    "same key": (packed(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [], "data_offsets": [0, 4]}}'),
                 "the key 'dtype' stands twice"),
    "metadata of numbers": (packed(one() | {"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata twice": (packed(b'{"__metadata__": {}, "__metadata__": {}}', 0), "twice"),
    "no entry": (packed({"a": 3}), "entry of 'a'"), "key missing": (packed({"a": {"dtype": "F32"}}), "'a'"),
    "key too many": (packed(one(extra=1)), "entry of 'a'"),
    "dtype": (packed(one(dtype="F31")), "'F31', which is not known"),
    "dtype of lists": (packed(one(dtype=["F32"])), "not known"),
    **{f"shape {shape}": (packed(one(shape=shape)), "'a' has shape") for shape in (
        [-4, -4], [4.0, 4], ["4", 4], [None], [True, 16], 16, [2**63], [2**64, 0], [1] * 9, None)},
    **{f"offsets {offsets}": (packed(one(data_offsets=offsets)), "'a' has data_offsets") for offsets in (
        [64, 0], [-64, 0], [0], [0, 32, 64], [0.0, 64.0], [0, 2**64], "ab", [False, 64], None)},
    "product wraps": (packed(one(shape=[2**32, 2**32], data_offsets=[0, 0]), 0), "0 bytes, which are not"),
    "product wraps small": (packed(one(shape=[4194305, 4194305, 211106198978564], data_offsets=[0, 16])),
                            "which are not"),
    "shape too large": (packed(one(shape=[4, 5])), "64 bytes, which are not F32"),
    "dtype too large": (packed(one(dtype="F64")), "64 bytes, which are not F64"),
    "beyond the end": (packed(one(shape=[4, 5], data_offsets=[0, 80])), "end at byte"),
    "far beyond": (packed(one(shape=[2**40], data_offsets=[0, 2**42])), "end at byte"),
    "gap at the start": (packed(one(shape=[15], data_offsets=[4, 64])), "'a' leaves a gap"),
    "overlap": (packed({**one(), "b": one()["a"]}), "'b' overlaps"),
    "hole": (packed({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
                     "b": {"dtype": "U8", "shape": [48], "data_offsets": [16, 64]}}), "'b' leaves a gap"),
    "more data": (packed(one(), 65), "the file at"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    content, match = FILES[name]
    folder = write_folder(tmp_path / "m", CONFIG, entries(STATE))
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(folder, match)


def test_fuzzed_headers_are_refused_or_sound(tmp_path: Path) -> None:
    """Random edits of a header: what is let through lies inside the file, tensor after tensor, and the
    format's own library lets it through too."""
    write_file(tmp_path / "whole", {"x.weight": ("F32", (3, 2), bytes(24)), "y": ("BF16", (4,), bytes(8)),
                                    "z.bias": ("F8_E4M3", (1, 0, 2), b""), "i": ("I64", (1,), bytes(8))})
    whole = (tmp_path / "whole").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    draw, path, sound = random.Random(0), tmp_path / "spoiled", 0
    for _ in range(1500):
        spoiled = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 3))):
            at = draw.randrange(header)
            if draw.random() < 0.5:
                spoiled[at] = draw.choice(b'0123456789-,:{}[]"FBU8ex. \xff')
            elif draw.random() < 0.5:
                del spoiled[at:at + draw.randrange(1, 4)]
            else:
                spoiled[at:at] = draw.choice((b"0", b"9", b"-", b",", b"[", b"1e3", b"\x00", b'"', b" "))
        if draw.random() < 0.7:  # a length that fits what was cut or put in
            spoiled[:8] = max(header - 8 + len(spoiled) - len(whole), 0).to_bytes(8, "little")
        path.write_bytes(spoiled)
        try:
            with SafetensorsFile(path) as file:
                ends = sorted((t.begin, t.begin + t.size) for t in file.tensors.values())
        except ValueError:
            continue
        sound += 1
        places = [place for pair in ends for place in pair]
        assert places[0] >= 10 and places[-1] == len(spoiled) and places[1:-1:2] == places[2::2]
        try:
            with safe_open(path, "numpy") as file:
                file.keys()
        except SafetensorError as error:  # spaces before the object are no fault of JSON
            assert "InvalidHeaderStart" in str(error), spoiled
    assert 50 < sound < 1450


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG, entries(STATE))
    with ModelFolder(folder) as source:
        os.truncate(folder / "model.safetensors", os.path.getsize(folder / "model.safetensors") - 100)
        with pytest.raises(ValueError, match="model.safetensors: tensor '.*': the file ends .* too early"):
            list(source.arrays())


# ---- the index -----------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    items = list(entries(STATE).items())
    return write_folder(tmp_path / "m", CONFIG, dict(items[::2]), dict(items[1::2]))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEXES: dict[str, tuple[Callable[[dict], Any], str]] = {
    **{f"file {name!r}": (lambda m, name=name: m["weight_map"].update({next(iter(STATE)): name}),
                          "which is no plain name") for name in (
        "../m/" + FIRST, "/etc/passwd", "a/b.safetensors", "..", "", ".hidden.safetensors", "model.bin",
        "x\0.safetensors", "a\nb.safetensors", "..\\x.safetensors", None, 3, ["x"], "x" * 10**6)},
    "no map": (lambda m: m.pop("weight_map"), "no weight_map"),
    "empty map": (lambda m: m["weight_map"].clear(), "no weight_map"),
    "list": (lambda m: m.update(weight_map=[FIRST]), "no weight_map"),
    "placed in the wrong shard": (
        lambda m: m["weight_map"].update({next(iter(STATE)): SECOND}),
        f"{FIRST} has what {INDEX} does not place there: model.embed_tokens.weight"),
    "not in its shard": (lambda m: m["weight_map"].update({"gone": FIRST}), f"{FIRST} lacks .*gone"),
    "shard has more": (lambda m: m["weight_map"].pop("model.norm.weight"),
                       "does not place there: model.norm.weight"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes(name: str, shards: Path) -> None:
    change, match = INDEXES[name]
    index = json.loads((shards / INDEX).read_text())
    change(index)
    (shards / INDEX).write_text(json.dumps(index))
    refused(shards, match)


@pytest.mark.parametrize("text, match", [
    (b"", "Expecting"), (b"[]", "no weight_map"), (b'{"weight_map": {"a": "b", "a": "c"}}', "'a' stands twice"),
    (b"[" * 10**5, "nested"), (b"\xff", "utf-8")])
def test_indexes_that_are_no_index(text: bytes, match: str, shards: Path) -> None:
    (shards / INDEX).write_bytes(text)
    assert INDEX in refused(shards, match)


def test_an_index_larger_than_any(shards: Path) -> None:
    with (shards / INDEX).open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that is not there
    with pytest.raises(ValueError, match="larger than"):
        Model.from_pretrained(shards)


def test_missing_shards(shards: Path) -> None:
    (shards / SECOND).unlink()
    refused(shards, f"m has no {SECOND}, which {INDEX} names", FileNotFoundError)
    os.mkfifo(shards / SECOND)  # must not hang
    refused(shards, f"has no {SECOND}", FileNotFoundError)
    (shards / SECOND).unlink()
    (shards / SECOND).mkdir()
    refused(shards, f"has no {SECOND}", FileNotFoundError)
    index = {"weight_map": {f"t{i}": f"s{i}.safetensors" for i in range(20_000)}}
    (shards / INDEX).write_text(json.dumps(index))
    refused(shards, "s0.safetensors, s1.safetensors, .*, ..., which", FileNotFoundError)


def test_one_file_goes_before_an_index(shards: Path) -> None:
    """As in transformers: an index that was left behind is not read."""
    write_file(shards / "model.safetensors", entries(STATE))
    (shards / INDEX).write_text("{")
    assert Model.from_pretrained(shards).state_dict().keys() == STATE.keys()


# ---- config against weights ----------------------------------------------------------------------


def test_sizes_that_contradict_the_weights(tmp_path: Path) -> None:
    """The sizes of a config are held against the headers before anything is allocated for them."""
    folder = write_folder(tmp_path / "m", CONFIG, entries(STATE))
    values = CONFIG.to_dict()
    for change, match in (
            ({"vocab_size": 2**31 - 1}, r"embed_tokens.weight is F32 \(40, 24\), expected float32 \(2147483647"),
            ({"hidden_size": 2**24}, r"\(16777216,\)"),
            ({"num_hidden_layers": 1000}, r"missing model.layers.{2-999}.self_attn.q_proj.weight \(24, 24\)"),
            ({"num_hidden_layers": 1}, r"surplus model.layers.1.self_attn.q_proj.weight"),
            ({"num_key_value_heads": 4}, r"model.layers.{0-1}|k_proj.weight is F32 \(12, 24\), expected"),
            ({"intermediate_size": 35}, r"mlp.gate_proj.weight is F32 \(36, 24\), expected float32 \(35, 24\)"),
            ({"tie_word_embeddings": False}, r"missing lm_head.weight \(40, 24\)")):
        (folder / "config.json").write_text(json.dumps(values | change))
        refused(folder, match)


def test_a_config_of_millions_of_tensors(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG, entries(STATE))
    (folder / "config.json").write_text(json.dumps({
        "model_type": "qwen3_moe", "vocab_size": 40, "hidden_size": 24, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "num_experts": 1000, "num_hidden_layers": 1000}))
    refused(folder, "the config makes 30[0-9]{5} tensors")


def test_thousands_of_missing_and_surplus_tensors_are_all_named(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=40, hidden_size=24, num_hidden_layers=48, num_attention_heads=2, intermediate_size=8,
        model_type="qwen3_moe", n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=6)
    have = {f"model.layers.0.mlp.experts.{e}.gate_proj.weight": ("F32", (6, 24), bytes(576))
            for e in range(128) if e not in (3, 4, 90)}
    have |= {f"odd.{i}.{j}": ("F32", (1,), bytes(4)) for i in range(50) for j in range(50)}
    have |= {f"other{i}": ("F32", (1,), bytes(4)) for i in range(3000)}
    message = refused(write_folder(tmp_path / "m", config, have), "surplus")
    assert "missing model.layers.0.mlp.experts.{3-4,90}.gate_proj.weight (6, 24);" in message
    assert "missing model.layers.{1-47}.mlp.experts.{0-127}.gate_proj.weight (6, 24)" in message
    assert "missing model.layers.{0-47}.mlp.experts.{0-127}.down_proj.weight (24, 6)" in message
    assert "surplus odd.{0-49}.{0-49};" in message and "and 2951 lines like these" in message


def test_tensors_of_other_kinds_and_both_forms_of_experts(tmp_path: Path) -> None:
    model = make("qwen3_moe")
    files = entries(model.state_dict())
    stem = "model.layers.3.mlp.experts"
    both = files | {f"{stem}.down_proj": ("F32", (5, 24, 10), bytes(4800))}
    refused(write_folder(tmp_path / "m", model.config, both), f"surplus {stem}.down_proj")
    for shape in ((5, 24, 20), (5, 19, 24), (4, 20, 24), (20, 24)):
        size = 4
        for n in shape:
            size *= n
        fused = {k: v for k, v in files.items() if not (stem in k and "down" not in k)}
        fused[f"{stem}.gate_up_proj"] = ("F32", shape, bytes(size))
        message = refused(write_folder(tmp_path / "m", model.config, fused), "gate_up_proj is F32")
        assert "expected float32 (5, 20, 24)" in message
    norm = "model.norm.weight"
    for dtype, size in (("I32", 96), ("BOOL", 24), ("U8", 24), ("F8_E5M2", 24)):
        wrong = files | {norm: (dtype, (24,), bytes(size))}
        refused(write_folder(tmp_path / "m", model.config, wrong), rf"{norm} is {dtype} \(24,\), expected")


def test_old_rotary_frequencies_are_read_over(tmp_path: Path) -> None:
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (3,), bytes(12))}
    Model.from_pretrained(write_folder(tmp_path / "m", CONFIG, entries(STATE) | more))


# ---- other files than safetensors ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt",
                                  "consolidated.00.pth"])
def test_pickled_weights_are_never_read_and_the_way_out_is_said(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG, entries(STATE))
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, "pickled weights .* can run code.*save_pretrained")
    with pytest.raises(ValueError, match=f"{name} is a file.*save_pretrained"):
        Model.from_pretrained(folder / name)


def test_remote_code_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code=True is refused"):
        Model.from_pretrained(tmp_path, trust_remote_code=True)
    values = CONFIG.to_dict() | {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    folder = write_folder(tmp_path / "m", CONFIG, entries(STATE))
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "modeling_x.py").write_text("raise SystemExit")
    Model.from_pretrained(folder).save_pretrained(tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text())


def test_other_files_are_bounded(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CONFIG, entries(STATE))
    with (folder / "config.json").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="config.json is larger than"):
        Model.from_pretrained(folder)
    write_folder(folder, CONFIG, entries(STATE))
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    for load in (Model, Tokenizer):
        with pytest.raises(ValueError, match="tokenizer.json is larger than"):
            load.from_pretrained(folder)
