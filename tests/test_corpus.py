"""The base corpus: determinism, what its documents claim, its shares, and traces."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from r1grpo.data import document_row
from r1grpo.tasks import make_tokenizer, reflection_count, split_of
from r1grpo.tasks.corpus import CorpusConfig, documents
from r1grpo.tasks.countdown import countdown_key, make_countdown
from r1grpo.tasks.trace import (equations, equations_hold, has_repeats, is_readable,
                                rewrite_to_summary)
from r1grpo.tokenizer import extract_answer, is_wellformed, split_thinking
from r1grpo.verifiers import chain_value, verify_countdown

CONFIG = CorpusConfig()
DOCUMENTS = documents(6000, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def countdown_numbers(document):
    numbers, _, target = document.key.partition(":")[2].partition("=")
    return tuple(map(int, numbers.split())), int(target)


def test_a_seed_means_the_same_documents():
    assert documents(200, seed=0) == DOCUMENTS[:200]
    assert documents(200, seed=1) != DOCUMENTS[:200]


def test_train_problems_only():
    assert {split_of(d.key) for d in DOCUMENTS if d.key} == {"train"}
    assert all((d.key is None) == (d.kind == "drill") for d in DOCUMENTS)


def test_no_document_writes_a_chain_that_solves_a_held_out_problem():
    """Not even as a failed trial: the value of every chain of three small numbers is a train target."""
    found = 0
    for document in DOCUMENTS:
        for match in re.finditer(r"(?<![\w+*=-] )\b(\d+) ([-+*]) (\d+) = \d+ ([-+*]) (\d+) = \d+",
                                 document.completion):
            a, first, b, second, c = match.groups()
            value = chain_value([int(a), int(b), int(c)], [first, second])
            if max(int(a), int(b), int(c)) <= 20 and 1 <= value <= 100:
                found += 1
                assert split_of(countdown_key((int(a), int(b), int(c)), value)) == "train", document
    assert found > 3000


def test_documents_fit_and_round_trip(tokenizer):
    for document in DOCUMENTS:
        ids = tokenizer.encode(document.text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == document.text
        assert len(tokenizer.encode(document.completion)) <= 192
        assert ids[-1] == tokenizer.eos_token_id


def test_shares_are_those_of_the_config():
    kinds = Counter(d.kind for d in DOCUMENTS)
    countdown = sum(n for kind, n in kinds.items() if kind.startswith("countdown"))
    assert countdown / len(DOCUMENTS) == pytest.approx(CONFIG.countdown, abs=0.03)
    for style, share in zip(("direct", "one", "few", "many"), CONFIG.styles):
        assert kinds[f"countdown_{style}"] / countdown == pytest.approx(share, abs=0.03)
    chinese = sum(d.language == "zh" for d in DOCUMENTS)
    assert chinese / len(DOCUMENTS) == pytest.approx(CONFIG.chinese, abs=0.03)


def test_quality_is_uneven_as_configured():
    direct = [d for d in DOCUMENTS if d.kind == "countdown_direct"]
    right = [verify_countdown(d.completion.replace("<think> </think> <answer>", "")
                              .replace("</answer>", "").replace("<eos>", ""),
                              *countdown_numbers(d)).correct for d in direct]
    assert sum(right) / len(right) == pytest.approx(CONFIG.direct_right, abs=0.05)
    tagged = [is_wellformed(d.completion.removesuffix(" <eos>"), "zero") for d in direct]
    assert sum(tagged) / len(tagged) == pytest.approx(1 - CONFIG.direct_untagged, abs=0.05)
    styles = ("countdown_one", "countdown_few", "countdown_many")
    worked = [d for d in DOCUMENTS if d.kind in styles]
    shaped = [is_wellformed(d.completion.removesuffix(" <eos>"), "zero") for d in worked]
    assert sum(shaped) / len(shaped) == pytest.approx(1 - CONFIG.broken, abs=0.03)


def test_trials_are_distinct_and_wait_marks_retries():
    for document in DOCUMENTS:
        if document.kind != "countdown_many":
            continue
        thought = split_thinking(document.completion)[0]
        results = [chain[-1] for chain in equations(thought)]
        if equations_hold(thought):
            assert len(set(results)) == len(results)
            if thought.endswith(("yes", "对")):
                waits = sum(word in ("wait", "等等") for word in thought.split())
                assert waits == len(results) - 1


def test_a_clean_config_writes_only_right_wellformed_documents():
    clean = replace(CONFIG, arithmetic=0.0, drill=0.0, check=0.0, general=0.0, styles=(0.0, 0.3, 0.3, 0.4),
                    given_up=(0.0, 0.0, 0.0), false_yes=0.0, slip=0.0, broken=0.0, mixed=0.0)
    for document in documents(500, seed=2, config=clean):
        completion = document.completion.removesuffix(" <eos>")
        assert is_wellformed(completion, "zero")
        assert verify_countdown(extract_answer(completion, "zero"),
                                *countdown_numbers(document)).correct
        assert is_readable(split_thinking(completion)[0], document.language)


def test_a_corpus_without_self_correction_has_no_wait():
    control = replace(CONFIG, styles=(0.6, 0.4, 0.0, 0.0), given_up=(0.0, 0.0, 0.0), slip=0.0,
                      false_yes=0.0, general=0.0)
    assert sum(reflection_count(d.text) for d in documents(2000, 0, control)) == 0
    assert sum(reflection_count(d.text) for d in DOCUMENTS) > 1000


def test_drills_hold_and_solve_nothing_held_out(tokenizer):
    for document in DOCUMENTS:
        if document.kind == "drill":
            assert equations_hold(document.text)
            for chain in equations(document.text):
                numbers = tuple(sorted(int(chain[i]) for i in (0, 2, 6)))
                if max(numbers) <= 20 and 1 <= int(chain[8]) <= 100:
                    key = f"countdown:{' '.join(map(str, numbers))}={chain[8]}"
                    assert split_of(key) == "train"
            row = document_row(document, tokenizer)
            words = document.text.split()[len(row["prompt_ids"]):]
            before = document.text.split()[len(row["prompt_ids"]) - 1:]
            assert len(row["weights"]) == len(row["completion_ids"]) == len(words)
            assert row["weights"] == [float(word == "=") for word in before[:-1]]
            assert sum(row["weights"]) == document.text.count("=")


def test_checks_judge_by_the_target_and_only_verdicts_count(tokenizer):
    checks = [d for d in DOCUMENTS if d.kind == "check"]
    right = []
    for document in checks:
        target = countdown_numbers(document)[1]
        judged = document.completion.removesuffix(" <eos>").split(" ; ")
        for value, verdict in (part.removeprefix("= ").split() for part in judged):
            assert (verdict in ("yes", "对")) == (int(value) == target)
            right.append(int(value) == target)
        row = document_row(document, tokenizer)
        assert len(row["weights"]) == len(row["completion_ids"])
        assert sum(row["weights"]) == CONFIG.check_values
        assert row["weights"][:3] == [0.0, 0.0, 1.0] and row["weights"][-1] == 0.0
    assert sum(right) / len(right) == pytest.approx(CONFIG.check_right, abs=0.05)


# --- traces ----------------------------------------------------------------------------------

GOOD = "<think> try 7 + 5 = 12 * 2 = 24 no 等等 试 7 * 5 = 35 + 2 = 37 yes </think> " \
       "<answer> 7 * 5 + 2 </answer>"


def test_rewrite_translates_and_boxes():
    problem = make_countdown((2, 5, 7), 37, "zh").row("zero")
    assert rewrite_to_summary(GOOD, problem) == (
        "<think> 试 7 + 5 = 12 * 2 = 24 不对 等等 试 7 * 5 = 35 + 2 = 37 对 </think> "
        r"答案 是 \boxed{ 7 * 5 + 2 } 。")
    english = rewrite_to_summary(GOOD, make_countdown((2, 5, 7), 37, "en").row("zero"))
    assert is_wellformed(english, "r1") and "等等" not in english
    assert extract_answer(english, "r1") == "7 * 5 + 2"


@pytest.mark.parametrize("old, new", [
    ("* 5 + 2 <", "* 5 - 2 <"),                             # wrong answer
    ("</think> ", ""),                                      # broken format
    ("= 24", "= 25"),                                       # an equation that does not hold
    ("7 + 5 = 12 * 2 = 24", "7 * 5 = 35 + 2 = 37"),         # a trial twice
    ("yes", "yes yes"), ("try", "hello 你好 try"),          # repetition, mixed language
    ("try 7 + 5 = 12 * 2 = 24 no 等等 试 7 * 5 = 35 + 2 = 37 yes ", "")])    # nothing thought
def test_unreadable_traces_are_dropped(old, new):
    assert old in GOOD
    problem = make_countdown((2, 5, 7), 37, "en").row("zero")
    assert rewrite_to_summary(GOOD.replace(old, new), problem) is None


def test_equations_and_repeats():
    assert equations_hold("try 7 * 5 = 35 + 2 = 37 yes") and equations_hold("no numbers")
    for bad in ("7 * 5 = 36", "7 * 5", "7 * 5 =", "7 5 = 35", "= 3 + 4 7", "7 * 5 = 35 + 2"):
        assert not equations_hold(bad)
    assert has_repeats("no no") and not has_repeats("7 7 no wait")
