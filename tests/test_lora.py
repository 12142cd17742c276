"""Low-rank adapters: against the oracle of the merged weights, exactness, files, the trainers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models import batch, make
from op_testing import bits
from r1grpo import GRPOConfig, GRPOTrainer, LoraConfig, Model, SFTConfig, SFTTrainer, set_num_threads
from r1grpo.lora import merged
from r1grpo.safetensors_file import SafetensorsFile
from reference import Reference

NAMES = ["dense", "moe", "qwen3", "qwen3_moe", "llama_bias", "moe_yarn"]


def adapted(name: str, seed: int = 1, dtype: str = "float32", **options) -> Model:
    """A model with adapters that are not at their start: B would be 0 there."""
    model = make(name, dtype=dtype).add_adapter(LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
    rng, state = np.random.default_rng([seed, 11]), model.state_dict()
    for key, array in state.items():
        if ".lora_" in key:
            state[key] = (0.1 * rng.standard_normal(array.shape)).astype(np.float32)
    model.load_state_dict(state)
    return model


def split(state: dict[str, np.ndarray], scale: float
          ) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Merged weights in float64, and (A, B) by the name of their weight."""
    plain = {k: v.astype(np.float64) for k, v in state.items() if ".lora_" not in k}
    pairs = {}
    for key, down in state.items():
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            up = state[f"{stem}.lora_B.weight"].astype(np.float64)
            pairs[f"{stem}.weight"] = (down.astype(np.float64), up)
            plain[f"{stem}.weight"] = plain[f"{stem}.weight"] + scale * up @ down
    return plain, pairs


@pytest.mark.parametrize("name", NAMES)
def test_a_new_adapter_changes_no_bit(name):
    base = make(name)
    model = base.add_adapter(LoraConfig(r=4), seed=5)
    prompts, completions = batch()
    assert bits(model.logprobs(prompts, completions)) == bits(base.logprobs(prompts, completions))
    down = [v for k, v in model.state_dict().items() if k.endswith("lora_A.weight")]
    assert all(0.5 < np.abs(one).max() * np.sqrt(one.shape[-1]) <= 1.0 for one in down)


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_and_gradients_are_those_of_the_merged_weights(name):
    model, scale = adapted(name), 2.0
    merged, pairs = split(model.state_dict(), scale)
    reference = Reference(model.config.to_dict(), merged)
    prompts, completions = batch()
    got = model.logprobs(prompts, completions)
    for i, completion in enumerate(completions):
        if completion:
            np.testing.assert_allclose(got[i], reference.logprobs(prompts[i // 2], completion),
                                       atol=1e-4, rtol=5e-5)
    extra = {"mtp_coef": 0.3} if model.config.num_nextn_predict_layers else {}
    model.zero_grad()
    model.sft_gradient(prompts, completions, **extra)
    want = reference.loss_sft(prompts, completions, [np.ones(len(c)) for c in completions],
                              **extra).gradients
    found = model.grad_dict()
    assert set(found) == {k for k in model.state_dict() if ".lora_" in k}
    largest = max(np.abs(g).max() for g in found.values())
    for weight, (down, up) in pairs.items():
        stem, dw = weight.removesuffix(".weight"), want[weight]
        for key, exact in ((f"{stem}.lora_A.weight", scale * up.T @ dw),
                           (f"{stem}.lora_B.weight", scale * dw @ down.T)):
            error = np.abs(found[key] - exact).max()
            assert error <= 5e-4 * (np.abs(exact).max() + 1e-2 * largest), (key, error)
    assert reference.margin > 1e-5, "two experts are too close: choose another seed"


@pytest.mark.parametrize("name, dtype", [("dense", "float32"), ("moe", "float32"), ("moe", "bfloat16")])
def test_exactness(name, dtype):
    model = adapted(name, dtype=dtype)
    prompts, completions = batch()
    out = model.generate(prompts, 3, max_new_tokens=30, seed=1)
    assert bits(model.logprobs(prompts, out.completion_ids)) == bits(out.logprobs)
    seen = set()
    for threads, rows_at_a_time, recompute in ((1, None, False), (3, 40, False), (7, 100, True)):
        set_num_threads(threads)
        model.zero_grad()
        model.sft_gradient(prompts, completions, micro_batch_tokens=rows_at_a_time,
                           recompute=recompute)
        seen.add(tuple(bits(model.grad_dict().values())))
    set_num_threads(2)
    assert len(seen) == 1


def test_only_adapters_move_and_the_base_stays_in_reach():
    base = make("moe")
    model = base.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "o_proj", "up_proj"]))
    prompts, completions = batch()
    before = model.state_dict()
    for _ in range(2):
        model.zero_grad()
        model.sft_gradient(prompts, completions, mtp_coef=0.3)
        model.update(1e-2, weight_decay=0.1)
    after = model.state_dict()
    moved = {k for k in after if after[k].tobytes() != before[k].tobytes()}
    assert moved == {k for k in after if ".lora_" in k}
    assert {k.split(".")[-3] for k in moved} == {"q_proj", "o_proj", "up_proj"}
    now = model.logprobs(prompts, completions)
    assert bits(model.base_logprobs(prompts, completions)) == bits(base.logprobs(prompts, completions))
    assert bits(model.logprobs(prompts, completions)) == bits(now) != bits(
        base.logprobs(prompts, completions))
    assert model.plan().bytes_of("Adam's moments") < 0.2 * base.plan().bytes_of("Adam's moments")
    assert set(model.optimizer_state()) == {"step"} | {
        f"{m}.{p[0]}" for m in "mv" for p in model._params if ".lora_" in p[0]}


def test_merge_save_and_load(tmp_path):
    model = adapted("moe")
    prompts, completions = batch()
    want = np.concatenate(model.logprobs(prompts, completions))
    merged = model.merge()
    assert merged.lora is None
    np.testing.assert_allclose(np.concatenate(merged.logprobs(prompts, completions)), want, atol=1e-4)
    model.save_pretrained(tmp_path / "whole")
    whole = Model.from_pretrained(tmp_path / "whole")
    assert bits(whole.logprobs(prompts, completions)) == bits(merged.logprobs(prompts, completions))
    model.save_adapter(tmp_path / "adapter", base="somebody/base")
    again = make("moe").load_adapter(tmp_path / "adapter")
    assert bits(again.logprobs(prompts, completions)) == bits(model.logprobs(prompts, completions))
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    assert (found["peft_type"], found["r"], found["lora_alpha"]) == ("LORA", 3, 6)
    assert found["base_model_name_or_path"] == "somebody/base"
    with SafetensorsFile(tmp_path / "adapter" / "adapter_model.safetensors") as file:
        assert all(name.startswith("base_model.model.model.layers.") for name in file.tensors)
    make("moe").save_pretrained(tmp_path / "base")
    fresh = Model.from_pretrained(tmp_path / "base", lora=LoraConfig(r=3), seed=4)
    other = make("moe").add_adapter(LoraConfig(r=3), seed=4)
    assert bits(fresh.state_dict().values()) == bits(other.state_dict().values())


def test_adapters_name_no_base_that_has_changed(tmp_path):
    """Loaded on the folder that the model came from they would be another model, in silence."""
    make("dense").save_pretrained(tmp_path / "base")
    prompts, completions = batch()

    def named(model):
        model.save_adapter(tmp_path / "adapter")
        return json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())[
            "base_model_name_or_path"]

    def trained(model):
        model.sft_gradient(prompts, completions)
        model.update(0.1)
        return model

    base, new = Model.from_pretrained(tmp_path / "base"), LoraConfig(r=2)
    path, own = str(tmp_path / "base"), base.state_dict()
    assert named(base.add_adapter(new)) == named(base.clone().add_adapter(new)) == path
    adapted_base = trained(base.add_adapter(new))
    adapted_base.load_state_dict(adapted_base.state_dict())
    assert named(adapted_base) == named(adapted_base.clone()) == path  # the base has not changed
    again = Model.from_pretrained(tmp_path / "adapter")
    assert bits(again.logprobs(prompts, completions)) == bits(adapted_base.logprobs(prompts, completions))
    assert named(adapted_base.merge().add_adapter(new)) is None
    assert named(trained(base.clone()).add_adapter(new)) is None
    with pytest.raises(ValueError, match="does not name their base; load the base"):
        Model.from_pretrained(tmp_path / "adapter")
    base.load_state_dict(own)
    assert named(base.add_adapter(new)) is None


def test_a_merged_weight_is_a_chain_in_index_order():
    """No BLAS, whose bits hang on its threads: NumPy's scalars give the same, one by one."""
    rng = np.random.default_rng(3)
    weight, down, up = (rng.standard_normal(shape).astype(np.float32)
                        for shape in ((2, 150, 33), (2, 19, 33), (2, 150, 19)))
    got = merged(weight, down, up, 0.3)
    for e, o, i in ((0, 0, 0), (1, 63, 32), (1, 64, 5), (0, 149, 31)):
        chain = up[e, o, 0] * down[e, 0, i]
        for k in range(1, 19):
            chain = np.float32(chain + up[e, o, k] * down[e, k, i])
        assert got[e, o, i] == weight[e, o, i] + np.float32(0.3) * chain
    np.testing.assert_allclose(got, weight + 0.3 * (up.astype(float) @ down), atol=1e-5)


def test_a_folder_of_adapters_is_a_model(tmp_path):
    base, model = tmp_path / "base", adapted("moe")
    make("moe").save_pretrained(base)
    (base / "tokenizer.json").write_text("{}")
    prompts, completions = batch()
    model.save_adapter(tmp_path / "a", base=str(base))
    loaded = Model.from_pretrained(tmp_path / "a")
    assert loaded.lora.r == 3 and bits(loaded.state_dict().values()) == bits(model.state_dict().values())
    assert bits(loaded.logprobs(prompts, completions)) == bits(model.logprobs(prompts, completions))
    loaded.save_adapter(tmp_path / "again")  # it knows its base, and has its tokenizer
    assert (tmp_path / "again" / "tokenizer.json").read_text() == "{}"
    (tmp_path / "again" / "tokenizer.json").write_text('{"own": 1}')
    again = Model.from_pretrained(tmp_path / "again")
    again.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "tokenizer.json").read_text() == '{"own": 1}'
    again.merge().save_pretrained(tmp_path / "a")  # over the adapters: they must not be read again
    assert not (tmp_path / "a" / "adapter_config.json").exists()
    assert bits(Model.from_pretrained(tmp_path / "a").state_dict().values()) == \
        bits(Model.from_pretrained(tmp_path / "whole").state_dict().values())
    with pytest.raises(ValueError, match="holds adapters already"):
        Model.from_pretrained(tmp_path / "again", lora=LoraConfig())
    with pytest.raises(TypeError, match="expected an r1grpo.LoraConfig"):
        Model.from_pretrained(base, lora={"r": 3})
    model.save_adapter(tmp_path / "none")
    with pytest.raises(ValueError, match="does not name their base"):
        Model.from_pretrained(tmp_path / "none")
    model.save_adapter(tmp_path / "gone", base=str(tmp_path / "gone base"))
    with pytest.raises(FileNotFoundError, match="holds adapters of .*gone base"):
        Model.from_pretrained(tmp_path / "gone")


def test_a_trainer_takes_a_folder_of_adapters(tmp_path):
    make("dense").save_pretrained(tmp_path / "base")
    adapted("dense").save_adapter(tmp_path / "a", base=str(tmp_path / "base"))
    rows = [{"prompt_ids": [3, 4], "completion_ids": [5, 6, 7]}] * 4
    trainer = SFTTrainer(str(tmp_path / "a"), SFTConfig(max_steps=1, learning_rate=1e-2), rows)
    before = trainer.model.state_dict()
    list(trainer)
    after = trainer.model.state_dict()
    assert all((after[k] != before[k]).any() == (".lora_" in k) for k in after)
    fresh = SFTTrainer(str(tmp_path / "base"), SFTConfig(max_steps=1, seed=7), rows,
                       peft_config=LoraConfig(r=2)).model  # one model, not a copy of one
    assert bits(fresh.state_dict().values()) == bits(
        make("dense").add_adapter(LoraConfig(r=2), seed=7).state_dict().values())


def test_grpo_takes_the_base_as_its_reference():
    def share(prompts, completions, completion_ids, **columns):
        return [float(np.mean([i < 20 for i in ids])) for ids in completion_ids]

    def run(**options):
        args = GRPOConfig(num_generations=4, per_device_train_batch_size=8, max_completion_length=8,
                          max_steps=3, learning_rate=1e-2, beta=0.1, **options)
        return GRPOTrainer(make("dense"), share, args, [{"prompt_ids": [3, 4, 5]},
                                                        {"prompt_ids": [7, 8]}],
                           peft_config=LoraConfig(r=2))

    trainer = run()
    steps = list(trainer)
    assert trainer.reference is None and trainer.max_logprob_gap == 0.0 and trainer.gap_tokens > 0
    assert steps[0]["kl"] == 0.0 and steps[2]["kl"] > 0.0
    half = run()
    next(half)
    state = half.state_dict()
    assert not any(key.startswith("reference/") for key in state["arrays"])
    resumed = run()
    resumed.load_state_dict(state)
    list(resumed)
    assert bits(resumed.model.state_dict().values()) == bits(trainer.model.state_dict().values())
    with pytest.raises(ValueError, match="sync_ref_model.*adapters"):
        run(sync_ref_model=True)


def test_sft_with_adapters():
    rows = [{"prompt_ids": [3, 4], "completion_ids": [5, 6, 7]}] * 4
    trainer = SFTTrainer(make("dense"), SFTConfig(max_steps=8, learning_rate=3e-2,
                                                  per_device_train_batch_size=4), rows,
                         peft_config=LoraConfig(r=2))
    losses = [step["loss"] for step in trainer]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("options, words", [
    ({"r": 0}, "r is 0"), ({"r": True}, "r is True"), ({"lora_alpha": 0}, "lora_alpha is 0"),
    ({"lora_dropout": 0.1}, "lora_dropout is 0.1"), ({"bias": "all"}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"init_lora_weights": False}, "init_lora_weights is False"),
    ({"target_modules": ["q_prj"]}, "'q_prj'.*q_proj"), ({"target_modules": []}, "none")])
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        LoraConfig(**options)


def test_adapters_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="kv_b_proj.*has none"):
        make("dense").add_adapter(LoraConfig(target_modules=["q_proj", "kv_b_proj"]))
    model = adapted("dense")
    with pytest.raises(ValueError, match="has adapters already"):
        model.add_adapter(LoraConfig())
    with pytest.raises(ValueError, match="no adapter"):
        make("dense").save_adapter(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        make("dense").load_adapter(tmp_path)
    model.save_adapter(tmp_path / "a")
    with pytest.raises(ValueError, match="k_proj, v_proj: this model has none"):
        make("moe").load_adapter(tmp_path / "a")
    with pytest.raises(ValueError, match=r"does not fit the model: missing .*layers\.2.*q_proj"):
        make("qwen3_moe").load_adapter(tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    found = json.loads(config.read_text())
    for odd, words in (({"use_dora": True}, "sets use_dora"),
                       ({"rank_pattern": {"q_proj": 4}}, "sets rank_pattern"),
                       ({"init_lora_weights": "pissa_niter_4"}, "has changed the base"),
                       ({"bias": "all"}, "bias is 'all'"), ({"peft_type": "IA3"}, "no LoRA adapter")):
        config.write_text(json.dumps({**found, **odd}))
        with pytest.raises(ValueError, match=words):
            make("dense").load_adapter(tmp_path / "a")
    # what training alone asks for, and targets by a pattern
    config.write_text(json.dumps({**found, "lora_dropout": 0.05, "init_lora_weights": "gaussian",
                                  "target_modules": ".*_proj"}))
    assert bits(make("dense").load_adapter(tmp_path / "a").state_dict().values()) == \
        bits(model.state_dict().values())
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors"):
        make("dense").load_adapter(tmp_path / "a")


def test_the_base_is_asked_without_a_setting_that_others_see():
    """base_logprobs leaves the adapters out of one pass: a session that is open goes on."""
    model = adapted("dense")
    prompts, completions = batch()
    want = model.generate([[3, 4]], max_new_tokens=6, stop_token_ids=())
    session = model.session([[3, 4]], max_new_tokens=6, stop_token_ids=())
    session.run(2)
    model.base_logprobs(prompts, completions)
    session.run(6)
    assert bits(session.rollout().logprobs) == bits(want.logprobs)


def test_a_resume_shares_the_adapters_and_what_else_a_model_is():
    rows = [{"prompt_ids": [3, 4], "completion_ids": [5, 6, 7]}] * 4

    def run(dtype="float32", live=None, **options):
        model = make("dense", dtype=dtype)
        model.live_vocab = live or model.live_vocab
        return SFTTrainer(model, SFTConfig(max_steps=2), rows,
                          peft_config=LoraConfig(**{"r": 2, **options}))

    state = run().state_dict()
    run().load_state_dict(state)
    for changed, words in ((run(lora_alpha=9), "lora.*8.*->.*9"), (run("bfloat16"), "dtype.*bfloat16"),
                           (run(live=20), "live_vocab.*-> 20")):
        with pytest.raises(ValueError, match=f"other options: .*{words}"):
            changed.load_state_dict(state)
    del state["meta"]["model"]  # as states were written before
    run().load_state_dict(state)


def test_the_routing_bias_belongs_to_the_frozen_weights():
    rows = [{"prompt_ids": [3, 4], "completion_ids": [5, 6, 7]}]
    with pytest.raises(ValueError, match="router_bias_rate"):
        SFTTrainer(make("moe"), SFTConfig(max_steps=1, router_bias_rate=1e-3), rows,
                   peft_config=LoraConfig(r=2))


def test_an_adapter_that_lies_about_its_rank_takes_no_memory(tmp_path, monkeypatch):
    model = adapted("dense")
    model.save_adapter(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": (1 << 20) - 1}))
    base = make("dense")
    monkeypatch.setattr(Model, "add_adapter", lambda *_: pytest.fail("memory for it was taken"))
    with pytest.raises(ValueError, match=r"does not fit.*lora_A.*1048575"):
        base.load_adapter(tmp_path / "a")


def test_a_score_head_wants_merged_weights():
    with pytest.raises(ValueError, match="merge"):
        adapted("dense").add_score_head()
