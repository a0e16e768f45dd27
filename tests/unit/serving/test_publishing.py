"""Publishing: killed at any moment the old snapshot stays, and the next one cleans up; locally and remotely."""

import os
import shutil
import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.snapshot_changes import flip_byte, publish_next
from tests.tiny_world import finish_tune
from xrec.fingerprint import hash_of
from xrec.serving import publishing
from xrec.serving.publishing import publish
from xrec.serving.snapshot import Snapshot, SnapshotError, current_snapshot
from xrec.workspace import Workspace, WorkspaceError

STAGES = ("preprocess", "embed", "tune", "backbone")


def listing(workspace) -> set[str]:
    return {str(p).rstrip("/").rsplit("/", 1)[-1] for p in workspace.fs.ls(workspace.path("snapshot"), detail=False)}


def state_of(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def test_the_id_follows_from_the_stages(published):
    stages = {name: published.output_hash(name) for name in STAGES}
    assert current_snapshot(published) == hash_of({"format": 1, "stages": stages})[:16]
    assert published.read_json("snapshot", "current.json") == {"snapshot": current_snapshot(published)}
    assert Snapshot.open(published).manifest["stages"] == stages


def test_the_same_stages_are_published_once(workspace):
    before = state_of(Path(workspace.path("snapshot")))
    assert publish(workspace) == current_snapshot(workspace)
    assert state_of(Path(workspace.path("snapshot"))) == before


def test_newer_stages_are_published_and_the_newest_two_kept(workspace):
    names = [current_snapshot(workspace)]
    for seed in (1, 2, 3):
        names.append(publish_next(workspace, seed))
        assert Snapshot.open(workspace).id == names[-1]
        assert listing(workspace) == {*names[-2:], "current.json", "lock"}
    # Back to earlier stages that are still published: the pointer alone moves.
    assert publish_next(workspace, 2) == names[2]
    assert Snapshot.open(workspace).id == names[2]
    assert publish_next(workspace, 4) not in names
    publish(workspace, keep=1)
    assert listing(workspace) == {current_snapshot(workspace), "current.json", "lock"}
    with pytest.raises(ValueError, match="keep = 0 must be 1 or more"):
        publish(workspace, keep=0)


def test_the_snapshot_does_not_change_with_the_stages(workspace):
    before = Snapshot.open(workspace)
    finish_tune(workspace, 1, force=True)
    shutil.rmtree(workspace.path("embed"))
    assert Snapshot.open(workspace).adapter_hash == before.adapter_hash


@pytest.mark.parametrize("file", ["manifest.json", "users.arrow", "embeddings.safetensors"])
def test_a_damaged_snapshot_is_published_again(workspace, file):
    named = current_snapshot(workspace)
    flip_byte(Path(workspace.path("snapshot", named, file)))
    assert publish(workspace) == named
    assert Snapshot.open(workspace).id == named
    Path(workspace.path("snapshot", "current.json")).unlink()
    assert publish(workspace) == current_snapshot(workspace) == named


@pytest.mark.parametrize("stage", STAGES)
def test_an_unfinished_stage_is_named(workspace, stage):
    workspace.remove(stage, "manifest.json")
    with pytest.raises(WorkspaceError, match=f"the stage '{stage}' has not finished; run `xrec {stage}` first"):
        publish(workspace)


def test_altered_stages_are_refused(workspace):
    finish_tune(workspace, 1, force=True)
    before = current_snapshot(workspace)
    flip_byte(Path(workspace.path("embed", "embeddings.safetensors")))
    with pytest.raises(WorkspaceError, match="embeddings.safetensors was altered after the stage 'embed' finished"):
        publish(workspace)
    assert Snapshot.open(workspace).id == before


def test_embeddings_that_the_adapter_was_not_tuned_on_are_refused(workspace):
    stage = workspace.stage("embed", {}, force=True)
    shutil.copy(
        Path(workspace.path("snapshot", current_snapshot(workspace), "embeddings.safetensors")), workspace.path("embed")
    )
    flip_byte(Path(workspace.path("embed", "embeddings.safetensors")), 0.99)
    stage.finish({})
    with pytest.raises(WorkspaceError, match="'embed' was rebuilt after the adapter was tuned on it; tune it again"):
        publish(workspace)


def test_a_stage_that_is_rebuilt_meanwhile_is_noticed(workspace, monkeypatch):
    before = current_snapshot(workspace)
    finish_tune(workspace, 1, force=True)
    write_content = publishing.write_content

    def slow(*arguments):
        written = write_content(*arguments)
        finish_tune(workspace, 2, force=True)
        return written

    monkeypatch.setattr(publishing, "write_content", slow)
    with pytest.raises(WorkspaceError, match="a stage was rebuilt meanwhile; publish again"):
        publish(workspace)
    assert Snapshot.open(workspace).id == before
    monkeypatch.undo()
    assert publish(workspace) == Snapshot.open(workspace).id != before


def test_what_cannot_be_opened_is_not_published(workspace, monkeypatch):
    before = current_snapshot(workspace)
    finish_tune(workspace, 1, force=True)
    write_content = publishing.write_content

    def broken(workspace, folder):
        manifest = write_content(workspace, folder)
        flip_byte(folder / "arrays.safetensors")
        return manifest

    monkeypatch.setattr(publishing, "write_content", broken)
    with pytest.raises(SnapshotError, match="arrays.safetensors was altered"):
        publish(workspace)
    assert Snapshot.open(workspace).id == before
    assert listing(workspace) == {before, "current.json", "lock"}


# Kills ---------------------------------------------------------------------------------------------------------------


def in_a_killed_process(work, monkeypatch, place, name, call=1, after=False) -> None:
    """Run `work` in a process that is killed when it calls `place.name` for the `call`-th time, or just after that."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    original, calls = getattr(place, name), []

    def killing(*arguments, **options):
        calls.append(arguments)
        if len(calls) < call:
            return original(*arguments, **options)
        if after:
            original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        setattr(place, name, killing)
        work()
    finally:
        os._exit(1)


KILLS = [
    (publishing, "write_content", 1, False),
    (publishing, "write_content", 1, True),
    (publishing, "Snapshot", 1, True),
    (publishing.os, "rename", 1, False),
    (publishing.os, "rename", 1, True),
    (Workspace, "write_json", 1, False),
    (os, "replace", 1, False),
    (os, "replace", 1, True),
    (Workspace, "remove", 1, True),
    (Workspace, "remove", 2, False),
]


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: f"{kill[1]}-{kill[2]}-{kill[3]}")
def test_a_kill_leaves_a_whole_snapshot_and_the_next_one_cleans_up(workspace, monkeypatch, kill):
    first = current_snapshot(workspace)
    second = publish_next(workspace, 1)
    finish_tune(workspace, 2, force=True)
    in_a_killed_process(lambda: publish(workspace), monkeypatch, *kill)
    served = Snapshot.open(workspace).id
    switched = kill[1:] in (("replace", 1, True), ("remove", 1, True), ("remove", 2, False))
    assert (served != second) == switched and served != first
    assert listing(workspace) != {second, served, "current.json", "lock"}
    third = publish(workspace)
    assert Snapshot.open(workspace).id == third
    assert listing(workspace) == {second, third, "current.json", "lock"}
    assert Snapshot.open(workspace, second).id == second


def test_one_publisher_at_a_time(workspace, monkeypatch):
    finish_tune(workspace, 1, force=True)
    made, make = [], publishing._make
    monkeypatch.setattr(publishing, "_make", lambda *arguments: (made.append(arguments), make(*arguments)))
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda _: publish(workspace), range(4)))
    assert len(set(names)) == len(made) == 1
    assert Snapshot.open(workspace).id == names[0]


# Remote workspaces ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def snapshots_bucket(s3_options):
    """The storage options of an S3-compatible server on this machine that has the bucket `snapshots`."""
    Workspace("s3://snapshots", s3_options).fs.mkdir("snapshots")
    return s3_options


@pytest.fixture
def remote(published, request, cache) -> Workspace:
    """The finished stages, and nothing published."""
    name = uuid.uuid4().hex
    if getattr(request, "param", "memory") == "memory":
        workspace = Workspace(f"memory://{name}")
    else:
        workspace = Workspace(
            f"s3://snapshots/{name}", request.getfixturevalue("snapshots_bucket") | {"skip_instance_cache": True}
        )
    for stage in STAGES:
        workspace.upload(published.path(stage), stage)
    return workspace


@pytest.mark.parametrize("remote", ["memory", "s3"], indirect=True)
def test_a_remote_snapshot_is_the_same_but_for_its_time(remote, snapshot):
    assert publish(remote) == publish(remote) == snapshot.id
    opened = Snapshot.open(remote)
    assert {**opened.manifest, "created": 0, "checksum": 0} == {**snapshot.manifest, "created": 0, "checksum": 0}
    assert listing(remote) == {snapshot.id, "current.json"}


def test_the_remote_manifest_comes_last_and_the_pointer_after_it(remote, snapshot, monkeypatch):
    first = publish(remote)
    written, put_file, write_json = [], remote.fs.put_file, Workspace.write_json

    def noted(local, target, **options):
        written.append(target.rsplit("/snapshot/")[-1])
        put_file(local, target, **options)

    def noted_json(self, value, *parts):
        written.append("/".join(parts))
        write_json(self, value, *parts)

    finish_tune(remote, 1, force=True)
    monkeypatch.setattr(remote.fs, "put_file", noted)
    monkeypatch.setattr(Workspace, "write_json", noted_json)
    second = publish(remote)
    assert written[-2:] == [f"{second}/manifest.json", "snapshot/current.json"]
    assert len(written) == len(snapshot.manifest["files"]) + 2
    assert listing(remote) == {first, second, "current.json"}


@pytest.mark.parametrize("remote", ["memory", "s3"], indirect=True)
def test_an_upload_that_breaks_off_leaves_the_old_snapshot_and_the_next_one_cleans_up(remote, monkeypatch):
    first = publish(remote)
    finish_tune(remote, 1, force=True)
    put_file = remote.fs.put_file

    def broken(local, target, **options):
        if target.endswith("users.arrow"):
            raise OSError("the connection is gone")
        put_file(local, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(remote.fs, "put_file", broken)
        with pytest.raises(OSError, match="the connection is gone"):
            publish(remote)
    assert Snapshot.open(remote).id == first
    assert len(listing(remote)) == 3
    second = publish_next(remote, 2)
    assert Snapshot.open(remote).id == second
    assert listing(remote) == {first, second, "current.json"}


def test_a_remote_snapshot_that_was_damaged_is_published_again(remote):
    named = publish(remote)
    copy = Snapshot.open(remote).folder
    remote.write_bytes(b"damaged", "snapshot", named, "items.arrow")
    assert publish(remote) == named
    shutil.rmtree(copy)
    assert Snapshot.open(remote).items.title(1) == "place 1"


def test_an_upload_that_another_publisher_takes_for_a_killed_ones_is_noticed(remote, monkeypatch):
    first = publish(remote)
    finish_tune(remote, 1, force=True)
    put_file = remote.fs.put_file

    def meddling(local, target, **options):
        put_file(local, target, **options)
        if target.endswith("users.arrow"):
            publishing._clean_up(remote, 2)

    monkeypatch.setattr(remote.fs, "put_file", meddling)
    with pytest.raises(WorkspaceError, match="was not uploaded whole; publish again"):
        publish(remote)
    assert Snapshot.open(remote).id == first


def test_two_publishers_of_the_same_stages_do_not_harm_each_other(remote, monkeypatch):
    put_file = remote.fs.put_file

    def doubled(local, target, **options):
        if target.endswith("users.arrow"):
            monkeypatch.setattr(remote.fs, "put_file", put_file)
            publish(remote)
        put_file(local, target, **options)

    monkeypatch.setattr(remote.fs, "put_file", doubled)
    assert publish(remote) == current_snapshot(remote) == Snapshot.open(remote).id


def test_an_upload_that_loses_bytes_is_noticed(remote, monkeypatch):
    put_file = remote.fs.put_file

    def losing(local, target, **options):
        if target.endswith("items.arrow"):
            short = Path(local).with_name("short")
            short.write_bytes(Path(local).read_bytes()[:-1])
            local = str(short)
        put_file(local, target, **options)

    monkeypatch.setattr(remote.fs, "put_file", losing)
    with pytest.raises(WorkspaceError, match="items.arrow was not uploaded whole; publish again"):
        publish(remote)
    with pytest.raises(SnapshotError, match="nothing is published for serving"):
        Snapshot.open(remote)
