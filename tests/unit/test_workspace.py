"""A run's folder on three kinds of storage: a local path, fsspec's memory, and a local S3-compatible server."""

import hashlib
import json
import uuid

import pyarrow as pa
import pytest

from xrec.fingerprint import describe_differences, hash_files, hash_of
from xrec.tables import TableError
from xrec.workspace import Workspace, WorkspaceError

SPLITS = pa.table({"user": [0, 0, 1], "item": [0, 1, 0], "split": ["train", "val", "test"]})


@pytest.fixture(scope="module")
def s3_server(s3_options):
    """The storage options of an S3-compatible server on this machine that has the bucket `runs`."""
    Workspace("s3://runs", s3_options).fs.mkdir("runs")
    return s3_options


def opener(kind, request):
    """A function that opens the same new workspace anew, on a kind of storage."""
    if kind == "local":
        folder = request.getfixturevalue("tmp_path") / "run"
        return lambda: Workspace(folder)
    name = uuid.uuid4().hex
    if kind == "memory":
        return lambda: Workspace(f"memory://{name}/run")
    options = request.getfixturevalue("s3_server")
    return lambda: Workspace(f"s3://runs/{name}", options | {"skip_instance_cache": True})


@pytest.fixture(params=["local", "memory", "s3"])
def open_workspace(request):
    return opener(request.param, request)


@pytest.fixture
def workspace(open_workspace):
    return open_workspace()


@pytest.fixture(params=["local", "memory"])
def quick_workspace(request):
    """For what does not depend on the storage; the server takes a while for each request."""
    return opener(request.param, request)()


def finish(workspace, name, config=None, inputs=None, value=1, **options):
    stage = workspace.stage(name, config or {}, inputs=inputs, **options)
    if not stage.done:
        stage.write_json("result.json", value)
        stage.finish({"value": value})
    return stage


# Files and tables ----------------------------------------------------------------------------------------------------


def test_bytes_json_and_tables_come_back(workspace, open_workspace):
    workspace.write_bytes(b"\x00abc", "embed", "raw.bin")
    workspace.write_json({"b": [1, 2], "a": None}, "embed", "facts.json")
    workspace.write_table(SPLITS, "preprocess", "interactions")
    again = open_workspace()
    assert again.read_bytes("embed", "raw.bin") == b"\x00abc"
    assert again.read_json("embed", "facts.json") == {"a": None, "b": [1, 2]}
    assert again.read_table("preprocess", "interactions").to_pydict() == SPLITS.to_pydict()
    assert again.read_table("preprocess", "interactions", columns=["split"]).column_names == ["split"]
    assert again.files("embed") == ["facts.json", "raw.bin"]
    assert again.files("nothing") == []


def test_a_table_may_be_a_folder_of_files(quick_workspace):
    for part, table in enumerate((SPLITS.slice(0, 2), SPLITS.slice(2))):
        quick_workspace.write_table(table, "preprocess/interactions", "interactions")
        source = quick_workspace.read_bytes("preprocess", "interactions", "interactions.parquet")
        quick_workspace.write_bytes(source, "preprocess", "interactions", f"part-{part}.parquet")
        quick_workspace.remove("preprocess", "interactions", "interactions.parquet")
    assert quick_workspace.has_table("preprocess", "interactions")
    assert quick_workspace.read_table("preprocess", "interactions").to_pydict() == SPLITS.to_pydict()


def test_text_tables_come_from_profile_where_it_wrote_one(quick_workspace):
    assert quick_workspace.text_stage("item_profiles") == "preprocess"
    quick_workspace.write_json({}, "profile", "item_profiles", "part.json")
    assert quick_workspace.text_stage("item_profiles") == "profile"


def test_what_is_absent_is_named_with_the_stage_to_run(quick_workspace):
    with pytest.raises(WorkspaceError, match=r"embed/raw.bin does not exist; run `xrec embed` first"):
        quick_workspace.read_bytes("embed", "raw.bin")
    with pytest.raises(WorkspaceError, match=r"stage 'preprocess' has no table 'users'; run `xrec preprocess` first"):
        quick_workspace.read_table("preprocess", "users")
    with (
        pytest.raises(WorkspaceError, match=r"adapter does not exist; run `xrec tune` first"),
        quick_workspace.local("tune", "adapter"),
    ):
        pass


def test_a_table_that_breaks_its_schema_is_neither_written_nor_read(quick_workspace):
    bad = SPLITS.set_column(2, "split", pa.array(["train", "dev", "test"]))
    with pytest.raises(TableError, match="value 'dev'"):
        quick_workspace.write_table(bad, "preprocess", "interactions")
    assert quick_workspace.files("preprocess") == []


def test_a_folder_is_uploaded_whole_replaced_and_read_back(workspace, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ("a.txt", "deep/b.txt")), (second, ("c.txt",))):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"{folder.name} {name}")
    workspace.upload(first, "tune", "adapter")
    with workspace.local("tune", "adapter") as local:
        assert (local / "deep" / "b.txt").read_text() == "first deep/b.txt"
    workspace.upload(second, "tune", "adapter")
    assert workspace.files("tune") == ["adapter/c.txt"]
    workspace.upload(second / "c.txt", "tune", "one.txt")
    workspace.upload(first / "a.txt", "tune", "one.txt")
    with workspace.local("tune", "one.txt") as local:
        assert local.read_text() == "first a.txt"
    workspace.remove("tune")
    assert not workspace.exists("tune", "one.txt")
    assert workspace.files() == []


# Atomicity -----------------------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Not an Exception: a handler for those would not see it, as it would not see a kill."""


def cut_writes_after(monkeypatch, fs, bytes_written):
    """Let every file that `fs` opens for writing take a few bytes and then fail."""
    original = type(fs).open

    def cut_open(self, path, mode="rb", **options):
        file = original(self, path, mode, **options)
        if "w" not in mode:
            return file
        write = file.write

        def cut_write(data):
            write(bytes(data)[:bytes_written])
            raise PowerCut

        monkeypatch.setattr(file, "write", cut_write, raising=False)
        return file

    monkeypatch.setattr(type(fs), "open", cut_open)


@pytest.mark.parametrize("existing", [None, b"the old content"])
def test_a_write_that_fails_half_way_leaves_what_was_there(workspace, existing, monkeypatch):
    if existing is not None:
        workspace.write_bytes(existing, "embed", "facts.bin")
    with monkeypatch.context() as patch:
        cut_writes_after(patch, workspace.fs, 3)
        with pytest.raises(PowerCut):
            workspace.write_bytes(b"the new content", "embed", "facts.bin")
    assert workspace.files("embed") == ([] if existing is None else ["facts.bin"])
    if existing is not None:
        assert workspace.read_bytes("embed", "facts.bin") == existing
    found = workspace.fs.find(workspace.path("embed")) if workspace.exists("embed") else []
    assert not [f for f in found if ".tmp-" in f], "a temporary file stays behind"


def test_a_table_that_fails_half_way_is_not_there(quick_workspace, monkeypatch):
    with monkeypatch.context() as patch:
        cut_writes_after(patch, quick_workspace.fs, 10)
        with pytest.raises(PowerCut):
            quick_workspace.write_table(SPLITS, "preprocess", "interactions")
    assert not quick_workspace.has_table("preprocess", "interactions")


def test_an_upload_that_fails_half_way_leaves_the_old_folder(workspace, tmp_path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        for file in ("a", "b"):
            (tmp_path / name / file).write_text(name)
    workspace.upload(tmp_path / "old", "tune", "adapter")
    put_file = workspace.fs.put_file

    def cut_put(local, remote, **options):
        if local.endswith("b"):
            raise PowerCut
        put_file(local, remote, **options)

    with monkeypatch.context() as patch:
        patch.setattr(workspace.fs, "put_file", cut_put)
        with pytest.raises(PowerCut):
            workspace.upload(tmp_path / "new", "tune", "adapter")
    assert workspace.files("tune") == ["adapter/a", "adapter/b"]
    assert workspace.read_bytes("tune", "adapter", "a") == b"old"


def test_a_temporary_file_that_a_kill_left_is_not_listed(quick_workspace):
    quick_workspace.write_bytes(b"x", "embed", "a.bin.tmp-0123456789ab")
    quick_workspace.write_bytes(b"x", "embed", "a.bin")
    assert quick_workspace.files("embed") == ["a.bin"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(workspace):
    for name in ("a.bin.tmp-01", "model.tmp-02/config.json", "model.tmp-02/deep/b.bin", "part/c.tmp-03/d.bin"):
        workspace.write_bytes(b"x", "embed", *name.split("/"))
    for name in ("a.bin", "model/config.json", "part/c/d.bin"):
        workspace.write_bytes(b"x", "embed", *name.split("/"))
    workspace.write_bytes(b"x", "tune", "e.tmp-04")
    workspace.remove_unfinished("embed")
    found = sorted(path.rpartition("/embed/")[2] for path in workspace.fs.find(workspace.path("embed")))
    assert found == ["a.bin", "model/config.json", "part/c/d.bin"]
    assert workspace.exists("tune", "e.tmp-04")
    workspace.remove_unfinished("explain")


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_that_fails_half_way_leaves_what_was_there(workspace, existing):
    def write(name: str) -> None:
        with workspace.new_folder("backbone", "model") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / name).write_text(name)
            if name == "cut":
                raise PowerCut

    if existing:
        write("old")
    with pytest.raises(PowerCut):
        write("cut")
    assert workspace.files("backbone") == (["model/deep/old"] if existing else [])
    found = workspace.fs.find(workspace.path("backbone")) if workspace.exists("backbone") else []
    assert not [f for f in found if ".tmp-" in f], "a temporary file stays behind"
    write("new")
    assert workspace.files("backbone") == ["model/deep/new"]
    assert workspace.read_bytes("backbone", "model", "deep", "new") == b"new"


def test_files_that_another_process_writes_are_seen(open_workspace):
    here, elsewhere = open_workspace(), open_workspace()
    elsewhere.write_bytes(b"1", "explain", "predictions", "part-0.parquet")
    assert here.files("explain") == ["predictions/part-0.parquet"]
    elsewhere.write_bytes(b"2", "explain", "predictions", "part-1.parquet")
    assert here.exists("explain", "predictions", "part-1.parquet")
    assert here.files("explain") == ["predictions/part-0.parquet", "predictions/part-1.parquet"]


# Stages --------------------------------------------------------------------------------------------------------------


def test_a_finished_stage_is_recognised_and_its_manifest_says_from_what(workspace, open_workspace):
    finish(workspace, "data", {"source": "sample", "seed": 1}, external={"release": "f" * 64})
    again = open_workspace()
    assert again.is_finished("data")
    assert again.stage("data", {"source": "sample", "seed": 1}, external={"release": "f" * 64}).done
    manifest = again.manifest("data")
    content = again.read_bytes("data", "result.json")
    assert manifest["fingerprint"] == {
        "config": {"source": "sample", "seed": 1},
        "inputs": {"release": "f" * 64},
    }
    assert manifest["outputs"] == {
        "result.json": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    }
    assert manifest["versions"]["pyarrow"] == pa.__version__
    assert manifest["seconds"] >= 0
    assert again.read_json("data", "metrics.json") == {"value": 1}
    assert not again.exists("data", "started.json")


def test_working_state_is_not_an_output(quick_workspace):
    stage = quick_workspace.stage("tune", {})
    stage.write_json("checkpoints/step-1.json", 1)
    stage.write_json("adapter/config.json", 2)
    manifest = stage.finish({}, exclude=("checkpoints/",))
    assert list(manifest["outputs"]) == ["adapter/config.json"]


def test_an_unfinished_stage_resumes_with_its_files(workspace):
    stage = workspace.stage("tune", {"epochs": 3})
    stage.write_json("checkpoint.json", {"step": 7})
    resumed = workspace.stage("tune", {"epochs": 3})
    assert not resumed.done
    assert workspace.read_json("tune", "checkpoint.json") == {"step": 7}


def test_other_settings_are_refused_by_name_and_force_discards(workspace):
    config = {"epochs": 3, "adapter": {"experts": 8}}
    finish(workspace, "tune", config)
    other = {"epochs": 4, "adapter": {"experts": 2}}
    with pytest.raises(
        WorkspaceError,
        match=r"'tune' was finished with another config.adapter.experts \(8, now 2\); config.epochs \(3, now 4\)."
        r" Pass --force",
    ):
        workspace.stage("tune", other)
    assert workspace.read_json("tune", "result.json") == 1
    stage = workspace.stage("tune", other, force=True)
    assert not stage.done
    assert workspace.files("tune") == ["started.json"]


def test_begun_with_other_settings_is_refused_once_there_is_work_to_lose(quick_workspace):
    quick_workspace.stage("tune", {"epochs": 3})
    begun = quick_workspace.stage("tune", {"epochs": 4})
    begun.write_json("checkpoint.json", {"step": 7})
    with pytest.raises(WorkspaceError, match=r"'tune' was begun with another config.epochs \(4, now 5\)"):
        quick_workspace.stage("tune", {"epochs": 5})


def test_force_rebuilds_a_finished_stage(quick_workspace):
    finish(quick_workspace, "embed", {"seed": 0}, value=1)
    assert not finish(quick_workspace, "embed", {"seed": 0}, value=2, force=True).workspace.stage("data", {}).done
    assert quick_workspace.read_json("embed", "result.json") == 2
    assert quick_workspace.is_finished("embed")


def test_a_stage_needs_its_inputs_finished(quick_workspace):
    with pytest.raises(
        WorkspaceError, match=r"'data' has not finished; run `xrec ingest`, `xrec import` or `xrec sample` first"
    ):
        quick_workspace.stage("preprocess", {}, inputs=["data"])
    quick_workspace.stage("data", {}).write_json("result.json", 1)
    with pytest.raises(WorkspaceError, match=r"the stage 'data' has not finished"):
        quick_workspace.stage("preprocess", {}, inputs=["data"])


def test_a_rebuilt_input_is_refused_unless_its_content_is_the_same(quick_workspace):
    finish(quick_workspace, "data", value=1)
    finish(quick_workspace, "preprocess", inputs=["data"])
    finish(quick_workspace, "data", value=1, force=True)
    assert quick_workspace.stage("preprocess", {}, inputs=["data"]).done
    finish(quick_workspace, "data", value=2, force=True)
    with pytest.raises(
        WorkspaceError, match=r"'preprocess' was finished with another inputs.data \([0-9a-f]{12}…, now"
    ):
        quick_workspace.stage("preprocess", {}, inputs=["data"])


def test_an_altered_or_missing_input_is_refused(workspace):
    finish(workspace, "data", value=1)
    workspace.write_json(1234567, "data", "result.json")
    with pytest.raises(WorkspaceError, match=r"data/result.json was altered after the stage 'data' finished; rebuild"):
        workspace.stage("preprocess", {}, inputs=["data"])
    workspace.remove("data", "result.json")
    with pytest.raises(WorkspaceError, match=r"data/result.json is gone; rebuild it"):
        workspace.stage("preprocess", {}, inputs=["data"])


def test_a_change_of_the_same_size_is_noticed_where_reading_is_cheap(tmp_path):
    workspace = Workspace(tmp_path)
    finish(workspace, "data", value=1)
    workspace.write_json(2, "data", "result.json")
    with pytest.raises(WorkspaceError, match="was altered"):
        workspace.stage("preprocess", {}, inputs=["data"])


# Names and hashes ----------------------------------------------------------------------------------------------------


def test_bad_addresses_are_refused():
    with pytest.raises(ValueError, match="the path is empty"):
        Workspace(" ")
    with pytest.raises(WorkspaceError, match=r"workspace 'nowhere://x'"):
        Workspace("nowhere://x")


def test_a_relative_path_and_a_file_uri_are_the_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", f"file://{tmp_path}/run", f"{tmp_path}/run/"):
        workspace = Workspace(name)
        assert workspace.is_local
        assert workspace.uri == str(workspace) == f"{tmp_path}/run"
    assert not Workspace("memory://run").is_local


def test_hashes_follow_names_and_contents(tmp_path):
    for name, text in (("a.txt", "1"), ("deep/b.txt", "2")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    by_hand = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in (("a.txt", "1"), ("deep/b.txt", "2"))}
    expected = hashlib.sha256(json.dumps(by_hand, sort_keys=True).encode()).hexdigest()
    assert hash_files(tmp_path) == expected
    assert hash_files(tmp_path, "*.txt") == hash_of({"a.txt": by_hand["a.txt"]})
    assert hash_of({"x": 1, "y": 2}) == hash_of({"y": 2, "x": 1}) != hash_of({"x": 2, "y": 1})


def test_differences_are_named_by_path():
    before = {"a": 1, "b": {"c": [1, 2], "d": "f" * 64}, "gone": 0}
    now = {"a": 1, "b": {"c": [1, 3], "d": "e" * 64}, "new": None}
    assert describe_differences(before, now) == [
        "b.c ([1, 2], now [1, 3])",
        "b.d (ffffffffffff…, now eeeeeeeeeeee…)",
        "gone (0, now None)",
    ]


# Variants ------------------------------------------------------------------------------------------------------------


def test_a_variant_reads_the_stages_before_its_own_from_its_base(open_workspace):
    workspace = open_workspace()
    finish(workspace, "data", value="data")
    finish(workspace, "tune", value="tuned with the base's settings")
    variant = workspace.variant("without_profiles", 3, ("tune", "explain"))
    assert variant.uri == f"{workspace.uri}/variants/without_profiles/3"
    assert variant.read_json("data", "result.json") == "data"
    assert not variant.is_finished("tune")
    finish(variant, "tune", inputs=["data"], value="its own")
    assert workspace.read_json("tune", "result.json") == "tuned with the base's settings"
    assert variant.manifest("tune")["fingerprint"]["inputs"] == {"data": workspace.output_hash("data")}
    # Whoever opens its folder, another process too, finds the base.
    again = Workspace(variant.uri, variant.storage_options)
    assert (again.read_json("data", "result.json"), again.read_json("tune", "result.json")) == ("data", "its own")
    assert open_workspace().variants() == [("without_profiles", 3)]


def test_variants_share_stages_through_a_place_between_them_and_the_base(quick_workspace):
    finish(quick_workspace, "data", value="data")
    between = quick_workspace.shared_variant("0af3", ("backbone",))
    finish(between, "backbone", inputs=["data"], value="another model")
    for seed in (0, 1):
        variant = quick_workspace.variant("without_profiles", seed, ("tune",), between)
        assert variant.read_json("backbone", "result.json") == "another model"
        assert variant.read_json("data", "result.json") == "data"
    assert not quick_workspace.is_finished("backbone")
    assert quick_workspace.variants() == [("without_profiles", 0), ("without_profiles", 1)]


def test_a_variant_writes_no_stage_of_its_base(quick_workspace):
    finish(quick_workspace, "data")
    variant = quick_workspace.variant("a", 0, ("tune",))
    with pytest.raises(WorkspaceError, match="'data' belongs to its base"):
        variant.stage("data", {})
    assert quick_workspace.is_finished("data")


def test_a_variant_with_other_stages_of_its_own_is_refused(quick_workspace):
    quick_workspace.variant("a", 0, ("tune",))
    quick_workspace.variant("a", 0, ("tune",))
    with pytest.raises(WorkspaceError, match="made from other stages"):
        quick_workspace.variant("a", 0, ("backbone", "tune"))
    for name in ("../a", "", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="letters, digits"):
            quick_workspace.variant(name, 0, ("tune",))
    with pytest.raises(ValueError, match="unknown stage 'tunes'"):
        quick_workspace.variant("b", 0, ("tunes",))
