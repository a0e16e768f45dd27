"""Files of predictions: each format read alike, and errors that name file, column, row and remedy."""

import json
import pickle

import pandas
import pyarrow as pa
import pytest

from xrec.data.predictions import PredictionsError, read_predictions
from xrec.data.unpickling import ReleaseError

ROWS = [
    {"uid": 7, "iid": "i1", "prediction": 'Good, "very" good.', "reference": "It is good."},
    {"uid": 8, "iid": "i2", "prediction": "Two\nlines", "reference": None},
    {"uid": 9, "iid": "i3", "prediction": "", "reference": "Café."},
]


def _write(path, rows):
    frame = pandas.DataFrame(rows)
    match path.suffix:
        case ".parquet":
            frame.to_parquet(path)
        case ".csv":
            frame.fillna("").to_csv(path, index=False)
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        case ".json":
            path.write_text(json.dumps(rows, indent=1))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".json"])
def test_each_format_gives_the_same_table(tmp_path, suffix):
    table = read_predictions(_write(tmp_path / f"rows{suffix}", ROWS))
    assert table.column_names == ["user_id", "item_id", "explanation", "reference"]
    assert table["user_id"].to_pylist() == ["7", "8", "9"]
    assert table["explanation"].to_pylist() == [row["prediction"] for row in ROWS]
    assert [text or None for text in table["reference"].to_pylist()] == ["It is good.", None, "Café."]


def test_the_format_is_told_by_the_content_not_by_the_name(tmp_path):
    path = tmp_path / "rows.dat"
    path.write_bytes(_write(tmp_path / "rows.parquet", ROWS).read_bytes())
    assert len(read_predictions(path)) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.txt", b"First, the text.\n\nThird.\n"),
        ("windows.txt", "\ufeffFirst, the text.\r\n\r\nThird.".encode()),
        ("list.json", json.dumps(["First, the text.", "", "Third."]).encode()),
        ("list.pkl", pickle.dumps(["First, the text.", "", "Third."], 4)),
    ],
)
def test_texts_alone_keep_their_order_and_their_empty_ones(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    table = read_predictions(tmp_path / name)
    assert table.to_pydict() == {"explanation": ["First, the text.", "", "Third."]}


def test_a_second_file_holds_the_references(tmp_path):
    (tmp_path / "texts.txt").write_text("a\nb\n")
    (tmp_path / "references.pkl").write_bytes(pickle.dumps(["A", "B"]))
    assert read_predictions(tmp_path / "texts.txt", tmp_path / "references.pkl")["reference"].to_pylist() == ["A", "B"]
    (tmp_path / "short.txt").write_text("A\n")
    with pytest.raises(PredictionsError, match=r"short\.txt: it has 1 rows and .*texts\.txt has 2"):
        read_predictions(tmp_path / "texts.txt", tmp_path / "short.txt")


def test_indices_are_numbers(tmp_path):
    (tmp_path / "rows.csv").write_text("user,item,text\n3,4,fine\n")
    table = read_predictions(tmp_path / "rows.csv")
    assert table.to_pylist() == [{"user": 3, "item": 4, "explanation": "fine"}]
    assert table["user"].type == pa.int64()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"explanation": "x"}\n{"explanation": 3}',
            r"a\.jsonl, column 'explanation', row 1: 3 is not a text",
        ),
        ("b.jsonl", '{"text": "x"}\n{"text": ', r"b\.jsonl, line 2: not valid JSON"),
        ("c.csv", "text,uid\nx,1\n", r"c\.csv: it has the column user_id without item_id"),
        ("d.csv", "text,user,item\nx,1,two\n", r"d\.csv, column 'item', row 0: 'two' is not an index"),
        ("e.csv", "text,uid,iid\nx,1,\n", r"e\.csv, column 'iid', row 0: '' is not an id"),
        ("f.csv", "text,uid,iid\na, b,1,2\n", r"f\.csv, row 0: 4 values for 3 columns; put quotes"),
        ("g.csv", "text,prediction\nx,y\n", r"prediction and text both name the explanation"),
        ("h.json", '[{"words": "x"}]', r"h\.json: no column explanation .*; it has words"),
        ("i.json", '["x", {"text": "y"}]', r"i\.json, row 0: 'x' is no object"),
        ("j.txt", "", r"j\.txt: it holds no row"),
    ],
)
def test_errors_name_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(PredictionsError, match=message):
        read_predictions(tmp_path / name)


def test_other_bytes_are_refused(tmp_path):
    with pytest.raises(PredictionsError, match="no such file"):
        read_predictions(tmp_path / "absent")
    (tmp_path / "latin").write_bytes("Café".encode("latin-1"))
    with pytest.raises(PredictionsError, match="UTF-8"):
        read_predictions(tmp_path / "latin")
    (tmp_path / "broken").write_bytes(b"PAR1 and no more")
    with pytest.raises(PredictionsError, match="not a readable Parquet file"):
        read_predictions(tmp_path / "broken")


def test_a_pickle_runs_nothing_and_holds_strings(tmp_path):
    (tmp_path / "dict.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PredictionsError, match="holds dict; write a list of strings"):
        read_predictions(tmp_path / "dict.pkl")
    (tmp_path / "numbers.pkl").write_bytes(pickle.dumps(["a", 1]))
    with pytest.raises(PredictionsError, match="row 1: 1 is not a text"):
        read_predictions(tmp_path / "numbers.pkl")

    class Hostile:
        def __reduce__(self):
            return print, ("run",)

    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps([Hostile()]))
    with pytest.raises(ReleaseError, match=r"builtins\.print"):
        read_predictions(tmp_path / "hostile.pkl")
