"""Reads explanations that were made elsewhere, in whichever of the usual formats they are.

Formats, told apart by their content: Parquet, CSV with a header, JSON lines, a JSON list (of objects or strings), plain
text with one explanation a line, and a pickle of a list of strings such as the published `tst_pred.pkl`. Columns and
their other names are those of `COLUMNS`; further columns are left out. A row's pair is named by ids, by the workspace's
indices, or by the text of its reference; `prediction_pairs.py` finds it. Texts stay as they are.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xrec.data.unpickling import load_plain

COLUMNS = {
    "user_id": ("user_id", "uid"),
    "item_id": ("item_id", "iid"),
    "user": ("user",),
    "item": ("item",),
    "explanation": ("explanation", "prediction", "text"),
    "reference": ("reference",),
}
_TYPES = {"user": pa.int64(), "item": pa.int64()}


class PredictionsError(ValueError):
    """A file of predictions cannot be used; the message names file, column, row (from 0) and the remedy."""


def read_predictions(path: str | os.PathLike, references: str | os.PathLike | None = None) -> pa.Table:
    """Read a file of explanations.

    Args:
        path: the file.
        references: a second file in any of the formats, with the reference of each row in the same order.

    Returns:
        explanation, and of user_id and item_id (strings), user and item (int64), reference (nullable) those that the
        files have. An empty explanation is one.

    Raises:
        PredictionsError: the file is unreadable, or a value is not what it should be.
        ReleaseError: a pickle that refers to anything but plain values, or is damaged.
    """
    columns = _columns(path, _raw_columns(path))
    if references is not None:
        beside = _columns(references, _raw_columns(references))
        texts = beside.get("reference", beside["explanation"])
        if len(texts) != len(columns["explanation"]):
            raise PredictionsError(
                f"{os.fspath(references)}: it has {len(texts):,} rows and {os.fspath(path)} has "
                f"{len(columns['explanation']):,}; give one reference a prediction, in the same order"
            )
        columns["reference"] = texts
    if not columns["explanation"]:
        raise PredictionsError(f"{os.fspath(path)}: it holds no row; give a file with one explanation a row")
    return pa.table({name: pa.array(values, _TYPES.get(name, pa.string())) for name, values in columns.items()})


def _raw_columns(path: str | os.PathLike) -> dict[str, list]:
    """The file's columns under their own names, values as the format has them."""
    file = Path(path)
    if not file.is_file():
        raise PredictionsError(f"{os.fspath(path)}: there is no such file; name a file of predictions")
    with file.open("rb") as opened:
        start = opened.read(4)
    if start == b"PAR1":
        try:
            return pq.read_table(file).to_pydict()
        except pa.ArrowInvalid as error:
            raise PredictionsError(
                f"{os.fspath(path)}: not a readable Parquet file ({error}); write it again"
            ) from error
    if start[:1] == b"\x80":
        return {"explanation": _texts_of(path, load_plain(path))}
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PredictionsError(
            f"{os.fspath(path)}: neither Parquet, nor a pickle, nor text in UTF-8 ({error}); convert it to one of them"
        ) from error
    match text.lstrip()[:1]:
        case "[":
            return _from_objects(path, _json(path, text))
        case "{":
            return _from_objects(
                path, [_json(path, line, n) for n, line in enumerate(text.split("\n")) if line.strip()]
            )
    header = next(csv.reader(io.StringIO(text, newline="")), [])
    if set(header) & set(COLUMNS["explanation"]):
        return _from_csv(path, text)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return {"explanation": lines[:-1] if lines[-1] == "" else lines}


def _texts_of(path: str | os.PathLike, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise PredictionsError(
            f"{os.fspath(path)}: the pickle holds {type(value).__name__.lstrip('_')}; write a list of strings"
        )
    return value


def _json(path: str | os.PathLike, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = "" if line is None else f", line {line + 1}"
        raise PredictionsError(f"{os.fspath(path)}{where}: not valid JSON ({error}); mend it") from error


def _from_objects(path: str | os.PathLike, rows: list) -> dict[str, list]:
    if rows and all(isinstance(row, str) for row in rows):
        return {"explanation": rows}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise PredictionsError(
                f"{os.fspath(path)}, row {number}: {row!r} is no object; give objects throughout, or strings throughout"
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names} if rows else {"explanation": []}


def _from_csv(path: str | os.PathLike, text: str) -> dict[str, list]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header, rows = next(reader), [row for row in reader if row]
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise PredictionsError(
                f"{os.fspath(path)}, row {number}: {len(row)} values for {len(header)} columns; put quotes around "
                "texts with commas"
            )
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def _columns(path: str | os.PathLike, raw: dict[str, list]) -> dict[str, list]:
    """The columns of `COLUMNS` that are there, with values of their types."""
    columns = {}
    for name, accepted in COLUMNS.items():
        there = [n for n in accepted if n in raw]
        if len(there) > 1:
            raise PredictionsError(f"{os.fspath(path)}: {' and '.join(there)} both name the {name}; keep one of them")
        if there:
            columns[name] = [_value(path, name, there[0], row, value) for row, value in enumerate(raw[there[0]])]
    if "explanation" not in columns:
        raise PredictionsError(
            f"{os.fspath(path)}: no column explanation (also accepted: prediction, text); it has "
            f"{', '.join(map(str, raw)) or 'none'}"
        )
    for one, other in (("user_id", "item_id"), ("user", "item")):
        if (one in columns) != (other in columns):
            there, absent = (one, other) if one in columns else (other, one)
            raise PredictionsError(
                f"{os.fspath(path)}: it has the column {there} without {absent}; add it, or drop both"
            )
    return columns


def _value(path: str | os.PathLike, name: str, column: str, row: int, value: Any) -> Any:
    match name, value:
        case "explanation", str():
            return value
        case "reference", str() | None:
            return value
        case "user_id" | "item_id", str() | int() if not isinstance(value, bool) and str(value):
            return str(value)
        case "user" | "item", int() if not isinstance(value, bool):
            return value
        case "user" | "item", str() if value.strip().isdecimal():
            return int(value)
    wanted = "a text" if name in ("explanation", "reference") else "an id" if name.endswith("_id") else "an index"
    raise PredictionsError(
        f"{os.fspath(path)}, column {column!r}, row {row}: {value!r} is not {wanted}; fill it in or drop the row"
    )
