"""Raw dumps to the tables of a workspace through Ray Data, against a plain loop over the files (`tests/dumps.py`)."""

import json

import pytest

from ray_jobs import ingest, preprocess
from tests.dumps import read_plainly, write_dump
from xrec.config import IngestConfig, PreprocessConfig
from xrec.data.ingest import WORK
from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace, WorkspaceError

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def dump(tmp_path):
    """Two files of reviews, one compressed, and one of businesses, some listed twice."""
    folder = tmp_path / "dump"
    folder.mkdir()
    write_dump(folder / "review-0.json", "yelp", lines=500)
    write_dump(folder / "review-1.json.gz", "yelp", lines=200, seed=1)
    lines = [json.dumps({"business_id": f"i{n % 20}", "name": f"Place {n}", "city": "C"}) for n in range(25)]
    (folder / "business.json").write_text("\n".join([*lines, "{"]))
    (folder / "tip.json").write_text('{"user_id":"u","business_id":"b","text":"t","compliment_count":0}\n')
    return folder


def settings(dump, **changes) -> IngestConfig:
    compute = {"chunk_megabytes": 0.01}
    return IngestConfig.model_validate(
        {"source": "yelp", "files": [str(dump / "*.json"), str(dump / "*.gz")], "compute": compute, **changes}
    )


def expected_rows(dump) -> tuple[list, dict]:
    parts = [read_plainly(dump / name, "yelp") for name in ("review-0.json", "review-1.json.gz")]
    return [row for rows, _ in parts for row in rows], dict(parts[0][1] + parts[1][1])


def modified(workspace: Workspace) -> dict[str, int]:
    return {f: workspace.fs.info(workspace.path("data", f))["mtime"] for f in workspace.files("data")}


def test_a_dump_becomes_the_tables_of_a_workspace(dump, tmp_path):
    workspace, config = Workspace(tmp_path / "w"), settings(dump)
    foretold = ingest.run(workspace, config, dry_run=True)
    assert "tip.json (Yelp tips, 0.0 MB, not used)" in foretold and "review-1.json.gz (Yelp reviews" in foretold
    assert not (tmp_path / "w").exists()
    summary = ingest.run(workspace, config)
    rows, dropped = expected_rows(dump)
    assert workspace.read_table("data", "reviews").to_pylist() == rows
    items = workspace.read_table("data", "items").to_pylist()
    assert [(i["item_id"], i["title"]) for i in items] == [(f"i{n}", f"Place {n}") for n in range(20)]
    assert f"{len(rows):,} reviews" in summary and "20 items (6 dropped (5 repeated_item, 1 bad_json))" in summary
    # The report, the figures and the log agree.
    report = workspace.read_json("data", "dropped.json")
    assert {reason: entry["count"] for reason, entry in report["reviews"]["dropped"].items()} == dropped
    metrics = workspace.read_json("data", "metrics.json")
    assert {k.split("/")[-1]: v for k, v in metrics.items() if k.startswith("dropped/reviews/")} == dropped
    assert metrics["reviews"] == len(rows) and metrics["reviews/read"] == len(rows) + sum(dropped.values())
    log = read_metrics(workspace, "data")
    assert sum(line.get("reviews", 0) for line in log) == len(rows)
    assert len(workspace.files("data", "reviews")) > 10, "tiny chunks"
    assert not workspace.files("data", WORK)
    # Again: nothing to do, from wherever the files are; and preprocess finds what it needs.
    before = modified(workspace)
    moved = dump.rename(tmp_path / "elsewhere")
    assert "already finished" in ingest.run(workspace, settings(moved))
    assert modified(workspace) == before
    preprocess.run(workspace, PreprocessConfig(min_rating=2))
    pairs = {(r["user_id"], r["item_id"]) for r in rows if r["rating"] is None or r["rating"] >= 2}
    assert workspace.read_table("preprocess", "interactions").num_rows == len(pairs)


def test_an_interrupted_run_goes_on_and_other_files_are_refused(dump, tmp_path, monkeypatch):
    workspace, config = Workspace(tmp_path / "w"), settings(dump)

    def die(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest, "write_items", die)
    with pytest.raises(KeyboardInterrupt):
        ingest.run(workspace, config)
    monkeypatch.undo()
    parts = sorted(workspace.files("data", "reviews"))
    lost = parts[::3]
    for part in lost:
        workspace.remove("data", "reviews", part)
    unfinished = tmp_path / "w" / "data" / "reviews" / f"{parts[0]}.tmp-0123"
    unfinished.write_bytes(b"half a fil")
    kept = {f: mtime for f, mtime in modified(workspace).items() if f.startswith("reviews/")}
    # Another size of chunks does not matter: the chunks are those with which the stage began.
    again = settings(dump, compute={"chunk_megabytes": 0.003})
    ingest.run(workspace, again)
    rows, _ = expected_rows(dump)
    assert workspace.read_table("data", "reviews").to_pylist() == rows
    now = modified(workspace)
    assert {f: now[f] for f in kept} == kept, "a finished chunk was read again"
    assert sorted(workspace.files("data", "reviews")) == parts and not unfinished.exists()
    assert workspace.read_json("data", "metrics.json")["reviews"] == len(rows)
    # The same workspace with another file, then with another filter.
    with (dump / "review-0.json").open("ab") as file:
        file.write(b"\n{}")
    with pytest.raises(WorkspaceError, match=r"another inputs.review-0.json"):
        ingest.run(workspace, config)
    write_dump(dump / "review-0.json", "yelp", lines=500)
    with pytest.raises(WorkspaceError, match=r"config.min_rating \(None, now 4.0\)"):
        ingest.run(workspace, settings(dump, min_rating=4))
    ingest.run(workspace, settings(dump, min_rating=4), force=True)
    assert {r["rating"] for r in workspace.read_table("data", "reviews").to_pylist()} == {4.0, 5.0, None}


def test_errors_say_what_and_where(dump, tmp_path):
    with pytest.raises(WorkspaceError, match=r"none of \d+ reviews is left: .*short_text"):
        ingest.run(Workspace(tmp_path / "none"), settings(dump, min_words=99))
    damaged = dump / "review-1.json.gz"
    write_dump(damaged, "yelp", lines=12_000, bad=0)
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    with pytest.raises(WorkspaceError, match=r"review-1.json.gz is damaged.*run it again"):
        ingest.run(Workspace(tmp_path / "damaged"), settings(dump))
    with pytest.raises(WorkspaceError, match="memory://"):
        ingest.run(Workspace("memory://ingest-test"), settings(dump))
