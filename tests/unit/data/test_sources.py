"""Which files a dump has, what is in them, and what makes two of them the same."""

import gzip
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dumps import REVIEW_KEYS, write_dump
from xrec.config import IngestConfig
from xrec.data import sources
from xrec.data.source_layouts import SourceError
from xrec.data.sources import content_hashes, expand, find_files

YELP = {
    "review": {"review_id": "r", "user_id": "u", "business_id": "b", "stars": 4.0, "text": "t", "date": "2020-01-01"},
    "business": {"business_id": "b", "name": "n", "city": "c", "categories": "x, y"},
    "tip": {"user_id": "u", "business_id": "b", "text": "t", "date": "2020-01-01", "compliment_count": 0},
    "user": {"user_id": "u", "name": "n", "yelping_since": "2010"},
    "checkin": {"business_id": "b", "date": "2020-01-01"},
    "photo": {"photo_id": "p", "business_id": "b", "caption": "", "label": "food"},
}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def config(*files, source="yelp", **settings):
    return IngestConfig.model_validate({"source": source, "files": [str(f) for f in files], **settings})


def test_the_files_of_the_yelp_dump_are_told_apart(tmp_path):
    for name, record in YELP.items():
        write(tmp_path / f"yelp_academic_dataset_{name}.json", record)
    found = {f.name.split("_")[-1]: f for f in find_files(config(tmp_path / "*.json"))}
    assert {name: f.kind for name, f in found.items()} == {
        "review.json": "reviews", "business.json": "items",
        "tip.json": None, "user.json": None, "checkin.json": None, "photo.json": None,
    }  # fmt: skip
    assert found["review.json"].size == (tmp_path / "yelp_academic_dataset_review.json").stat().st_size
    assert set(content_hashes(list(found.values()))) == {f.name for f in found.values() if f.kind}


@pytest.mark.parametrize("layout", REVIEW_KEYS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz"])
def test_reviews_of_every_layout(layout, suffix, tmp_path):
    path = write_dump(tmp_path / f"reviews{suffix}", layout, lines=30)
    (found,) = find_files(config(path, source=layout.split("-")[0]))
    assert (found.kind, found.gzipped) == ("reviews", suffix.endswith("gz"))
    assert found.layout.reviews is not None and found.layout.reviews.user_id == REVIEW_KEYS[layout][0]
    assert found.layout.release == (layout.partition("-")[2])


def test_a_layout_can_be_insisted_on(tmp_path):
    path = write_dump(tmp_path / "r.json", "amazon-2018", lines=10)
    assert find_files(config(path, source="amazon", layout="2018"))[0].layout.release == "2018"
    with pytest.raises(SourceError, match=r"r\.json.*looks like Amazon reviews \(2018\).*ingest.layout = 2018"):
        find_files(config(path, source="amazon", layout="2023"))


def test_what_is_not_recognised_is_named_with_its_keys(tmp_path):
    amazon = write_dump(tmp_path / "books.json", "amazon-2023", lines=10, bad=0)
    with pytest.raises(SourceError, match=r"books\.json.*parent_asin.*ingest.source = amazon"):
        find_files(config(amazon))
    with pytest.raises(SourceError, match=r"other\.json.*Keys found: a, b\..*generic"):
        find_files(config(write(tmp_path / "other.json", {"a": 1}, {"b": 2})))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("array.json", b'[{"user_id": "u"}]', "jq -c"),
        ("empty.json", b"\n\n", "is empty"),
        ("dump.tar", b"", "archive; unpack"),
        ("dump.json.bz2", b"", "archive; unpack"),
        ("dump.xml", b"<a/>", "set ingest.format"),
        ("cut.json.gz", gzip.compress(b'{"user_id": "u"}\n' * 9, mtime=0)[:-12], "damaged|empty|has no JSON"),
        ("no.parquet", b"PAR1 not really", "damaged"),
    ],
)
def test_files_that_cannot_be_used(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"(?s){name}.*({message})"):
        find_files(config(path))


def test_paths_globs_and_uris(tmp_path, monkeypatch):
    files = [write(tmp_path / f"part-{n}.json", YELP["review"]) for n in (1, 0)]
    assert expand([str(tmp_path / "part-*.json")]) == [str(files[1]), str(files[0])]
    assert expand([f"file://{files[0]}"]) == [str(files[0])]
    monkeypatch.chdir(tmp_path)
    assert expand(["part-1.json"]) == [str(files[0])]
    with pytest.raises(SourceError, match="names no file"):
        expand(["missing-*.json"])
    with pytest.raises(SourceError, match="names no file"):
        expand(["missing.json"])
    with pytest.raises(SourceError, match="is a folder"):
        expand([str(tmp_path)])
    with pytest.raises(SourceError, match="nowhere"):
        expand(["nowhere://x"])
    with pytest.raises(SourceError, match="named twice"):
        find_files(config(files[0], tmp_path / "*.json"))
    with pytest.raises(SourceError, match="no file holds reviews.*Yelp businesses"):
        find_files(config(write(tmp_path / "b.json", YELP["business"])))


def test_a_remote_file(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/dumps/a/review.json", (json.dumps(YELP["review"]) + "\n").encode())
    memory.pipe("/dumps/b/business.json", (json.dumps(YELP["business"]) + "\n").encode())
    found = find_files(config("memory://dumps/*/*.json"))
    assert [(f.uri, f.name, f.kind) for f in found] == [
        ("memory:///dumps/a/review.json", "a/review.json", "reviews"),
        ("memory:///dumps/b/business.json", "b/business.json", "items"),
    ]
    local = [write(tmp_path / name, YELP[name]) for name in ("review", "business")]
    same = find_files(config(*local, format="json"))
    assert list(content_hashes(same).values()) == list(content_hashes(found).values()), "content, not place"


def test_samples_of_a_large_file_tell_edits_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_WHOLE_BELOW", 1000)
    monkeypatch.setattr(sources, "_SAMPLE", 100)
    monkeypatch.setattr(sources, "_EDGE", 200)
    path = write(tmp_path / "r.json", *[YELP["review"]] * 100)
    data = path.read_bytes()

    def digest() -> str:
        return content_hashes(find_files(config(path)))["r.json"]

    first = digest()
    assert first == digest()
    for changed in (data[:-2] + b" \n", b" " + data[1:], data + b"\n", data.replace(b'"t"', b'"T"')):
        path.write_bytes(changed)
        assert digest() != first


def test_generic_files_by_their_mapping(tmp_path):
    csv = tmp_path / "r.tsv"
    csv.write_text("who\twhat\tscore\nu\ti\t3\n")
    items = tmp_path / "i.parquet"
    pq.write_table(pa.table({"what": ["i"], "name": ["n"], "year": [1999]}), items)
    mapping = {
        "review_columns": {"user_id": "who", "item_id": "what", "rating": "score"},
        "items_files": [str(items)],
        "item_columns": {"item_id": "what", "title": "name", "attributes": ["year"]},
    }
    found = find_files(config(csv, source="generic", **mapping))
    assert [(f.format, f.kind, f.delimiter) for f in found] == [("csv", "reviews", "\t"), ("parquet", "items", ",")]
    with pytest.raises(SourceError, match=r"r\.tsv: ingest.review_columns.rating = 'stars'.*found: score, what, who"):
        find_files(
            config(
                csv,
                source="generic",
                **mapping | {"review_columns": {"user_id": "who", "item_id": "what", "rating": "stars"}},
            )
        )
    with pytest.raises(SourceError, match=r"i\.parquet: ingest.item_columns.attributes.0 = 'age'"):
        find_files(
            config(csv, source="generic", **mapping | {"item_columns": {"item_id": "what", "attributes": ["age"]}})
        )


def test_settings_of_another_source_are_refused():
    for settings in ({"items_files": ["x"]}, {"timestamp": "seconds"}, {"layout": "2018"}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} is set, but source = yelp"):
            config("r.json", **settings)
    with pytest.raises(ValueError, match="since.*after until"):
        config("r.json", since="2020-02-01", until="2020-01-01")
