"""Models by their folders where rewards are: reward functions as in TRL, RewardTrainer, rejection sampling."""

import dataclasses
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from command_run import make_folder

from r1grpo import (EvalConfig, GRPOConfig, GRPOTrainer, Model, ModelConfig, RewardConfig, RewardTrainer,
                    SFTTrainer, Tokenizer)
from r1grpo.config import ConfigError
from r1grpo.evaluate import Graders, check, evaluate
from r1grpo.rejection import rejection_sample
from r1grpo.reward_model import TextReward, reward_functions
from r1grpo.scoring import Rewards

PAIRS = [{"prompt": f"what is {i} ?", "chosen": f"it is {i}", "rejected": "the answer"} for i in range(8)]
CHAT = [{"role": "user", "content": "what is 1 ?"}]
ARGS = GRPOConfig(num_generations=4, per_device_train_batch_size=4, max_completion_length=5, max_steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy; and a reward model with another tokenizer, trained from a policy's folder."""
    path = tmp_path_factory.mktemp("rewards")
    make_folder(path / "policy", 0)
    make_folder(path / "start", 1)
    trainer = RewardTrainer(str(path / "start"), RewardConfig(
        per_device_train_batch_size=8, max_steps=30, learning_rate=1e-2, seed=3), PAIRS, PAIRS)
    trainer.train()
    assert trainer.evaluate()["accuracy"] == 1.0
    trainer.save_model(path / "judge")
    return path


def test_reward_trainer_adds_a_head_drawn_from_its_seed(folder):
    def head(seed):
        args = RewardConfig(max_steps=1, seed=seed)
        return RewardTrainer(str(folder / "start"), args, PAIRS).model.state_dict()["score.weight"]

    assert (head(3) == head(3)).all() and (head(3) != head(4)).any()
    kept = RewardTrainer(str(folder / "judge"), RewardConfig(max_steps=1), PAIRS).model
    stored = Model.from_pretrained(folder / "judge")
    assert (kept.state_dict()["score.weight"] == stored.state_dict()["score.weight"]).all()
    with pytest.raises(TypeError, match="RewardTrainer: args is a .*GRPOConfig"):
        RewardTrainer(str(folder / "start"), ARGS, PAIRS)


def test_reward_trainer_takes_conversations_with_the_prompt_implied(folder):
    def say(text, role="assistant"):
        return {"role": role, "content": text}

    def trained(row, **options):
        args = RewardConfig(max_steps=1, per_device_train_batch_size=1, **options)
        return RewardTrainer(str(folder / "start"), args, [row]).examples

    turns = [*CHAT, say("it is 1"), say("what is 2 ?", "user")]
    for prompt in (CHAT, turns):
        want = trained({"prompt": prompt, "chosen": "it is 2", "rejected": "the answer"})
        implied = {"chosen": [*prompt, say("it is 2")], "rejected": [*prompt, say("the answer")]}
        given = {"prompt": prompt, "chosen": [say("it is 2")], "rejected": [say("the answer")]}
        assert trained(implied) == trained(given) == want
    judged = {"prompt": CHAT, "completion": [say("it is 1")], "label": 1}
    assert trained(judged, kind="pointwise") == \
        trained({**judged, "completion": "it is 1"}, kind="pointwise")
    for chosen, rejected, words in (
            ([say("it is 1")], [say("the answer")], "row 0 has no 'prompt', and chosen and rejected"),
            (turns, turns, "chosen has no message after the prompt"),
            ([*CHAT, say("it is 1")], [*CHAT, say("it"), CHAT[0]],
             "rejected has 'assistant', 'user' after the prompt"),
            ([*CHAT, say(None)], [*CHAT, say("it is 1")], "chosen has 'assistant' .*with text")):
        with pytest.raises(ValueError, match=words):
            trained({"chosen": chosen, "rejected": rejected})


def test_a_folder_among_reward_functions_scores_the_whole_text(folder):
    def short(prompts, completions, completion_ids, **columns):
        return [-float(len(ids)) for ids in completion_ids]

    rows = [{"prompt": "what is 1 ?"}]
    trainer = GRPOTrainer(str(folder / "policy"), [str(folder / "judge"), short], ARGS, rows)
    metrics = next(trainer)
    assert {"rewards/judge/mean", "rewards/short/mean"} <= metrics.keys()
    judge = Model.from_pretrained(folder / "judge")
    tokenizer = Tokenizer.from_pretrained(folder / "judge")
    texts = [row["prompt"] + row["completion"] for row in trainer.completion_rows()]
    want = judge.score([tokenizer.encode_completion(text) for text in texts])
    assert [row["rewards"]["judge"] for row in trainer.completion_rows()] == want.tolist()
    chats = GRPOTrainer(str(folder / "policy"), str(folder / "judge"), ARGS, [{"prompt": CHAT}])
    next(chats)
    row = next(chats.completion_rows())
    ids = tokenizer.apply_chat_template(
        [*CHAT, {"role": "assistant", "content": row["completion"]}], add_generation_prompt=False)
    assert row["rewards"]["judge"] == judge.score([ids])[0]


def test_folders_of_one_name_are_told_apart_by_what_is_before_it(folder, tmp_path):
    for run in ("a", "b"):
        shutil.copytree(folder / "judge", tmp_path / run / "final")
    found = reward_functions([tmp_path / "a" / "final", str(tmp_path / "b" / "final"), folder / "judge"])
    assert Rewards(found).names == ["a_final", "b_final", "judge"]
    with pytest.raises(ValueError, match="two reward functions have one name"):
        Rewards(reward_functions(2 * [folder / "judge"]))


def test_contexts_are_compared_before_a_run(folder, tmp_path):
    config = ModelConfig.from_dict({**Model.from_pretrained(folder / "judge").config.to_dict(),
                                    "max_position_embeddings": 24})
    judge, tokenizer = Model(config, seed=0), Tokenizer.from_pretrained(folder / "judge")

    def make(prompt, length):
        args = dataclasses.replace(ARGS, max_completion_length=length)
        return GRPOTrainer(str(folder / "policy"), judge, args, [{"prompt": prompt}],
                           reward_processing_classes=tokenizer)

    prompt = "what is 1 ?"
    room = 24 - len(tokenizer.encode(prompt))
    make(prompt, room)
    with pytest.warns(UserWarning, match=f"'Model' reads 24 tokens, .* max_completion_length of {room} is"):
        make(prompt, room + 1)
    with pytest.raises(ConfigError, match="reward 'Model' reads 24 tokens, the longest prompt has"):
        make(5 * prompt, 4)


def test_tokenizers_of_reward_models_may_be_given(folder):
    judge = Model.from_pretrained(folder / "judge")
    own, other = Tokenizer.from_pretrained(folder / "judge"), SimpleNamespace(encode=lambda text: [5, 6])

    def score(reward):
        return reward(prompts=["what is "], completions=["1 ?"], completion_ids=[[]])

    [stored] = reward_functions(str(folder / "judge"))
    [given] = reward_functions(judge, own)
    [changed, plain] = reward_functions([judge, len], [other, None])
    assert score(stored) == score(given) != score(changed) and plain is len
    with pytest.raises(ConfigError, match="has 1 entries for 2 reward functions"):
        reward_functions([judge, len], [own])
    with pytest.raises(ConfigError, match="has no tokenizer; give reward_processing_classes"):
        reward_functions(judge)
    with pytest.raises(ConfigError, match="policy has no scalar head"):
        reward_functions(folder / "policy")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        GRPOTrainer(str(folder / "policy"), "nowhere", ARGS, [{"prompt": "1"}])
    with pytest.raises(ConfigError, match="'judge' reads text"):
        TextReward(judge, own, "judge")(prompts=[[1, 2]], completions=["1"], completion_ids=[[]])


def test_rejection_sampling_takes_a_folder(folder):
    def right(prompts, completions, completion_ids, **columns):
        return [1.0] * len(completions)

    args = EvalConfig(k=2, max_completion_length=4, stop_token_ids=tuple(range(100)))
    rows = [{"prompt": "what is 1 ?"}]
    got = rejection_sample(str(folder / "policy"), rows, args, correct=right)
    model, tokenizer = (one.from_pretrained(folder / "policy") for one in (Model, Tokenizer))
    model.live_vocab = len(tokenizer)
    want = rejection_sample(model, rows, args, correct=right, processing_class=tokenizer, source="policy")
    assert got.rows and got == want and got.rows[0]["source"]["model"] == "policy"


def test_a_reward_model_is_no_policy(folder):
    rows = [{"prompt": "what is 1 ?", "completion": "it is 1"}]
    with pytest.raises(ValueError, match="GRPOTrainer: the model is a reward model"):
        GRPOTrainer(str(folder / "judge"), lambda completions, **_: [0.0] * len(completions), ARGS, rows)
    with pytest.raises(ValueError, match="SFTTrainer: the model is a reward model"):
        SFTTrainer(str(folder / "judge"), None, rows)
    for ask in (evaluate, partial(rejection_sample, correct=lambda completions, **_: [1.0])):
        with pytest.raises(ValueError, match="the model is a reward model"):
            ask(str(folder / "judge"), rows)


def test_evaluation_takes_a_folder(folder):
    args = EvalConfig(k=2, max_completion_length=4, stop_token_ids=tuple(range(100)))
    rows = [{"prompt": "what is 1 ?"}]
    graders = Graders(*3 * [lambda completions, **_: [1.0] * len(completions)])
    got = evaluate(str(folder / "policy"), rows, args, graders=graders)
    model, tokenizer = (one.from_pretrained(folder / "policy") for one in (Model, Tokenizer))
    model.live_vocab = len(tokenizer)
    assert got == evaluate(model, rows, args, tokenizer, graders)
    assert check(str(folder / "policy"), got.samples, args) == []


def test_a_classifier_of_transformers_is_a_reward_model(tmp_path):
    """Its config does not say score_head, its file has no head of tokens; the score is its logit."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    for family, options in (("Llama", {}), ("Qwen2", {"tie_word_embeddings": True})):
        config = getattr(transformers, f"{family}Config")(
            vocab_size=40, hidden_size=32, intermediate_size=36, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, num_labels=1,
            initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=1, **options)
        theirs = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
        theirs.save_pretrained(tmp_path / family)
        model = Model.from_pretrained(tmp_path / family)
        assert model.config.score_head
        ids = [[3, 17, 39, 5], [7, 8, 9, 10]]
        with torch.no_grad():
            want = theirs(torch.tensor(ids)).logits[:, 0].numpy()
        np.testing.assert_allclose(model.score(ids), want, atol=1e-4)
