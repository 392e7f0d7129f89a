import json
import sys

import datasets
import pytest

from lit_reason.tasks.rows import read_rows
from lit_reason.types import UserError


def rows_of(path, split="train", **options):
    rows = read_rows(str(path), split=split, **options)
    return [rows[index] for index in range(len(rows))]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


ROWS = [{"q": "1,000?", "a": "007"}, {"q": "né le 2024-01-01", "a": "2024-01-01"}]


@pytest.fixture(params=["x.jsonl", "x.json", "array.json", "x.csv", "x.parquet"])
def file(request, tmp_path):
    path = tmp_path / request.param
    if path.name == "array.json":
        return write(path, json.dumps(ROWS, indent=2))
    if path.suffix == ".csv":
        return write(path, '\ufeffq,a\n"1,000?",007\n\nné le 2024-01-01,2024-01-01\n')
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
        return path
    return write(path, "\n\n".join(json.dumps(row) for row in ROWS))


def test_every_format_keeps_text_as_it_is(file):
    assert rows_of(file) == ROWS
    assert read_rows(str(file), split="train").columns == ["q", "a"]


def test_a_row_knows_where_it_stands(tmp_path):
    jsonl = write(tmp_path / "a.jsonl", '{"q": 1}\n\n{"q": 2}\n')
    csv = write(tmp_path / "b.csv", 'q\n"two\nlines"\n3\n')
    array = write(tmp_path / "c.json", '[{"q": 1}, {"q": 2}]')
    assert read_rows(str(jsonl), split="train").where(1) == f"{jsonl}, line 3"
    assert read_rows(str(csv), split="train").where(1) == f"{csv}, line 4"
    assert read_rows(str(array), split="train").where(1) == f"{array}, row 2"


def test_rows_may_differ_in_their_columns_and_types(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"q": "1", "a": 1}\n{"q": "2", "a": "1/2", "b": [1]}\n')
    assert rows_of(path) == [{"q": "1", "a": 1}, {"q": "2", "a": "1/2", "b": [1]}]
    assert read_rows(str(path), split="train").columns == ["q", "a", "b"]


def test_a_folder_is_read_in_order_and_its_names_say_the_split(tmp_path):
    write(tmp_path / "part-1.jsonl", '{"q": 1}\n')
    write(tmp_path / "part-2.csv", "q\n2\n")
    write(tmp_path / "validation.jsonl", '{"q": 3}\n')
    write(tmp_path / "test" / "x.json", '[{"q": 4}]')
    write(tmp_path / "train_dev.jsonl", '{"q": 5}\n')
    write(tmp_path / "empty.jsonl", "")
    write(tmp_path / "notes.txt", "no data")
    write(tmp_path / ".cache" / "x.jsonl", "no data")
    assert rows_of(tmp_path) == [{"q": 1}, {"q": "2"}]
    assert rows_of(tmp_path, "validation") == [{"q": 5}, {"q": 3}]
    assert rows_of(tmp_path, "test") == [{"q": 4}]
    rows = read_rows(str(tmp_path), split="train")
    assert [rows.where(index) for index in (0, 1)] == [
        f"{tmp_path / 'part-1.jsonl'}, line 1",
        f"{tmp_path / 'part-2.csv'}, line 2",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"q": 1}\n\n{"q": \n', "{path}, line 3: not valid JSON (Expecting value at column 7); mend or"),
        ("x.jsonl", '{"q": 1}\n[1]\n', "{path}, line 2: expected a JSON object with a row, got list"),
        ("x.jsonl", b'{"q": 1}\n{"q": "\xff"}\n', "{path}, line 2: not valid JSON ('utf-8' codec can't decode"),
        ("x.jsonl", '{"q": 1}\n' + "[" * 100_000, "{path}, line 2: not valid JSON (maximum recursion depth"),
        ("x.json", '{"q": 1}\nnonsense', "{path}, line 2: not valid JSON"),
        ("x.json", '[{"q": 1},\n{"q": 2]', "{path}, line 2: not valid JSON (Expecting ',' delimiter); mend the file"),
        ("x.json", '[{"q": 1}, 2]', "{path}, row 2: expected a JSON object, got int"),
        ("x.csv", "q,a\n1,2\n1,2,3\n", "{path}, line 3: expected 2 values, got 3"),
        ("x.csv", 'q,a\n1,2\n"1,2\n', "{path}, line 3: not valid CSV in UTF-8 (unexpected end of data)"),
        ("x.csv", b"q,a\n\xff,2\n", "{path}, line 2: not valid CSV in UTF-8"),
        ("x.parquet", "nonsense", "task 'dataset': cannot read '{path}': ArrowInvalid: Parquet magic bytes not found"),
        ("x.jsonl", "", "task 'dataset': '{path}' is empty: expected at least one row"),
        ("x.json", " \n", "task 'dataset': '{path}' is empty: expected at least one row"),
        ("x.csv", "q,a\n", "task 'dataset': '{path}' is empty: expected at least one row"),
        ("x.txt", "text", "task 'dataset': path: '{path}' is no .jsonl, .json, .csv, .parquet file"),
    ],
)
def test_broken_files_are_one_line_with_file_and_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(UserError) as error:
        read_rows(str(path), split="train")
    assert str(error.value).startswith(message.format(path=path))
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
    write(tmp_path / "data" / "train.jsonl", '{"q": 1}')
    (tmp_path / "empty").mkdir()
    for path, split, name, message in [
        ("nowhere.jsonl", "train", None, "path: there is no file or folder 'nowhere.jsonl'"),
        (str(tmp_path / "nowhere"), "train", None, "path: there is no file or folder"),
        (str(tmp_path / "empty"), "train", None, "holds no .jsonl, .json, .csv, .parquet file"),
        (str(tmp_path / "data"), "test", None, "has no split 'test'; found: train"),
        (str(tmp_path / "data"), "train", "main", "name: 'main' would choose a configuration on the hub"),
    ]:
        with pytest.raises(UserError) as error:
            read_rows(path, split=split, name=name)
        assert message in str(error.value)


def test_a_hub_id_that_cannot_be_had_says_so_in_one_line():
    with pytest.raises(UserError) as error:
        read_rows("nobody/nothing-of-this-name", split="train")
    assert str(error.value).startswith(
        "task 'dataset': path: 'nobody/nothing-of-this-name' is no file or folder here, and the hub did not give it: "
    )
    assert "\n" not in str(error.value)


def test_only_parquet_and_the_hub_need_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python itself does to forbid an import
    assert rows_of(write(tmp_path / "x.jsonl", '{"q": 1}')) == [{"q": 1}]
    with pytest.raises(UserError, match=r"pip install 'lit-reason\[data\]'"):
        read_rows(str(write(tmp_path / "x.parquet", "")), split="train")
