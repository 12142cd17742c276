"""Hugging Face folders in and out, without transformers: forms, number formats, hostile files, memory.

Files are written here byte by byte, so that reader and writer are not each other's only witness.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import r1grpo.model_state
from models import configs, make
from r1grpo import Model, ModelConfig, _core
from r1grpo.number_formats import narrow, widen
from r1grpo.safetensors_file import SafetensorsFile
from safetensors.numpy import load_file


def write_file(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """A safetensors file of (dtype, shape, bytes), from the format's description alone."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entries(state: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: ("F32", array.shape, array.tobytes()) for name, array in state.items()}


def write_folder(folder: Path, config: ModelConfig, *files: Mapping[str, tuple]) -> Path:
    """config.json and one file of weights, or shards with their index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    if len(files) == 1:
        write_file(folder / "model.safetensors", files[0])
        return folder
    placed = {}
    for i, tensors in enumerate(files):
        name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        write_file(folder / name, tensors)
        placed |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def same(model: Model, state: Mapping[str, np.ndarray]) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(own[k].tobytes() == state[k].tobytes() for k in own)


# ---- number formats ------------------------------------------------------------------------------


def test_every_bfloat16_and_float16_number_is_widened_exactly() -> None:
    codes = np.arange(2**16, dtype="<u2")
    out = np.empty(2**16, np.float32)
    widen(codes.view(np.uint8), "BF16", out)
    assert (out.view(np.uint32) == codes.astype(np.uint32) << 16).all()
    widen(codes.view(np.uint8), "F16", out)
    assert np.array_equal(out, codes.view(np.float16).astype(np.float32), equal_nan=True)


def test_fp8_values() -> None:
    """By hand: 2^-9 is the least, 448 the largest, -0 keeps its sign, 0x7f and 0xff are NaN."""
    out = np.empty(256, np.float32)
    widen(np.arange(256, dtype=np.uint8), "F8_E4M3", out)
    by_hand = {0x00: 0.0, 0x01: 2.0**-9, 0x07: 7 * 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x3C: 1.5,
               0x40: 2.0, 0x7E: 448.0, 0xB8: -1.0, 0xFE: -448.0}
    assert {code: float(out[code]) for code in by_hand} == by_hand
    assert np.signbit(out[0x80]) and out[0x80] == 0
    assert np.isnan(out).nonzero()[0].tolist() == [0x7F, 0xFF]
    assert (np.diff(out[:0x7F]) > 0).all()


def test_narrowing_rounds_to_the_nearest_even() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([
        0.0, -0.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, 2.0**-133, -(2.0**-134), np.inf, -np.inf])])
    values = values[~(np.isfinite(values) & (np.abs(values) > 3.389e38))]
    half = narrow(values, "BF16")
    wide = np.empty(values.shape, np.float32)
    widen(half.view(np.uint8), "BF16", wide)
    assert (np.isnan(wide) == np.isnan(values)).all() and half[-8:-4].tolist() == [0, 2**15, 0x3F80, 0x3F82]
    fine = np.isfinite(values)
    with np.errstate(over="ignore", under="ignore"):
        step = np.ldexp(1.0, np.maximum(np.frexp(values[fine])[1], -125) - 8)  # of bfloat16 there
    error = np.abs(wide[fine].astype(np.float64) - values[fine]) / step
    assert error.max() <= 0.5 and (half[fine][error == 0.5] % 2 == 0).all()
    assert narrow(np.float32([1.0, 65504.0]), "F16").tobytes() == np.float16([1.0, 65504.0]).tobytes()
    for dtype, large in (("F16", 65520.0), ("BF16", 3.4e38)):
        with pytest.raises(OverflowError, match=f"does not fit into {dtype}"):
            narrow(np.float32([1.0, -large]), dtype)
    assert np.isinf(narrow(np.float32([np.inf]), "F16")).all()


# ---- forms of the same weights -------------------------------------------------------------------


NAMES = sorted(configs())


@pytest.mark.parametrize("name", NAMES)
def test_shards_and_fused_experts(name: str, tmp_path: Path) -> None:
    """One file, three shards, experts fused as newer transformers have them: the same bits."""
    model = make(name)
    state = model.state_dict()
    assert same(Model.from_pretrained(write_folder(tmp_path / "one", model.config, entries(state))), state)
    parts = [dict(list(entries(state).items())[i::3]) for i in range(3)]
    assert same(Model.from_pretrained(write_folder(tmp_path / "three", model.config, *parts)), state)
    fused = fuse(state)
    assert (fused.keys() != state.keys()) == bool(model.config.n_routed_experts)
    assert same(Model.from_pretrained(write_folder(tmp_path / "fused", model.config, entries(fused))), state)
    if fused.keys() != state.keys():
        model.load_state_dict({k: v * 0 for k, v in state.items()})
        model.load_state_dict(fused)
        assert same(model, state)


def fuse(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """experts.E.{gate,up,down}_proj.weight -> experts.gate_up_proj (E, 2 F, C), experts.down_proj."""
    rest, stems = {}, {}
    for name, array in state.items():
        stem, found, tail = name.partition(".experts.")
        if found:
            expert, part, _ = tail.split(".")
            stems.setdefault(stem, {})[int(expert), part] = array
        else:
            rest[name] = array
    for stem, found in stems.items():
        experts = range(1 + max(e for e, _ in found))
        rest[f"{stem}.experts.gate_up_proj"] = np.stack([
            np.concatenate([found[e, "gate_proj"], found[e, "up_proj"]]) for e in experts])
        rest[f"{stem}.experts.down_proj"] = np.stack([found[e, "down_proj"] for e in experts])
    return rest


@pytest.mark.parametrize("dtype, numpy_type", [("F16", "<f2"), ("F64", "<f8"), ("BF16", None)])
def test_other_floats(tmp_path: Path, dtype: str, numpy_type: str | None) -> None:
    """Weights that the format can hold arrive bit for bit, whatever the tensor before leaves in buffers."""
    model = make("dense")
    state = {k: v.astype(np.float16).astype(np.float32) if numpy_type else
             ((v.view(np.uint32) >> 16) << 16).view(np.float32) for k, v in model.state_dict().items()}
    files = {k: (dtype, v.shape, v.astype(numpy_type).tobytes() if numpy_type else
                 (v.view(np.uint32) >> 16).astype("<u2").tobytes()) for k, v in state.items()}
    assert same(Model.from_pretrained(write_folder(tmp_path / "m", model.config, files)), state)


def fp8_config(moe_intermediate_size: int = 128) -> ModelConfig:
    """Widths of a block and a half, of one and less: every kind of edge."""
    return ModelConfig(vocab_size=40, hidden_size=160, num_hidden_layers=2, num_attention_heads=4,
                       intermediate_size=130, moe_intermediate_size=moe_intermediate_size, n_routed_experts=3,
                       num_experts_per_tok=2, first_k_dense_replace=1, n_shared_experts=1,
                       kv_lora_rank=48, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
                       model_type="deepseek_v3", eos_token_id=1)


def quantize(state: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """The matrices of the layers as random FP8 codes and factors; (files, the numbers they mean), by a
    loop over blocks."""
    rng = np.random.default_rng(0)
    table = np.empty(256, np.float32)
    widen(np.arange(256, dtype=np.uint8), "F8_E4M3", table)
    files, meant = entries(state), dict(state)
    for name, array in state.items():
        if array.ndim == 1 or not name.startswith("model.layers") or "mlp.gate.weight" in name:
            continue
        codes = rng.integers(0, 127, array.shape, dtype=np.uint8)
        factors = rng.uniform(0.5, 2.0, [-(-n // 128) for n in array.shape]).astype(np.float32)
        value = table[codes]
        for i in range(factors.shape[0]):
            for j in range(factors.shape[1]):
                value[128 * i:128 * (i + 1), 128 * j:128 * (j + 1)] *= factors[i, j]
        meant[name] = value
        files[name] = ("F8_E4M3", array.shape, codes.tobytes())
        files[name + "_scale_inv"] = ("F32", factors.shape, factors.tobytes())
    return files, meant


def test_fp8_in_blocks(tmp_path: Path) -> None:
    model = Model(fp8_config())
    files, meant = quantize(model.state_dict())
    assert files["model.layers.0.mlp.gate_proj.weight_scale_inv"][1] == (2, 2)
    model.config.extra["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
        "activation_scheme": "dynamic"}
    folder = write_folder(tmp_path / "m", model.config, files)
    loaded = Model.from_pretrained(folder)
    assert same(loaded, meant)
    loaded.save_pretrained(tmp_path / "out")  # no longer quantised, and says so
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert same(Model.from_pretrained(tmp_path / "out"), meant)

    parts = [{k: v for k, v in files.items() if k.endswith("_scale_inv") == own} for own in (True, False)]
    assert same(Model.from_pretrained(write_folder(tmp_path / "apart", model.config, *parts)), meant)


def test_fp8_fused_experts(tmp_path: Path) -> None:
    """up's rows begin at row 128 of the fused matrix, a row of blocks of its own."""
    model = Model(fp8_config())
    files, meant = quantize(model.state_dict())
    arrays = {k: np.frombuffer(raw, np.uint8 if dtype == "F8_E4M3" else "<f4").reshape(shape)
              for k, (dtype, shape, raw) in files.items()}
    fused = {k: v for k, v in files.items() if ".experts." not in k}
    stem = "model.layers.1.mlp.experts"
    for more in ("", "_scale_inv"):
        parts = {p: [arrays[f"{stem}.{e}.{p}_proj.weight{more}"] for e in range(3)]
                 for p in ("gate", "up", "down")}
        both = np.stack([np.concatenate(pair) for pair in zip(parts["gate"], parts["up"], strict=True)])
        for name, array in (("gate_up_proj", both), ("down_proj", np.stack(parts["down"]))):
            fused[f"{stem}.{name}{more}"] = ("F32" if more else "F8_E4M3", array.shape, array.tobytes())
    assert same(Model.from_pretrained(write_folder(tmp_path / "m", model.config, fused)), meant)


SCALE = "model.layers.0.mlp.gate_proj.weight_scale_inv"


@pytest.mark.parametrize("change, match", [
    (lambda f: f.pop(SCALE), rf"missing {SCALE} \(2, 2\)"),
    (lambda f: f.update({SCALE: ("F32", (1, 2), bytes(8))}),
     rf"{SCALE} is F32 \(1, 2\), expected float32 \(2, 2\)"),
    (lambda f: f.update({SCALE: ("I32", (2, 2), bytes(16))}), f"{SCALE} is I32"),
    (lambda f: f.update({SCALE[:-10]: ("F32", (130, 160), bytes(130 * 640))}), f"surplus {SCALE}$"),
    (lambda f: f.update({"model.norm.weight": ("F8_E4M3", (160,), bytes(160))}),
     "model.norm.weight is F8_E4M3"),
    (lambda f: f.update({SCALE[:-10]: ("F8_E5M2", (130, 160), bytes(130 * 160))}), "is F8_E5M2")])
def test_fp8_that_does_not_fit(tmp_path: Path, change: Callable[[dict], Any], match: str) -> None:
    model = Model(fp8_config())
    files, _ = quantize(model.state_dict())
    change(files)
    with pytest.raises(ValueError, match=match):
        Model.from_pretrained(write_folder(tmp_path / "m", model.config, files))


def test_fp8_fused_experts_whose_halves_share_a_block(tmp_path: Path) -> None:
    """up's rows begin at row 100, within gate's block: the factors go by rows of the fused matrix."""
    model = Model(fp8_config(100))
    files, meant = quantize(model.state_dict())
    stem, rng = "model.layers.1.mlp.experts", np.random.default_rng(1)
    codes = rng.integers(0, 127, (3, 200, 160), dtype=np.uint8)
    factors = rng.uniform(0.5, 2.0, (3, 2, 2)).astype(np.float32)
    value = np.empty(codes.size, np.float32)
    widen(codes.reshape(-1), "F8_E4M3", value)
    value = value.reshape(codes.shape)
    for row in range(200):
        for column in range(160):
            value[:, row, column] *= factors[:, row // 128, column // 128]
    fused = {k: v for k, v in files.items() if f"{stem}." not in k or "down" in k}
    downs = [np.frombuffer(fused.pop(f"{stem}.{e}.down_proj.weight")[2], np.uint8) for e in range(3)]
    scales = [np.frombuffer(fused.pop(f"{stem}.{e}.down_proj.weight_scale_inv")[2], "<f4") for e in range(3)]
    fused |= {f"{stem}.gate_up_proj": ("F8_E4M3", codes.shape, codes.tobytes()),
              f"{stem}.gate_up_proj_scale_inv": ("F32", factors.shape, factors.tobytes()),
              f"{stem}.down_proj": ("F8_E4M3", (3, 160, 100), np.stack(downs).tobytes()),
              f"{stem}.down_proj_scale_inv": ("F32", (3, 2, 1), np.stack(scales).tobytes())}
    for e in range(3):
        meant[f"{stem}.{e}.gate_proj.weight"] = value[e, :100]
        meant[f"{stem}.{e}.up_proj.weight"] = value[e, 100:]
    assert same(Model.from_pretrained(write_folder(tmp_path / "m", model.config, fused)), meant)


@pytest.mark.parametrize("how", [
    {"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"} | {"weight_block_size": [64, 64]},
    {"quant_method": "bitsandbytes"}, "awq"])
def test_other_quantizations_are_refused_by_name(tmp_path: Path, how: Any) -> None:
    model = make("dense")
    model.config.extra["quantization_config"] = how
    folder = write_folder(tmp_path / "m", model.config, entries(model.state_dict()))
    with pytest.raises(ValueError, match=how if isinstance(how, str) else how["quant_method"]):
        Model.from_pretrained(folder)


# ---- tied heads, shared copies, the MTP module ---------------------------------------------------


def test_tied_head(tmp_path: Path) -> None:
    """A copy of the embedding is read over; a head that is another is refused, not dropped."""
    model = make("dense")
    state = model.state_dict()
    copy = state["model.embed_tokens.weight"].copy()
    folder = write_folder(tmp_path / "m", model.config, entries(state | {"lm_head.weight": copy}))
    assert same(Model.from_pretrained(folder), state)
    copy[-1, -1] += 1
    write_folder(folder, model.config, entries(state | {"lm_head.weight": copy}))
    with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
        Model.from_pretrained(folder)
    write_folder(folder, model.config, entries(state | {"lm_head.weight": copy[1:]}))
    with pytest.raises(ValueError, match="lm_head.weight differs"):
        Model.from_pretrained(folder)
    untied = make("dense_untied")
    state = untied.state_dict()
    del state["lm_head.weight"]
    with pytest.raises(ValueError, match=r"missing lm_head.weight \(40, 24\)$"):
        Model.from_pretrained(write_folder(tmp_path / "n", untied.config, entries(state)))


def test_mtp_in_the_main_file_beside_it_and_left_out(tmp_path: Path) -> None:
    """DeepSeek's copies of embedding and head are read over; a folder without the module, as
    transformers saves it, loads without; half a module is an error."""
    model = make("moe_groups")
    state = model.state_dict()
    layer = f"model.layers.{model.config.num_hidden_layers}."
    mtp = {k: v for k, v in state.items() if k.startswith(layer)}
    trunk = {k: v for k, v in state.items() if k not in mtp}
    copies = {f"{layer}embed_tokens.weight": state["model.embed_tokens.weight"],
              f"{layer}shared_head.head.weight": state["lm_head.weight"]}
    folder = write_folder(tmp_path / "m", model.config, entries(state | copies))
    assert same(Model.from_pretrained(folder), state)

    write_folder(folder, model.config, entries(trunk))
    without = Model.from_pretrained(folder)
    assert same(without, trunk) and without.config.num_nextn_predict_layers == 0
    write_file(folder / "mtp.safetensors", entries(mtp))
    assert same(Model.from_pretrained(folder), state)
    mtp.pop(f"{layer}eh_proj.weight")
    write_file(folder / "mtp.safetensors", entries(mtp))
    with pytest.raises(ValueError, match=f"missing {layer}eh_proj.weight"):
        Model.from_pretrained(folder)
    write_file(folder / "mtp.safetensors", entries(state))
    with pytest.raises(ValueError, match="mtp.safetensors has the tensor"):
        Model.from_pretrained(folder)


def test_mtp_is_saved_where_transformers_does_not_look_for_surplus(tmp_path: Path) -> None:
    """Layer 61 of a DeepSeek-V3 in its main files, as published; other sizes in a file of their own."""
    tiny = dict(vocab_size=8, hidden_size=8, num_attention_heads=1, intermediate_size=4, kv_lora_rank=2,
                qk_nope_head_dim=2, qk_rope_head_dim=2, v_head_dim=2, n_routed_experts=2,
                num_experts_per_tok=1, moe_intermediate_size=2, n_shared_experts=1,
                first_k_dense_replace=61, num_nextn_predict_layers=1, model_type="deepseek_v3",
                max_position_embeddings=8)
    for layers, files in ((61, {"model.safetensors"}), (2, {"model.safetensors", "mtp.safetensors"})):
        model = Model(ModelConfig(num_hidden_layers=layers, **{**tiny, "first_k_dense_replace": layers}))
        folder = tmp_path / str(layers)
        model.save_pretrained(folder)
        assert {p.name for p in folder.glob("*.safetensors")} == files
        names = {n for file in files for n in load_file(folder / file)}
        assert f"model.layers.{layers}.eh_proj.weight" in names
        assert same(Model.from_pretrained(folder), model.state_dict())


# ---- memory --------------------------------------------------------------------------------------


def large_folder(folder: Path, layers: int) -> tuple[Path, int]:
    """A bfloat16 model whose weights dwarf everything else, and the bytes of its largest parameter."""
    config = ModelConfig(vocab_size=2048, hidden_size=512, num_hidden_layers=layers,
                         num_attention_heads=8, intermediate_size=2048, eos_token_id=1)
    shapes = {name: (O, I) if O else (I,) for name, _, O, I, _ in _core.Model.layout(config.core()[0])}
    raw = np.random.default_rng(0).integers(0, 0x4000, 2**20, dtype="<u2").tobytes()
    write_folder(folder, config, {name: ("BF16", shape, raw[:2 * int(np.prod(shape))])
                                  for name, shape in shapes.items()})
    return folder, 4 * 2048 * 512


def traced_peak(call: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at most during a call; the core's own are not among them."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_loading_and_saving_hold_one_parameter_at_a_time(tmp_path: Path) -> None:
    folder, largest = large_folder(tmp_path / "m", 4)
    model = Model.from_pretrained(folder)
    assert 4 * sum(p[1] * max(p[2], 1) * p[3] for p in model._params) > 14 * largest
    slack = 3 << 20  # blocks, headers
    assert traced_peak(lambda: Model.from_pretrained(folder)) < largest + slack
    for dtype in ("float32", "bfloat16"):
        assert traced_peak(lambda d=dtype: model.save_pretrained(tmp_path / d, dtype=d)) < largest + slack
    assert same(Model.from_pretrained(tmp_path / "bfloat16"), model.state_dict())


RSS = """
import sys
from r1grpo import Model

def memory():
    with open("/proc/self/status") as file:
        found = dict(line.split(":", 1) for line in file)
    return [1024 * int(found[key].split()[0]) for key in ("VmHWM", "VmRSS")]

model = Model.from_pretrained(sys.argv[1])
peak, after = memory()
print(peak - after)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_process_never_holds_more_than_the_model_and_its_largest_parameter(tmp_path: Path) -> None:
    folder, largest = large_folder(tmp_path / "m", 6)
    done = subprocess.run([sys.executable, "-c", RSS, folder], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True)
    assert int(done.stdout) < largest + (8 << 20), done.stdout


def test_loading_draws_no_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("dense")
    model.save_pretrained(tmp_path / "m")
    monkeypatch.setattr(r1grpo.model_state, "init_weights", None)
    assert same(Model.from_pretrained(tmp_path / "m"), model.state_dict())


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_bfloat16_model_comes_back_with_its_bits(name: str, tmp_path: Path) -> None:
    """Its files are bfloat16 too, and say so; what it computes with is what was stored."""
    model = make(name, dtype="bfloat16")
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["dtype"] == "bfloat16"
    with SafetensorsFile(tmp_path / "m/model.safetensors") as file:
        kinds = {name.rpartition(".")[2]: tensor.dtype for name, tensor in file.tensors.items()}
    assert kinds == ({"weight": "BF16", "bias": "BF16"} if name == "dense" else
                     {"weight": "BF16", "e_score_correction_bias": "F32"})
    loaded = Model.from_pretrained(tmp_path / "m", dtype="bfloat16")
    loaded.save_pretrained(tmp_path / "n")
    weights, others = ((tmp_path / one / "model.safetensors").read_bytes() for one in "mn")
    assert weights == others
    again = Model.from_pretrained(tmp_path / "n", dtype="bfloat16")
    first, second = (m.logprobs([[3, 4, 5]], [[6, 7, 39]])[0] for m in (loaded, again))
    assert first.tobytes() == second.tobytes()
