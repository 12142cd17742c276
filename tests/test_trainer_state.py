"""A refused state leaves a trainer as it was, wherever in the state the fault lies."""

import numpy as np
import pytest
from models import make

from r1grpo import GRPOConfig, GRPOTrainer, LoraConfig, SFTConfig, SFTTrainer

ROWS = [{"prompt_ids": [3, 4, 5]}, {"prompt_ids": [7, 8]}]


def spread(prompts, completions, completion_ids, **columns):
    return [float(len(set(ids))) for ids in completion_ids]


def grpo(rows=ROWS):
    return GRPOTrainer(make("dense"), spread, GRPOConfig(
        num_generations=4, per_device_train_batch_size=4, steps_per_generation=2, beta=0.1,
        max_completion_length=6, max_steps=6, learning_rate=1e-2), rows)


def sft(rows=()):
    return SFTTrainer(make("dense"), SFTConfig(max_steps=6, learning_rate=1e-2), rows or [
        {"prompt_ids": [3], "completion_ids": [4, 5]}])


def adapted(rows=(), base=0):
    args = SFTConfig(max_steps=6, learning_rate=1e-2)
    return SFTTrainer(make("moe", seed=base), args, rows or [
        {"prompt_ids": [3], "completion_ids": [4, 5]}], peft_config=LoraConfig(r=2))


def whole(trainer):
    """All that a trainer is, as bytes."""
    state = trainer.state_dict()
    return {k: v.tobytes() for k, v in state["arrays"].items()}, state["meta"]


def fault(kind, arrays):
    prefix, what = kind.split()
    name = [one for one in arrays if one.startswith(prefix)][-1]
    if what == "gone":
        del arrays[name]
    else:
        arrays[name] = np.zeros(3, np.float32)


@pytest.mark.parametrize("make_one, kind", [
    (sft, "model/ gone"), (adapted, "model/ gone"), (sft, "optimizer/v gone"), (sft, "optimizer/m other"),
    (grpo, "optimizer/step gone"), (grpo, "model/ other"), (grpo, "reference/ gone"),
    (grpo, "reference/ other"), (grpo, "rollout/advantages gone")])
def test_a_state_with_a_fault_changes_nothing(make_one, kind):
    one, two = make_one(), make_one()
    for _ in range(3):
        next(one)
    next(two)
    state, before = one.state_dict(), whole(two)
    fault(kind, state["arrays"])
    with pytest.raises((ValueError, KeyError)):
        two.load_state_dict(state)
    assert whole(two) == before
    two.load_state_dict(one.state_dict())
    list(one), list(two)
    assert whole(one) == whole(two)


@pytest.mark.parametrize("make_one, rows", [
    (grpo, ROWS[:1]), (sft, [{"prompt_ids": [3], "completion_ids": [4]}])])
def test_other_data_change_nothing(make_one, rows):
    one, two = make_one(), make_one(rows)
    next(one), next(two)
    before = whole(two)
    with pytest.raises(ValueError, match="another train_dataset"):
        two.load_state_dict(one.state_dict())
    assert whole(two) == before


def test_the_state_of_adapters_holds_them_alone_and_knows_its_base():
    one, two = adapted(), adapted()
    next(one)
    state = one.state_dict()
    names = [name for name in state["arrays"] if name.startswith("model/")]
    assert names and all(".lora_" in name for name in names)
    two.load_state_dict(state)
    list(one), list(two)
    assert whole(one) == whole(two)
    for name, array in one.model.state_dict().items():
        assert array.tobytes() == two.model.state_dict()[name].tobytes(), name
    with pytest.raises(ValueError, match="other options: base"):
        adapted(base=1).load_state_dict(state)
