"""Chunks of dumps to tables, without Ray, against a plain loop over the whole file (`tests/dumps.py`)."""

import csv
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dumps import REVIEW_KEYS, read_plainly, write_dump
from xrec.config import IngestConfig
from xrec.data import source_reading
from xrec.data.dropped import Tally
from xrec.data.ingest import FOLDERS, Dump, chunk_tally, ingest_chunk, listed_items, write_items
from xrec.data.source_layouts import SourceError
from xrec.data.source_reading import plan_chunks
from xrec.data.sources import find_files
from xrec.workspace import Workspace


def ingest(tmp_path, chunk_bytes=1 << 30, **settings):
    """Every chunk of a dump; returns workspace, counts of reviews and of items."""
    config = IngestConfig.model_validate(settings)
    dump, workspace = Dump(find_files(config), config), Workspace(tmp_path / "w")
    tallies = {kind: Tally() for kind in FOLDERS}
    for chunk in sorted(plan_chunks(dump.files, chunk_bytes), key=lambda c: dump.files[c.file].kind == "reviews"):
        kind = dump.files[chunk.file].kind
        tally = ingest_chunk(workspace, dump, chunk)
        assert chunk_tally(workspace, *FOLDERS[kind], chunk.part).as_json() == tally.as_json()
        tallies[kind].add(tally)
    write_items(workspace, dump, tallies["items"])
    return workspace, tallies["reviews"], tallies["items"]


def rows_of(workspace, table="reviews"):
    return workspace.read_table("data", table).to_pylist()


@pytest.mark.parametrize("layout", REVIEW_KEYS)
@pytest.mark.parametrize("chunk_bytes", [1_500, 1 << 30])
def test_the_rows_of_a_plain_loop_whatever_the_chunks(layout, chunk_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(source_reading, "BUFFER", 1500)
    path = write_dump(tmp_path / "dump.json", layout, lines=200, seed=len(layout))
    workspace, tally, _ = ingest(tmp_path, chunk_bytes, source=layout.split("-")[0], files=[str(path)])
    expected, dropped = read_plainly(path, layout)
    assert rows_of(workspace) == expected
    assert tally.dropped == dropped and tally.kept == len(expected)
    assert tally.read == len(expected) + dropped.total()


@pytest.mark.parametrize("layout", REVIEW_KEYS)
def test_compressed_files_and_settings(layout, tmp_path):
    paths = [write_dump(tmp_path / f"{n}.json.gz", layout, seed=n, lines=150) for n in range(3)]
    source = layout.split("-")[0]
    workspace, tally, _ = ingest(
        tmp_path, source=source, files=[str(p) for p in paths], empty_text="keep", min_rating=3
    )
    parts = [read_plainly(path, layout, keep_empty=True, min_rating=3) for path in paths]
    assert rows_of(workspace) == [row for rows, _ in parts for row in rows]
    assert tally.dropped == sum((dropped for _, dropped in parts), start=type(tally.dropped)())


def test_examples_say_where_to_look(tmp_path):
    path = write_dump(tmp_path / "dump.json", "yelp", lines=200, bad=0.2)
    _, tally, _ = ingest(tmp_path, 3000, source="yelp", files=[str(path)])
    data = path.read_bytes()
    for example in tally.examples["bad_json"]:
        line = data[example["byte"] :].split(b"\n")[0]
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(line), dict)
    assert all(example["file"] == "dump.json" and example["detail"] for example in tally.examples["bad_json"])


def test_a_damaged_gzip_file_is_named(tmp_path):
    path = write_dump(tmp_path / "dump.json.gz", "yelp", lines=12_000, bad=0)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"dump.json.gz is damaged \(.*\); fetch it again"):
        ingest(tmp_path, source="yelp", files=[str(path)])
    assert not Workspace(tmp_path / "w").files("data"), "a part appears whole or not at all"


# Items ---------------------------------------------------------------------------------------------------------------


def write_items_files(tmp_path):
    files = []
    for n in range(3):
        lines = [
            json.dumps({"business_id": f"i{m % 25}", "name": f"{n}-{m}", "city": "C" * (m % 2)}) for m in range(20 + n)
        ]
        files.append(tmp_path / f"business-{n}.json")
        files[-1].write_text("\n".join([*lines, "{broken", '{"name": "no id"}', '{"business_id": "untitled"}']))
    return files


def test_the_first_entry_of_an_item_counts(tmp_path):
    files = write_items_files(tmp_path)
    reviews = write_dump(tmp_path / "r.json", "yelp", lines=30)
    workspace, _, tally = ingest(tmp_path, 200, source="yelp", files=[str(f) for f in [*files, reviews]])
    first, repeated = {}, 0
    for file in files:
        for line in file.read_text().splitlines():
            record = json.loads(line) if line != "{broken" else {}
            if "business_id" in record:
                repeated += record["business_id"] in first
                first.setdefault(record["business_id"], record.get("name"))
    found = rows_of(workspace, "items")
    assert {row["item_id"]: row["title"] for row in found} == {i: t or f"item {i}" for i, t in first.items()}
    assert tally.dropped == {"repeated_item": repeated, "bad_json": 3, "missing_item_id": 3}
    assert tally.kept == len(found) and tally.read == len(found) + tally.dropped.total()


def test_items_without_a_required_field_and_reviews_of_them(tmp_path):
    files = write_items_files(tmp_path)
    reviews = write_dump(tmp_path / "r.json", "yelp", lines=200)
    common = {"source": "yelp", "files": [str(f) for f in [*files, reviews]], "required_item_fields": ["title", "city"]}
    workspace, tally, items = ingest(tmp_path, 700, **common, unlisted_items="drop", unreviewed_items="drop")
    listed = {row["item_id"] for row in rows_of(workspace, "items")}
    everything, _ = read_plainly(reviews, "yelp")
    named = set(listed_items(workspace).to_pylist())
    assert {row["item_id"] for row in everything} - named, "some reviews are of unlisted items"
    assert rows_of(workspace) == [row for row in everything if row["item_id"] in named]
    assert listed == named & {row["item_id"] for row in everything}
    assert tally.dropped["unlisted_item"] == sum(row["item_id"] not in named for row in everything)
    assert items.dropped["missing_city"] and items.dropped["missing_title"] == 3 and items.dropped["unreviewed_item"]
    assert items.read == items.kept + items.dropped.total()


def test_a_dump_without_items(tmp_path):
    reviews = write_dump(tmp_path / "r.json", "yelp", lines=20)
    workspace, _, _ = ingest(tmp_path, source="yelp", files=[str(reviews)])
    assert rows_of(workspace, "items") == []


# CSV, parquet and JSON lines with a mapping --------------------------------------------------------------------------

MAPPING = {"user_id": "who", "item_id": "what", "rating": "score", "timestamp": "when", "text": "said"}


def generic_rows(count: int) -> list[dict]:
    draw = random.Random(1)
    return [
        {
            "what": f"i{draw.randint(0, 9)}",
            "who": f"u{draw.randint(0, 20)}",
            "score": draw.choice(["1", "2.5", "97", "", "bad"]),
            "when": draw.choice(["2020-01-31 13:05:00", "1580475900", "1580475900000", ""]),
            "said": draw.choice(["fine", 'a "quoted", comma', "two\nlines", "", "caf\u00e9"]),
            "other": "x",
        }
        for _ in range(count)
    ]


def expected_generic(rows):
    kept = [row for row in rows if row["score"] != "bad" and row["said"]]
    return [
        {
            "user_id": row["who"],
            "item_id": row["what"],
            "rating": float(row["score"]) if row["score"] else None,
            "timestamp": 1580475900 if row["when"] else None,
            "text": row["said"],
        }
        for row in kept
    ]


def write_csv(path, rows, delimiter=","):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.csv.gz", "r.parquet", "r.jsonl"])
def test_any_format_with_a_mapping(name, tmp_path):
    rows, path = generic_rows(500), tmp_path / name
    if "parquet" in name:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=37)
    elif "json" in name:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_csv(path, rows, "\t" if "tsv" in name else ",")
    workspace, tally, _ = ingest(tmp_path, 2000, source="generic", files=[str(path)], review_columns=MAPPING)
    assert rows_of(workspace) == expected_generic(rows)
    assert tally.read == len(rows)
    if "parquet" in name:
        assert len(workspace.files("data", "reviews")) > 1, "row groups are shared out"
    unit = "byte" if "json" in name else "row"
    example = tally.examples["bad_rating"][0]
    first = next(n for n, row in enumerate(rows) if row["score"] == "bad")
    if unit == "row":
        assert example["row"] == first


def test_csv_rows_of_another_width_and_broken_utf8(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(b"user_id,item_id,text\nu,i,good\nu,i\nu,i,b\xffd\nu,i,a,b\n")
    workspace, tally, _ = ingest(tmp_path, source="generic", files=[str(path)])
    assert [row["text"] for row in rows_of(workspace)] == ["good", "b\N{REPLACEMENT CHARACTER}d"]
    assert tally.dropped == {"bad_row": 2} and tally.read == 4


def test_typed_parquet_columns_and_items_of_any_format(tmp_path):
    reviews = pa.table({"user_id": [1, 2], "item_id": pa.array(["a", "b"]).dictionary_encode(), "rating": [5, 3]})
    reviews = reviews.append_column("timestamp", pa.array([1_580_475_900_000] * 2, pa.timestamp("ms")))
    pq.write_table(reviews, tmp_path / "r.parquet")
    write_csv(
        tmp_path / "i.csv", [{"item_id": "a", "title": "A", "year": "1999"}, {"item_id": "", "title": "B", "year": ""}]
    )
    workspace, _, tally = ingest(
        tmp_path,
        source="generic",
        files=[str(tmp_path / "r.parquet")],
        items_files=[str(tmp_path / "i.csv")],
        item_columns={"attributes": ["year"]},
        empty_text="keep",
    )
    assert rows_of(workspace) == [
        {"user_id": str(n), "item_id": i, "rating": r, "timestamp": 1_580_475_900, "text": None}
        for n, i, r in ((1, "a", 5.0), (2, "b", 3.0))
    ]
    assert rows_of(workspace, "items") == [
        {"item_id": "a", "title": "A", "attributes": '{"year": "1999"}', "description": None}
    ]
    assert tally.dropped == {"missing_item_id": 1}
