"""Layouts: what a row of every published form becomes, and how rows that do not fit are answered."""

from __future__ import annotations

import pytest

from r1grpo.layouts import LAYOUTS, as_messages, choose_layout
from r1grpo.rows import load_rows
from real_data import data_file

USER = [{"role": "user", "content": "2 + 2?"}]
ROWS = {  # layout -> (row of theirs, row of ours)
    "gsm8k": ({"question": "q", "answer": "a #### b\n#### 1,080 ", "id": 3},
              {"prompt": "q", "answer": "1,080", "solution": "a #### b\n#### 1,080 ", "id": 3}),
    "math": ({"problem": "p", "solution": r"so \boxed{\frac{1}{2}}.", "level": 5},
             {"prompt": "p", "answer": r"\frac{1}{2}", "level": 5,
              "solution": r"so \boxed{\frac{1}{2}}."}),
    "svamp": ({"ID": "x", "Body": "A. If B ", "Question": "How many?", "Answer": 51.0},
              {"ID": "x", "prompt": "A. If B, How many?", "answer": "51"}),
    "mbpp": ({"text": "Add.", "code": "c", "test_list": ["assert f(1)", "assert f(2)"],
              "test_setup_code": "x = 1", "task_id": 1},
             {"prompt": "Add.\n\nWrite Python code that passes these tests:\n\nassert f(1)\n"
                        "assert f(2)", "tests": ["x = 1\nassert f(1)", "x = 1\nassert f(2)"],
              "solution": "c", "task_id": 1}),
    "humaneval": ({"prompt": "def f():", "test": "def check(c): ...", "entry_point": "f",
                   "canonical_solution": "  return 1", "task_id": "h"},
                  {"prompt": "def f():", "tests": ["def check(c): ...\ncheck(f)"],
                   "solution": "  return 1", "entry_point": "f", "task_id": "h"}),
    "verl": ({"prompt": USER, "reward_model": {"style": "rule", "ground_truth": "4"},
              "data_source": "d", "extra_info": {"index": 7}},
             {"prompt": USER, "answer": "4", "data_source": "d", "extra_info": {"index": 7}}),
    "sharegpt": ({"conversations": [{"from": "human", "value": "2 + 2?"},
                                    {"from": "gpt", "value": "4"}], "system": "be brief"},
                 {"messages": [{"role": "system", "content": "be brief"}, *USER,
                               {"role": "assistant", "content": "4"}]}),
    "trl": ({"prompt": USER, "solution": "4"}, {"prompt": USER, "solution": "4"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_row_of_every_layout(name):
    theirs, ours = ROWS[name]
    before = repr(theirs)
    for layout in (None, name):
        rows = load_rows([theirs], layout=layout)
        assert rows == [ours] and rows.layout == name
        assert ("found by its columns" in rows.note) is (layout is None)
    assert LAYOUTS[name].apply(theirs) == ours
    assert repr(theirs) == before


@pytest.mark.parametrize("row, answer", [
    ({"problem": "p", "answer": " 3 "}, "3"), ({"problem": "p", "answer": 2.5}, "2.5"),
    ({"problem": "p", "answer": 7, "solution": r"\boxed{8}"}, "7"),
    ({"problem": "p", "answer": " "}, None), ({"problem": "p", "solution": "proof"}, None),
    ({"problem": "p", "answer": None, "solution": r"\boxed{8}"}, "8"),
    ({"prompt": "p", "reward_model": {"ground_truth": ["a", "b"]}}, ["a", "b"])])
def test_answers(row, answer):
    assert load_rows([row])[0]["answer"] == answer


def test_rows_without_an_answer_are_counted():
    rows = load_rows([{"problem": "p", "answer": "1"}, {"problem": "q", "answer": None}])
    assert "1 of them have no answer to check" in rows.note
    assert "no answer" not in load_rows([{"prompt": "p"}]).note


def test_other_forms_of_mbpp_and_of_plain_rows():
    row = {"prompt": "Add.", "code": "c", "test_imports": ["import math"], "test_list": ["assert 1"]}
    assert load_rows([row])[0]["tests"] == ["import math\nassert 1"]
    assert load_rows([{"text": "a", "test_list": ["assert 1"]}])[0]["tests"] == ["assert 1"]
    for row in ({"text": "a"}, {"messages": USER}, {"prompt_ids": [1], "completion_ids": [2]},
                {"prompt": "a", "completion": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}):
        assert load_rows([row]) == [row] and load_rows([row]).layout == "trl"


# --- columns ---------------------------------------------------------------------------------

def test_columns_are_renamed_first():
    row = {"q": "why?", "gold": "4", "info": {"n": 1}, "x.y": 2}
    assert load_rows([row], columns={"prompt": "q", "answer": "gold", "n": "info.n", "z": "x.y"}) \
        == [{"info": {"n": 1}, "prompt": "why?", "answer": "4", "n": 1, "z": 2}]
    assert load_rows([{"q": "a", "answer": "#### 4"}], columns={"question": "q"}).layout == "gsm8k"
    swapped = load_rows([{"prompt": "a", "answer": "b"}],
                        columns={"prompt": "answer", "answer": "prompt"})
    assert swapped == [{"prompt": "b", "answer": "a"}]


@pytest.mark.parametrize("row, options, message", [
    ({"a": 1, "b": 2}, {}, "row 0: the columns are a, b; no layout of gsm8k, .*columns="),
    ({"question": "q", "answer": "4"}, {}, "the columns are question, answer; no layout"),
    ({"question": "q", "answer": "####", "problem": "p"}, {}, "that may be gsm8k or math, give lay"),
    ({"prompt": "p"}, {"layout": "gsm"}, "unknown layout 'gsm', did you mean 'gsm8k'"),
    ({"question": "q", "answer": "4"}, {"layout": "gsm8k"}, "row 0: 'answer' has no '####'"),
    ({"question": "q"}, {"layout": "gsm8k"}, "'gsm8k' needs the column 'answer'"),
    ({"prompt": "q"}, {"layout": "verl"}, "'verl' needs the column 'reward_model'; found prompt"),
    ({"prompt": "q", "reward_model": {}}, {"layout": "verl"}, "has no field 'ground_truth'"),
    ({"x": "q"}, {"layout": "trl"}, "'trl' needs one of the columns prompt, messages"),
    ({"q": 1}, {"columns": {"prompt": "question"}}, "no column 'question' .for 'prompt'.; it has q"),
    ({"q": {"r": 1}}, {"columns": {"prompt": "q.s"}}, "there is no column 'q.s'"),
    ({"prompt": "  "}, {}, "row 0: 'prompt' is empty"),
    ({"prompt": 3}, {}, "'prompt' is 3, expected text or a list of messages"),
    ({"prompt": []}, {}, "'prompt' is .., expected"), ({"messages": "a"}, {}, "a list of messages"),
    ({"prompt": [{"role": "user"}]}, {}, r"prompt\[0\] is .*, expected a message"),
    ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, {}, r"prompt\[0\] is "),
    ({"conversations": [{"from": "robot", "value": "x"}]}, {}, r"conversations\[0\] is ")])
def test_rows_that_do_not_fit(row, options, message):
    with pytest.raises(ValueError, match=message):
        load_rows([row], **options)


def test_a_later_row_of_another_form_is_named():
    rows = [ROWS["gsm8k"][0], {"question": "q"}]
    with pytest.raises(ValueError, match="row 1: layout 'gsm8k' needs the column 'answer'"):
        load_rows(rows)


def test_as_messages():
    rows = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": USER, "answer": "4"}]
    assert as_messages(rows) == [{"prompt": USER, "answer": "4"}] * 2
    full = [{"role": "system", "content": "s"}, {"role": "user", "content": "2 + 2?\n\nthink"}]
    assert as_messages(rows, "s", "think") == [{"prompt": full, "answer": "4"}] * 2
    assert rows[1]["prompt"] == USER and len(USER) == 1
    with pytest.raises(ValueError, match="row 0 has no 'prompt'; it has messages"):
        as_messages([{"messages": USER}])


def test_the_module_lists_every_layout():
    import r1grpo.layouts
    for name in LAYOUTS:
        assert f"\n    {name} " in r1grpo.layouts.__doc__
    assert choose_layout({"prompt": "a"}, "trl") is LAYOUTS["trl"]


# --- the files themselves --------------------------------------------------------------------

@pytest.mark.parametrize("file, layout, rows, columns, answers", [
    ("gsm8k_train.jsonl", "gsm8k", 7473, {"prompt", "answer", "solution"}, 7473),
    ("deepscaler_math_train.json", "math", 7474, {"prompt", "answer", "difficulty", "type"}, 7470),
    ("SVAMP.json", "svamp", 1000, {"prompt", "answer", "ID", "Equation", "Type"}, 1000),
    ("mbpp.jsonl", "mbpp", 974, {"prompt", "tests", "solution", "task_id", "challenge_test_list"},
     0),
    ("HumanEval.jsonl.gz", "humaneval", 164, {"prompt", "tests", "solution", "task_id",
                                              "entry_point"}, 0)])
def test_published_files(file, layout, rows, columns, answers):
    found = load_rows(data_file(file))
    assert found.layout == layout and len(found) == rows
    assert all(row.keys() == columns and isinstance(row["prompt"], str) for row in found)
    assert sum(isinstance(row.get("answer"), str) for row in found) == answers
    assert len(load_rows(data_file(file), limit=7)) == 7
