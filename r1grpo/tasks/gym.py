"""gym.py - tasks of reasoning-gym (the extra `gym`) as rows, and their verdicts.

    gym:NAME[?option=value&...]     one procedural data set: its entry i is a function of options, seed
                                    and i; options size (10,000), seed (0), and the task's own
    rows                            prompt, answer (one right one), gym {name, options, index}
    train, test                     its entries by index: the first nine tenths, the last tenth
    right                           score_answer of the task is at least THRESHOLD: partial credit is none

Some tasks draw from sets, whose order is the interpreter's: so entries are made in a worker process of
pool.py, where that order is fixed, and made again where an answer is judged, in such a process too; the
row's mark tells whether it is the same. A row is plain data. Scoring runs reasoning-gym's code: nothing
here keeps time, the pool does. Some tasks hand the answer to Python's eval or to SymPy's parser, which is
eval: they get only what `harmless` lets pass. Knows nothing about templates.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from ..toml import suggest
from ..verifiers.pool import VerifierPool
from ..verifiers.verdict import CORRECT, MISSING, UNPARSED, WRONG, Verdict

SIZE = 10_000
THRESHOLD = 0.99
MAX_ANSWER = 2000  # characters

# their score_answer evaluates the answer; composite may hold any of them
EVALUATING = {"spiral_matrix", "simple_integration", "intermediate_integration", "polynomial_multiplication",
              "puzzle24", "countdown", "binary_matrix", "n_queens", "string_insertion", "composite"}
_FUNCTIONS = set("sin cos tan exp log sqrt asin acos atan sinh cosh tanh Abs".split())
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Load, ast.List, ast.Tuple)
_CHUNK = 16  # entries made at a time


def gym_rows(source: str, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of "gym:NAME?option=value": all, or those of split "train" or "test"."""
    name, _, query = source.removeprefix("gym:").partition("?")
    options = {key: _option(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    options = {"size": SIZE, "seed": 0, **options}
    if not isinstance(options["size"], int) or options["size"] < 1:
        raise ValueError(f"{source}: size is {options['size']!r}, must be a whole number above 0")
    data = _data_set(name, json.dumps(options, sort_keys=True))
    cut = len(data) * 9 // 10
    if split not in (None, "train", "test"):
        raise ValueError(f"{source} has the splits train and test, not {split!r}")
    start, stop = cut if split == "test" else 0, cut if split == "train" else len(data)
    with VerifierPool(workers=1, deadline=60.0, memory=8 << 30) as pool:
        for first in range(start, stop, _CHUNK):
            part = [first, min(first + _CHUNK, stop)]
            made = pool.result(pool.submit("r1grpo.tasks.gym:entries", name, options, *part))
            if isinstance(made, Verdict):
                raise ValueError(f"{source}: entries {part[0]} to {part[1]}: {made.reason} {made.detail}")
            for index, (question, answer, mark) in enumerate(made, first):
                yield {"prompt": question, "answer": answer,
                       "gym": {"name": name, "options": options, "index": index, "mark": mark}}


def entries(name: str, options: Mapping[str, Any], start: int, stop: int) -> list[list[str]]:
    """[question, answer, mark] of entries, in a worker."""
    data = _data_set(name, json.dumps(options, sort_keys=True))
    found = [data[index] for index in range(start, stop)]
    return [[one["question"], str(one["answer"]), _mark(one)] for one in found]


def verify_gym(answer: str | None, gym: Mapping[str, Any]) -> Verdict:
    """The verdict on an answer to the entry that a row's column gym names."""
    if answer is None:
        return MISSING
    if len(answer) > MAX_ANSWER or gym["name"] in EVALUATING and not harmless(answer):
        return UNPARSED
    data = _data_set(gym["name"], json.dumps(gym["options"], sort_keys=True))
    entry = data[gym["index"]]
    if _mark(entry) != gym["mark"]:
        raise ValueError(f"entry {gym['index']} of gym:{gym['name']} is another one here: another version of "
                         f"reasoning-gym, or this is no worker of a VerifierPool")
    score = float(data.score_answer(answer, entry))
    verdict = CORRECT if score >= THRESHOLD else WRONG
    return Verdict(verdict.correct, verdict.reason, f"score {score:g}")


def harmless(text: str) -> bool:
    """Whether Python's eval could do no more with a text than compute: numbers, lists, operators, letters,
    the functions of formulas. What is no Python must hold nothing that a call or an attribute takes."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return not re.search(r"[(\\'\"{]|__|\.(?!\d)", text)
    return all(_allowed(node) for node in ast.walk(tree))


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (int, float)) or isinstance(node.value, str) \
            and not re.search(r"[^A-Za-z_ ]|__", node.value)
    if isinstance(node, ast.Name):
        return len(node.id) == 1 or node.id.isupper() or node.id in _FUNCTIONS | {"pi"}
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
    return isinstance(node, _NODES)


def _mark(entry: Mapping[str, Any]) -> str:
    text = f"{entry['question']}\0{entry['answer']}".encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


@lru_cache(maxsize=8)
def _data_set(name: str, options: str) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ImportError("gym:... needs reasoning-gym: pip install 'r1grpo[gym]'") from None
    if name not in DATASETS:
        raise ValueError(f"gym:{name}: reasoning-gym has no task {name!r}{suggest(name, DATASETS)}")
    try:
        return reasoning_gym.create_dataset(name, **json.loads(options))
    except (TypeError, AssertionError) as error:
        raise ValueError(f"gym:{name}: reasoning-gym refuses the options {options}: {error}") from error


def _option(value: str) -> Any:
    """A number, true, false, null or a list as JSON spells it; anything else is text."""
    try:
        return json.loads(value)
    except ValueError:
        return value
