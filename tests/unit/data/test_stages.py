"""The stages that make data and index it, as commands run them: summaries, resuming, refusals, dry runs."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_jobs import import_release, preprocess, sample
from xrec.config import ConfigError, ImportConfig, PreprocessConfig, SampleConfig
from xrec.tables import TableError, from_rows
from xrec.workspace import Workspace, WorkspaceError

SAMPLE = SampleConfig(users=40, items=20, interactions_per_user=6)


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path):
    return Workspace(tmp_path / "w" if request.param == "local" else f"memory://stages-{tmp_path.name}")


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "total.csv").write_text("user,item\n0,1\n1,1\n1,2\n")
    return folder


def test_sample_then_preprocess_and_again(workspace):
    summary = sample.run(workspace, SAMPLE)
    made = workspace.read_table("data", "reviews").num_rows
    assert summary == f"sample: 40 users, 20 items, {made} reviews with explanations -> {workspace}/data"
    summary = preprocess.run(workspace, PreprocessConfig())
    splits = workspace.read_table("preprocess", "interactions")["split"].to_pylist()
    counted = ", ".join(f"{splits.count(split)} {split}" for split in ("train", "val", "test"))
    assert summary == (
        f"preprocess: 40 users, 20 items, {made} interactions ({counted}), {made} explanations "
        f"-> {workspace}/preprocess"
    )
    assert "already finished" in sample.run(workspace, SAMPLE)
    assert "already finished" in preprocess.run(workspace, PreprocessConfig())
    for table in ("users", "items_index", "interactions", "item_profiles", "user_profiles", "explanations"):
        assert workspace.read_table("preprocess", table).num_rows > 0
    metrics = workspace.read_json("preprocess", "metrics.json")
    assert all(isinstance(value, int | float) for value in metrics.values()), "one flat object of figures"
    assert metrics["leak/explained_test_pairs_in_train_graph"] == 0


def test_other_settings_are_refused_and_force_rebuilds(workspace):
    sample.run(workspace, SAMPLE)
    preprocess.run(workspace, PreprocessConfig())
    with pytest.raises(WorkspaceError, match=r"'preprocess' was finished with another config.k_core \(0, now 2\)"):
        preprocess.run(workspace, PreprocessConfig(k_core=2))
    sample.run(workspace, SAMPLE.model_copy(update={"seed": 1}), force=True)
    with pytest.raises(WorkspaceError, match=r"'preprocess' was finished with another inputs.data"):
        preprocess.run(workspace, PreprocessConfig())
    assert "-> " in preprocess.run(workspace, PreprocessConfig(k_core=2), force=True)


def test_a_setting_that_failed_can_be_mended_without_force(workspace):
    with pytest.raises(ConfigError, match=r"sample.interactions_per_user = 24"):
        sample.run(workspace, SampleConfig(users=40, items=20))
    sample.run(workspace, SAMPLE)
    with pytest.raises(ConfigError, match=r"preprocess.k_core = 99"):
        preprocess.run(workspace, PreprocessConfig(k_core=99))
    assert "-> " in preprocess.run(workspace, PreprocessConfig())


def test_a_dry_run_writes_nothing(workspace, release):
    texts = [
        sample.run(workspace, SAMPLE, dry_run=True),
        preprocess.run(workspace, PreprocessConfig(), dry_run=True),
        import_release.run(workspace, ImportConfig(path=str(release)), dry_run=True),
    ]
    assert all(": would " in text for text in texts)
    assert "total.csv" in texts[-1]
    assert workspace.files() == []


def test_preprocess_needs_data(workspace):
    with pytest.raises(WorkspaceError, match="the stage 'data' has not finished"):
        preprocess.run(workspace, PreprocessConfig())


def test_an_import_is_known_by_its_files_not_by_its_path(workspace, release, tmp_path):
    config = ImportConfig(path=str(release))
    summary = import_release.run(workspace, config)
    assert summary == f"import: 2 users, 2 items, 3 interactions, 0 explanations -> {workspace}/data"
    moved = release.rename(tmp_path / "moved")
    moved_config = ImportConfig(path=str(moved))
    (moved / "notes.txt").write_text("not read")
    assert "already finished" in import_release.run(workspace, moved_config)
    assert str(tmp_path) not in json.dumps(workspace.manifest("data"))
    (moved / "total.csv").write_text("user,item\n0,1\n")
    with pytest.raises(WorkspaceError, match=r"'data' was finished with another inputs.total.csv"):
        import_release.run(workspace, moved_config)
    assert "1 interactions" in import_release.run(workspace, moved_config, force=True)
    with pytest.raises(WorkspaceError, match=r"config.source \('import', now 'sample'\)"):
        sample.run(workspace, SAMPLE)


def test_a_source_without_texts_or_leaks_is_preprocessed(workspace, release):
    import_release.run(workspace, ImportConfig(path=str(release)))
    assert "0 explanations" in preprocess.run(workspace, PreprocessConfig())
    assert not workspace.has_table("preprocess", "explanations")
    assert not [name for name in workspace.read_json("preprocess", "metrics.json") if name.startswith("leak/")]


def test_preprocess_reads_no_texts_but_checks_what_it_reads(tmp_path):
    """A dump's texts need not fit into memory: the column is not even of the right type here."""
    workspace = Workspace(tmp_path)
    stage = workspace.stage("data", {"source": "test"})
    pairs = {"user_id": ["u1", "u1", "u2"], "item_id": ["a", "b", "a"], "rating": [5.0, 4.0, 1.0]}
    for part in range(2):
        rows = pa.table(pairs | {"text": [[part]] * 3, "timestamp": ["no number"] * 3})
        with workspace.open_new("data", "reviews", f"part-{part}.parquet") as file:
            pq.write_table(rows, file)
    stage.write_table("items", from_rows("items", [{"item_id": "a", "title": "A"}]))
    stage.finish({})
    preprocess.run(workspace, PreprocessConfig(min_rating=2))
    assert workspace.read_table("preprocess", "interactions").num_rows == 2
    assert workspace.read_table("preprocess", "items_index")["title"].to_pylist() == ["A", "item b"]


def test_preprocess_refuses_reviews_that_break_their_schema(tmp_path):
    workspace = Workspace(tmp_path)
    stage = workspace.stage("data", {"source": "test"})
    with workspace.open_new("data", "reviews.parquet") as file:
        pq.write_table(pa.table({"user_id": ["u1", ""], "item_id": ["a", "b"]}), file)
    stage.write_table("items", from_rows("items", []))
    stage.finish({})
    with pytest.raises(TableError, match="'reviews', column 'user_id', row 1: value '' is empty"):
        preprocess.run(workspace, PreprocessConfig())
