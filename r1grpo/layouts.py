r"""layouts.py - what the columns of published datasets mean: a row of theirs -> a row of ours.

    name       columns it reads                          what a row gets
    gsm8k      question, answer                          prompt, answer (behind ####), solution
    math       problem, answer and/or solution           prompt, answer (else the solution's last
                                                         \boxed{}), solution
    svamp      Body, Question, Answer                    prompt, answer
    mbpp       text or prompt, test_list, code           prompt (task and tests), tests, solution
    humaneval  prompt, test, entry_point                 prompt, tests, solution
    verl       prompt, reward_model.ground_truth         prompt, answer
    sharegpt   conversations (from, value)               messages
    trl        prompt, messages, text, or tokens         as they are

prompt is text or messages ({"role", "content"}), answer what a rule compares with or None where the
row has none, tests a list of Python texts that raise when run behind a wrong program, solution a
worked answer as the file has it. Columns that were read are gone, all others stay and reach the
reward functions. A layout is chosen by name or by the first row's columns; trl fits only where no
other does. MBPP's prompt holds the tests, because only they say what the function is called, and
SVAMP's joins its two parts, with a comma where the first ends in no mark: our wording, both.

Knows nothing about files, templates or how an answer is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .brief import brief, brief_names
from .toml import suggest
from .verifiers import last_box

Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A layout: whether a row has its columns, and how the row is turned into ours."""

    name: str
    meaning: str
    fits: Callable[[Row], bool]
    convert: Callable[[Row], Row]

    def apply(self, row: Row, where: str = "row") -> Row:
        """The row in our columns; ValueError names the place and what is wrong."""
        try:
            row = self.convert(dict(row))
            for name in ("prompt", "messages"):
                if name in row:
                    _check_text(row[name], name, messages_only=name == "messages")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        except KeyError as error:
            raise ValueError(f"{where}: layout {self.name!r} needs the column {error.args[0]!r}; "
                             f"found {', '.join(row) or 'none'}") from None
        return row


def choose_layout(row: Row, name: str | None = None, where: str = "row") -> Layout:
    """The layout of that name, or the only one that fits the row."""
    if name is not None:
        if name not in LAYOUTS:
            raise ValueError(f"unknown layout {brief(name)}{suggest(name, LAYOUTS)}; "
                             f"there are {', '.join(LAYOUTS)}")
        return LAYOUTS[name]
    fitting = [one for one in LAYOUTS.values() if one.fits(row)]
    special = [one for one in fitting if one.name != "trl"] or fitting
    if len(special) == 1:
        return special[0]
    found = f"the columns are {brief_names(row)}"
    if special:
        raise ValueError(f"{where}: {found}; that may be {' or '.join(x.name for x in special)}, "
                         f"give layout=")
    raise ValueError(f"{where}: {found}; no layout of {', '.join(LAYOUTS)} fits; say which are "
                     f"which, as in columns={{'prompt': ..., 'answer': ...}}, or --set columns.prompt=... "
                     f"columns.answer=...")


def as_messages(rows: Sequence[Row], system: str | None = None, instruction: str | None = None
                ) -> list[Row]:
    """Rows whose prompts are messages: a text becomes the user's; the instruction is put behind
    the last message, after an empty line, and the system message first."""
    done = []
    for number, row in enumerate(rows):
        if "prompt" not in row:
            raise ValueError(f"row {number} has no 'prompt'; it has {brief_names(row)}")
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if instruction is not None:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": f"{last['content']}\n\n{instruction}"}]
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        done.append({**row, "prompt": messages})
    return done


def _check_text(value: Any, name: str, messages_only: bool) -> None:
    """Text that is not blank, or messages with text in them."""
    if isinstance(value, str) and not messages_only:
        if not value.strip():
            raise ValueError(f"{name!r} is empty")
        return
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name!r} is {brief(value)}, expected "
                         f"{'' if messages_only else 'text or '}a list of messages")
    for i, one in enumerate(value):
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str) \
                or not isinstance(one.get("content"), str):
            raise ValueError(f"{name}[{i}] is {brief(one)}, expected a message "
                             f"{{'role': text, 'content': text}}")


# --- one function a layout: columns are popped from a copy of the row -------------------------

def _gsm8k(row: Row) -> Row:
    prompt, solution = row.pop("question"), row.pop("answer")
    if not isinstance(solution, str) or "####" not in solution:
        raise ValueError("'answer' has no '####' before its final number")
    answer = solution.rpartition("####")[2].strip()
    return {"prompt": prompt, "answer": answer, "solution": solution, **row}


def _math(row: Row) -> Row:
    prompt, solution = row.pop("problem"), row.get("solution")
    answer = row.pop("answer") if solution is None else row.pop("answer", None)
    if answer is None and isinstance(solution, str):
        answer = last_box(solution)
    return {"prompt": prompt, "answer": _plain(answer), **row}


def _svamp(row: Row) -> Row:
    body, question = row.pop("Body").strip(), row.pop("Question").strip()
    joint = " " if body.endswith((".", "?", "!", ",")) else ", "
    return {"prompt": f"{body}{joint}{question}", "answer": _plain(row.pop("Answer")), **row}


def _mbpp(row: Row) -> Row:
    task = row.pop("text") if "text" in row else row.pop("prompt")
    tests, solution = row.pop("test_list"), row.pop("code", None)
    setup = row.pop("test_setup_code", None) or "\n".join(row.pop("test_imports", None) or [])
    prompt = "\n".join([task, "", "Write Python code that passes these tests:", "", *tests])
    return {"prompt": prompt, "tests": [f"{setup}\n{one}" if setup else one for one in tests],
            "solution": solution, **row}


def _humaneval(row: Row) -> Row:
    tests = [f"{row.pop('test')}\ncheck({row['entry_point']})"]
    return {"tests": tests, "solution": row.pop("canonical_solution", None), **row}


def _verl(row: Row) -> Row:
    judge = row.pop("reward_model")
    if not isinstance(judge, Mapping) or "ground_truth" not in judge:
        raise ValueError("'reward_model' has no field 'ground_truth'")
    return {"prompt": row.pop("prompt"), "answer": _plain(judge["ground_truth"]), **row}


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
          "system": "system"}


def _sharegpt(row: Row) -> Row:
    turns = row.pop("conversations")
    messages = [{"role": "system", "content": row.pop("system")}] if row.get("system") else []
    for i, one in enumerate(turns):
        if not isinstance(one, Mapping) or one.get("from") not in _ROLES or "value" not in one:
            raise ValueError(f"conversations[{i}] is {brief(one)}, expected {{'from': one of "
                             f"{', '.join(_ROLES)}, 'value': text}}")
        messages.append({"role": _ROLES[one["from"]], "content": one["value"]})
    return {"messages": messages, **row}


_TAKEN = ("prompt", "messages", "text", "prompt_ids", "ids", "chosen")


def _trl(row: Row) -> Row:
    if not any(name in row for name in _TAKEN):
        raise ValueError(f"layout 'trl' needs one of the columns {', '.join(_TAKEN)}; found "
                         f"{brief_names(row)}")
    return row


def _plain(answer: Any) -> Any:
    """A number as the text that a person would write (51.0 -> '51'); an empty text is no answer."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, (int, float)):
        return str(answer)
    return answer.strip() or None if isinstance(answer, str) else answer


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


LAYOUTS: dict[str, Layout] = {one.name: one for one in (
    Layout("gsm8k", "question -> prompt, answer behind #### -> answer",
           lambda row: _has("question", "answer")(row) and "####" in str(row["answer"]), _gsm8k),
    Layout("math", "problem -> prompt, answer or the solution's box -> answer",
           lambda row: "problem" in row and ("answer" in row or "solution" in row), _math),
    Layout("svamp", "Body and Question -> prompt, Answer -> answer",
           _has("Body", "Question", "Answer"), _svamp),
    Layout("mbpp", "task and tests -> prompt, test_list -> tests",
           lambda row: "test_list" in row and ("text" in row or "prompt" in row), _mbpp),
    Layout("humaneval", "test -> tests", _has("prompt", "test", "entry_point"), _humaneval),
    Layout("verl", "reward_model.ground_truth -> answer",
           lambda row: "prompt" in row and isinstance(row.get("reward_model"), Mapping), _verl),
    Layout("sharegpt", "conversations -> messages", _has("conversations"), _sharegpt),
    Layout("trl", "columns as they are", lambda row: any(name in row for name in _TAKEN), _trl),
)}
