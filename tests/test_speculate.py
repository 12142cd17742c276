"""Speculative decoding: the bits of plain decoding (E4), and guesses that are the MTP module's own."""

from __future__ import annotations

import numpy as np
import pytest

import r1grpo.model
from models import V, configs, make
from r1grpo import GRPOConfig, GRPOTrainer, LoraConfig, Model, ModelConfig, Rollout, _core, set_num_threads
from r1grpo.config import Sampling
from r1grpo.rollout import rollout
from r1grpo.tasks import make_tokenizer, sample_problems
from r1grpo.tokenizer import WordTokenizer

LENGTHS = (1, 2, 63, 64, 65, 128, 5)  # around the blocks of the KV cache
SAMPLING = [{"temperature": 0.0}, {}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.02}]


def prompts(lengths=LENGTHS) -> list[list[int]]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, V, n).tolist() for n in lengths]


def flattened(model: Model, factor: float = 0.1) -> Model:
    """Smaller matrices: distributions near uniform, so that one random number mostly gives the trunk and
    the MTP module the same token."""
    model.load_state_dict({name: array * np.float32(factor if array.ndim > 1 else 1.0)
                           for name, array in model.state_dict().items()})
    return model


@pytest.fixture(scope="module", params=["moe", "moe_groups", "dense_mtp", "dense_window"])
def models(request: pytest.FixtureRequest) -> list[Model]:
    """One whose guesses are mostly wrong, one whose are mostly right, and that in bf16."""
    name = request.param
    return [make(name), flattened(make(name)), flattened(make(name, dtype="bfloat16"))]


def assert_same(plain: Rollout, speculative: Rollout) -> None:
    assert plain.finish_reasons == speculative.finish_reasons
    for name in ("completion_ids", "logprobs"):
        for one, other in zip(getattr(plain, name), getattr(speculative, name), strict=True):
            assert one.tobytes() == other.tobytes()
    assert plain.drafts == (0, 0)


@pytest.mark.parametrize("how", SAMPLING, ids=["greedy", "free", "filtered"])
@pytest.mark.parametrize("group, slots, longest", [
    (1, 128, 30), (3, 4, 33), (2, 5, 1), (2, 3, 2), (1, 128, 3), (2, 6, 200)])
def test_the_bits_of_plain_decoding(models, how, group, slots, longest, monkeypatch) -> None:
    """Groups on shared prompts, slots handed on, max_new_tokens reached at a guess and before it, the
    context (160) filled, sequences that end in the middle of a step."""
    monkeypatch.setattr(r1grpo.model, "_SLOTS", slots)
    stop = (1, 7, 30) if longest > 30 else ()
    for model in models:
        both = [model.generate(prompts(), group, longest, seed=3, stop_token_ids=stop,
                               speculative=speculative, **how) for speculative in (False, True)]
        assert_same(*both)
        guessed, right = both[1].drafts
        assert right <= guessed and (guessed > 0) == (longest > 2)


def test_right_and_wrong_guesses_are_both_among_them(models) -> None:
    """Or the test above would have compared nothing."""
    seldom, mostly, bf16 = (model.generate(prompts(), 2, 40, speculative=True, stop_token_ids=()).drafts
                            for model in models)
    assert 0 < seldom[1] < 0.5 * seldom[0]
    for guessed, right in (mostly, bf16):
        assert 0.4 * guessed < right < guessed


@pytest.fixture(scope="module", params=["moe", "dense_mtp", "dense_window"])
def trained(request: pytest.FixtureRequest) -> Model:
    """Has learnt to count in steps of 1 to 3, more or less, and its MTP module too."""
    model, rng = Model(configs()[request.param], seed=0), np.random.default_rng(5)
    for _ in range(60):
        first, stride = rng.integers(0, V, 16), rng.integers(1, 4, 16)
        ids = (first[:, None] + stride[:, None] * np.arange(24)) % V
        model.zero_grad()
        model.sft_gradient(ids[:, :2].tolist(), ids[:, 2:].tolist(), mtp_coef=1.0)
        model.update(learning_rate=0.01)
    return model


def counting(length: int, seed: int) -> list[int]:
    return [(seed + (1 + seed % 3) * i) % V for i in range(length)]


def walk(model: Model, prompt: list[int], ids: np.ndarray) -> tuple[int, int]:
    """Guesses and right ones of greedy decoding, as training's MTP module sees them: `mtp_accept` of
    every token alone."""
    guessed = right = 0
    at = 1  # the first token has no guess
    while at + 2 <= len(ids):
        mask = np.zeros(len(ids), np.float32)
        mask[at] = 1.0
        hit = model.sft_gradient([prompt], [ids], [mask], mtp_coef=0.5).stats["mtp_accept"]
        guessed, right, at = guessed + 1, right + int(hit), at + 1 + int(hit)
    return guessed, right


@pytest.mark.parametrize("length", [1, 63, 64, 65])
def test_guesses_are_those_of_the_trained_module(trained: Model, length: int) -> None:
    """Its keys and values are at the positions that training gives them, the prompt's last one and those
    behind a wrong guess too."""
    total = np.zeros(2, int)
    for seed in range(4):
        prompt = counting(length, seed)
        done = trained.generate([prompt], 1, 40, temperature=0.0, stop_token_ids=(), speculative=True)
        assert done.drafts == walk(trained, prompt, done.completion_ids[0])
        total += done.drafts
    assert 0 < total[1] < total[0]


@pytest.mark.parametrize("length", [63, 64, 65, 128])
def test_guesses_do_not_depend_on_the_company(trained: Model, length: int, monkeypatch) -> None:
    """A generation writes the module's keys from the prompt's last position on: not into a shared block."""
    drafts = []
    for slots in (1, 8):
        monkeypatch.setattr(r1grpo.model, "_SLOTS", slots)
        session = trained.session([counting(length, 1)], 8, 30, stop_token_ids=(), speculative=True,
                                  temperature=2.0)
        session.run(1 << 20)
        drafts.append(session.rollout().drafts)
    assert drafts[0] == drafts[1]


def test_training_sees_the_same_log_probs() -> None:
    model = flattened(make("moe"))
    done = model.generate(prompts(), 2, 30, speculative=True, stop_token_ids=())
    for one, other in zip(done.logprobs, model.logprobs(prompts(), done.completion_ids), strict=True):
        assert one.tobytes() == other.tobytes()


def test_threads_and_slices_change_nothing() -> None:
    model = flattened(make("moe_groups"))
    plain = model.generate(prompts(), 2, 40, stop_token_ids=(1,), seed=4)
    try:
        for threads in (1, 3):
            set_num_threads(threads)
            session = model.session(prompts(), 2, 40, stop_token_ids=(1,), seed=4, speculative=True)
            for n in [1, 2, 3, 5, 16, *[7] * 20]:
                before = session._length.copy()
                session.run(n)
                assert (session._length - before).max() <= n
            assert session.done
            assert_same(plain, session.rollout())
    finally:
        set_num_threads(2)


def test_an_interrupted_step_is_run_again() -> None:
    """Allocations fail, those of the guesses too: the tokens of that step come with the next call."""
    model = flattened(make("dense_mtp"))
    plain = model.generate(prompts(), 1, 30, stop_token_ids=(), seed=6)
    session = model.session(prompts(), 1, 30, stop_token_ids=(), seed=6, speculative=True)
    failed = set()
    for n in range(200):
        _core.alloc_fail_at(n % 13 + 1)
        try:
            session.run(2)
        except MemoryError as error:
            failed.add(str(error).split(" for ")[1])
        finally:
            _core.alloc_fail_at(0)
    assert session.done and any("guesses" in place for place in failed)
    assert_same(plain, session.rollout())


def test_gradients_beside_a_session_change_nothing(monkeypatch) -> None:
    """One slot, so that a step may begin with a fresh sequence whose prompt ran long before: the module's
    adapters must not work in the buffers of the gradient, which here are gone when memory runs out."""
    monkeypatch.setattr(r1grpo.model, "_SLOTS", 1)
    model = make("dense_mtp").add_adapter(LoraConfig(r=3), seed=2)
    rng = np.random.default_rng(8)
    model.load_state_dict({name: array + 0.1 * rng.standard_normal(array.shape).astype(np.float32)
                           if ".lora_B." in name else array for name, array in model.state_dict().items()})
    plain = model.generate([[3, 4, 5]], 4, 6, stop_token_ids=(), seed=5)
    session = model.session([[3, 4, 5]], 4, 6, stop_token_ids=(), seed=5, speculative=True)
    while not session.done:
        session.run(1)
        model.sft_gradient([[1]], [[2, 3]])
        _core.alloc_fail_at(1)
        with pytest.raises(MemoryError, match="out of memory for activations"):
            model.sft_gradient([[1]], [[2] * 20])
        _core.alloc_fail_at(0)
    assert_same(plain, session.rollout())


def test_a_sequence_cut_between_slices_ends_there() -> None:
    model = flattened(make("moe"))
    plain = model.generate(prompts(), 2, 40, stop_token_ids=(), seed=9)
    session = model.session(prompts(), 2, 40, stop_token_ids=(), seed=9, speculative=True)
    session.run(9)
    for i in (0, 3, 4):
        session.stop(i, 5)
    while not session.done:
        session.run(16)
    for i, (ids, all_ids) in enumerate(zip(session.rollout().completion_ids, plain.completion_ids)):
        assert ids.tolist() == all_ids.tolist()[:5 if i in (0, 3, 4) else 40]


def test_rollouts_with_stop_strings() -> None:
    tokenizer = WordTokenizer([*"abcdefghijklmnopqrstuvwxyz"])
    model = flattened(Model({**make("dense_mtp").config.to_dict(), "vocab_size": tokenizer.vocab_size}))
    ids = [tokenizer.encode("a b c"), tokenizer.encode("d")]
    both = [rollout(model, ids, 8, Sampling(40, stop_token_ids=(), speculative=speculative), ("e", "q r"),
                    tokenizer, seed=2) for speculative in (False, True)]
    assert_same(*both)
    assert both[0].texts == both[1].texts and "stop" in both[1].finish_reasons
    assert both[1].drafts[1] > 0
    joined = both[1].join([both[1].select([0]), both[1]])
    assert joined.drafts == (2 * both[1].drafts[0], 2 * both[1].drafts[1])


def test_a_trainer_logs_how_many_guesses_are_right() -> None:
    tokenizer = make_tokenizer()
    model = flattened(Model(ModelConfig.tiny_moe(tokenizer.vocab_size, tokenizer.eos_token_id)))
    args = GRPOConfig(num_generations=4, per_device_train_batch_size=8, max_completion_length=24,
                      max_steps=1, speculative=True)
    trainer = GRPOTrainer(model, [lambda completions, **_: [float(len(c)) for c in completions]], args,
                          train_dataset=[p.row("zero") for p in sample_problems("train", 8, seed=0)],
                          processing_class=tokenizer)
    metrics = next(iter(trainer))
    assert 0 < metrics["speculative_acceptance"] < 1
    assert metrics["max_logprob_gap"] == 0.0 and metrics["gap_tokens"] > 0


def test_a_model_without_the_module_is_refused() -> None:
    with pytest.raises(ValueError, match="speculative=True needs a multi-token-prediction module"):
        make("dense").generate([[1]], speculative=True)


def test_the_plan_counts_the_module() -> None:
    config = make("moe").config
    plain, more = (r1grpo.model.plan_memory(config, training=False, prompts=4, prompt_length=60,
                                            max_new_tokens=40, speculative=speculative)
                   for speculative in (False, True))
    layers = config.num_hidden_layers
    assert more.bytes_of("sampling: KV") * layers == plain.bytes_of("sampling: KV") * (layers + 1)
    assert more.bytes_of("sampling: lists") > plain.bytes_of("sampling: lists")
