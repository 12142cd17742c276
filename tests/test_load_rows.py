"""Files to rows: every format, and what hostile or broken files are answered with."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys

import pytest

from r1grpo import json_rows
from r1grpo.rows import load_rows

ROWS = [{"prompt": f"question {i}", "answer": str(i), "note": ["é", i / 2, None]} for i in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def error(folder, name, data):
    with pytest.raises(ValueError) as caught:
        load_rows(write(folder, name, data))
    return str(caught.value)


# --- formats ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name, data", [
    ("a.jsonl", LINES), ("a.jsonl", LINES.rstrip(b"\n")), ("a.jsonl", b"\xef\xbb\xbf" + LINES),
    ("a.jsonl", LINES.replace(b"\n", b"\r\n")), ("a.jsonl", LINES.replace(b"\n", b"\n\n  \n")),
    ("a.jsonl.gz", gzip.compress(LINES)),
    ("a.jsonl.gz", gzip.compress(LINES[:40]) + gzip.compress(LINES[40:])),
    ("a.json", json.dumps(ROWS)), ("a.json", "\ufeff\n" + json.dumps(ROWS, indent=2) + "\n"),
    ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())), ("a.json", LINES),
    ("a.json", json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}))])
def test_every_spelling_gives_the_same_rows(tmp_path, name, data):
    rows = load_rows(write(tmp_path, name, data))
    assert rows == ROWS
    assert rows.layout == "trl" and "5 rows, layout trl" in rows.note and name in rows.note


def test_a_document_is_read_through_a_small_window(tmp_path, monkeypatch):
    rows = [{"prompt": "\u00e9\U0001d54f" * 400, "n": i} for i in range(700)]  # 2 MiB and more
    text = json.dumps(rows, ensure_ascii=False, indent=1)
    assert load_rows(write(tmp_path, "a.json", text)) == rows
    data = text.encode()
    with pytest.raises(ValueError, match=r"a.json line 2801: 'prompt' is empty"):
        load_rows(write(tmp_path, "a.json", data[:-2] + b',{"prompt": " "}]'))


def test_parquet_and_folders(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{**row, "note": [{"role": "user", "content": "é"}]} for row in ROWS]
    table = pytest.importorskip("pyarrow").Table.from_pylist(rows[:3])
    parquet.write_table(table, tmp_path / "train-00000-of-00002.parquet")
    write(tmp_path, "train-00001-of-00002.jsonl", "".join(json.dumps(row) + "\n" for row in rows[3:]))
    write(tmp_path, "training.json", "[")
    write(tmp_path, "test.jsonl", json.dumps({"prompt": "t"}))
    write(tmp_path, "readme.md", "")
    assert load_rows(tmp_path, split="train") == rows
    for split in ("test", "test.jsonl"):
        assert load_rows(tmp_path, split=split) == [{"prompt": "t"}]
    with pytest.raises(ValueError, match=r"training.json line 1: .*cut off"):
        load_rows(tmp_path)
    with pytest.raises(ValueError, match="holds no file valid"):
        load_rows(tmp_path, split="valid")
    assert load_rows(str(tmp_path), split="train", limit=2) == rows[:2]


def test_parquet_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    assert "damaged or no parquet" in error(tmp_path, "a.parquet", b"PAR1" + b"x" * 100 + b"PAR1")
    assert "damaged or no parquet" in error(tmp_path, "a.parquet", b"")


def test_a_parquet_bomb_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * (5 << 20), pyarrow.int8()),
                                                 pyarrow.array(["a"]))
    parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    with pytest.raises(ValueError, match="a.parquet grows more than 200-fold"):
        load_rows(tmp_path / "a.parquet")


def test_two_parquet_columns_of_one_name(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]),
                        tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="two columns have one name"):
        load_rows(tmp_path / "a.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'r1grpo\[parquet\]'"):
        load_rows(write(tmp_path, "a.parquet", b""))


def test_iterables_and_mappings():
    assert load_rows(dict(row) for row in ROWS) == ROWS
    assert load_rows({"train": ROWS, "test": ROWS[:1]}, split="test") == ROWS[:1]
    assert load_rows({"prompt": ["a", "b"], "x": (1, 2)}) == [{"prompt": "a", "x": 1},
                                                              {"prompt": "b", "x": 2}]
    endless = ({"prompt": "a", "n": n} for n in iter(int, 1))
    assert len(load_rows(endless, limit=3)) == 3
    row = {"prompt": "a"}
    load_rows([row], columns={"answer": "prompt", "prompt": "prompt"})
    assert row == {"prompt": "a"}


def test_hugging_face_datasets():
    datasets = pytest.importorskip("datasets")
    rows = [{**row, "note": [{"role": "user", "content": "é"}]} for row in ROWS]
    train = datasets.Dataset.from_list(rows)
    assert load_rows(train) == rows == load_rows(train.to_iterable_dataset())
    both = datasets.DatasetDict({"train": train, "test": train.select([3])})
    assert load_rows(both, split="test") == [rows[3]]
    with pytest.raises(ValueError, match="split=None is none of train, test"):
        load_rows(both)


@pytest.mark.parametrize("source, options, wrong, message", [
    ([], {}, ValueError, "there is no row"), (7, {}, TypeError, "not from int"),
    (["text"], {}, TypeError, "row 0 is of type str"),
    (ROWS, {"split": "train"}, ValueError, "the rows have no splits"),
    (ROWS, {"limit": 0}, ValueError, "limit is 0"),
    ({"train": ROWS}, {}, ValueError, "split=None is none of train"),
    ({"train": ROWS}, {"split": "trian"}, ValueError, "split='trian' is none of train"),
    ({"prompt": ["a", "b"], "x": [1]}, {}, ValueError, "found prompt 2, x 1"),
    ({"prompt": "ab"}, {}, ValueError, "prompt no list"),
    ("openai/gsm8k", {}, FileNotFoundError, "loaded with `datasets` and given as it is")])
def test_sources_that_are_none(source, options, wrong, message):
    with pytest.raises(wrong, match=message):
        load_rows(source, **options)


def test_other_files(tmp_path):
    assert "end in .jsonl" in error(tmp_path, "a.csv", "prompt\na\n")
    assert "there is no row" in error(tmp_path, "a.jsonl", "\n \n")
    assert "there is no row" in error(tmp_path, "a.json", "[ ]")
    with pytest.raises(ValueError, match="a.jsonl is one file"):
        load_rows(write(tmp_path, "a.jsonl", LINES), split="train")


# --- broken and hostile files ----------------------------------------------------------------

GOOD = '{"prompt": "a"}\n'


@pytest.mark.parametrize("line, message", [
    ('{"prompt": NaN}', "a.jsonl line 3: NaN is no JSON number"),
    ('{"prompt": "a", "x": [-Infinity]}', "line 3: -Infinity is no JSON number"),
    ('{"prompt": "a", "x": 1e999}', "line 3: 1e999 is beyond float64"),
    ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "line 3: Exceeds the limit"),
    ('{"prompt": "a", "prompt": "b"}', "line 3: the key 'prompt' stands twice"),
    ('{"prompt": "a", "x": {"y": 1, "y": 1}}', "line 3: the key 'y' stands twice"),
    ('{"prompt": "\\ud83d"}', r"line 3: '\ud83d' is half a character"),
    ('{"\\udc00": "a"}', r"line 3: '\udc00' is half a character"),
    ('{"prompt": "a"', "line 3, column 15: "), ("{'prompt': 'a'}", "line 3, column 2: "),
    ('{"prompt": "a"} {"prompt": "b"}', "line 3, column 17: Extra data"),
    ('{"prompt": "a\tb"}', "line 3, column 14: Invalid control character"),
    ('["a"]', "line 3 holds a list, expected an object"), ("3", "line 3 holds a int"),
    ("[" * 200_000, "line 3: nested too deep"), ('{"a":' * 200_000, "line 3: nested too deep")])
def test_a_broken_line_is_named(tmp_path, line, message):
    for name in ("a.jsonl", "a.jsonl.gz"):
        data = (GOOD + GOOD + line + "\n" + GOOD).encode()
        text = error(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
        assert message.replace("a.jsonl", name) in text and len(text) < 300
    assert "cut off" not in text


@pytest.mark.parametrize("broken, message", [
    ('{"prompt": NaN}', "a.json line 3: NaN"), ('{"prompt": "a"', "a.json line 4: "),
    ('{"prompt": "a", "prompt": "b"}', "line 3: the key 'prompt' stands twice"),
    ('{"prompt": "a"} {"prompt": "a"}', "line 3: expected ',', found '{'"),
    ("7", "line 3 holds a int"), ("[" * 200_000, "line 3: nested too deep"),
    ('{"prompt": "\\ud83d"}', "line 3: '\\ud83d' is half a character"),
    ('{\n"prompt":\n 3x}', "line 5: Expecting ',' delimiter")])
def test_a_broken_document_is_named(tmp_path, broken, message):
    text = error(tmp_path, "a.json", '[{"prompt": "a"},\n{"prompt": "b"},\n' + broken + "\n,{}]")
    assert message in text and len(text) < 300


@pytest.mark.parametrize("data, message", [
    ('[{"prompt": "a"}', "line 1: expected ',', found the end of the file"),
    ('[{"prompt": "a"},\n{"prom', "line 2: .*cut off"), ("[", "line 1: .*cut off"),
    ('[{"prompt": "a"}]\n[]', "line 2: there is more behind the list"),
    ('[{"prompt": "a"},]', "line 1: Expecting value"), ("", "line 1: "), ("{}", "the columns are none"),
    ('{"prompt": ["a"], "x": [1, 2]}', "a.json: columns must be lists of one length"),
    ('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": ""}', "line 3: 'prompt' is empty")])
def test_a_document_that_does_not_end_well(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        load_rows(write(tmp_path, "a.json", data))


def test_a_cut_file_says_so(tmp_path):
    assert "a.jsonl line 5, column" in (text := error(tmp_path, "a.jsonl", LINES[:-20]))
    assert "the file ends in this line, was it cut off?" in text
    packed = gzip.compress(LINES)
    assert "a.jsonl.gz is damaged" in error(tmp_path, "a.jsonl.gz", packed[:-15])
    assert "a.jsonl.gz is damaged" in error(tmp_path, "a.jsonl.gz", packed[:30] + b"x" + packed[31:])
    assert "a.jsonl.gz is damaged" in error(tmp_path, "a.jsonl.gz", LINES)


def test_what_is_not_utf8(tmp_path):
    assert "a.jsonl line 2 is not UTF-8: byte 0xe9 at position 14" in error(
        tmp_path, "a.jsonl", GOOD.encode() + b'{"prompt": "a\xe9"}\n')
    assert "a.jsonl line 1 is not UTF-8: byte 0xff" in error(
        tmp_path, "a.jsonl", GOOD.encode("utf-16"))
    assert "a.json is not UTF-8" in error(tmp_path, "a.json", b'[{"prompt": "\xe9"}]')


HOSTILE = """
import sys, time
from r1grpo.rows import load_rows
before = time.process_time()
try:
    load_rows(sys.argv[1])
except ValueError as error:
    print(error)
"""


def hostile(path):
    """The error, in a process that may take half a GiB beyond what importing needs."""
    limit = 1 << 30
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(path)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_line_of_a_gigabyte(tmp_path, name):
    path = write(tmp_path, name, '[{"prompt": "' if name == "a.json" else '{"prompt": "')
    with path.open("r+b") as file:
        file.seek(1 << 30)  # a hole: zeros that take no room
        file.write(b'"}')
    assert "longer than 64 MiB" in hostile(path) or name == "a.json"
    assert f"{name} line 1" in hostile(path)


@pytest.mark.parametrize("unit", [b"\0", b"{}\n", b'{"prompt":"a"}\n', b"\n"])
def test_a_gzip_bomb(tmp_path, unit):
    data = gzip.compress(unit * ((8 << 20) // len(unit)), 9) * 128  # a GiB
    assert len(data) < 4 << 20
    text = hostile(write(tmp_path, "a.jsonl.gz", data))
    assert "a.jsonl.gz" in text and ("grows more than 200-fold" in text or "line 1" in text)


def test_a_bomb_is_noticed_soon(tmp_path, monkeypatch):
    """After some MiB, not after all: the position of the file is what was used of it."""
    data = gzip.compress(b'{"prompt":"a"}\n' * (1 << 20), 9)
    grown = []
    check = json_rows.check_growth
    monkeypatch.setattr(json_rows, "check_growth",
                        lambda name, size, n: (grown.append(n), check(name, size, n)))
    assert "grows more than 200-fold" in error(tmp_path, "a.jsonl.gz", data)
    assert grown[-1] < 6 << 20


def test_repeated_text_is_no_bomb(tmp_path):
    """A long instruction in every row compresses well, and is harmless."""
    rows = [{"prompt": f"{'Reason step by step. ' * 20} {i * i}"} for i in range(20_000)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert len(data) > 2 * json_rows._HARMLESS
    assert load_rows(write(tmp_path, "a.jsonl.gz", gzip.compress(data))) == rows
