"""Several datasets, exchanged while requests go on: a good snapshot is taken, a bad one leaves the old one in place."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import EndpointConnectionError

from tests.snapshot_changes import flip_byte, publish_next
from xrec.serving import catalog as module
from xrec.serving.catalog import Catalog, Change
from xrec.serving.publishing import publish
from xrec.serving.queries import ItemQuery, RequestError, UserQuery
from xrec.serving.snapshot import Snapshot, current_snapshot
from xrec.workspace import Workspace, WorkspaceError

PAIR = [UserQuery("u1")], [ItemQuery("i1")]


@pytest.fixture
def catalog(workspace) -> Catalog:
    return Catalog({"demo": workspace.uri})


def vector(lookup) -> np.ndarray:
    return lookup.resolve(*PAIR)[0].user_vector


def test_datasets_by_name_and_the_first_without(workspace, published):
    catalog = Catalog({"b": workspace, "a": published.uri})
    assert catalog.names == ["b", "a"]
    assert catalog.dataset() is catalog.dataset("b") is not catalog.dataset("a")
    with pytest.raises(RequestError, match="no dataset 'c'; the datasets are b, a") as caught:
        catalog.dataset("c")
    assert (caught.value.status, caught.value.code, caught.value.field) == (404, "dataset_not_found", "dataset")
    with pytest.raises(RequestError):
        catalog.dataset("")


def test_states_say_what_is_served(catalog, workspace, snapshot):
    state = catalog.states()["demo"]
    assert state.pop("loaded_at")[:2] == "20"
    assert state == {
        "workspace": workspace.uri,
        "snapshot": snapshot.id,
        "users": 14,
        "items": 10,
        "adapter_hash": snapshot.adapter_hash,
        "backbone": snapshot.backbone_key,
        "error": None,
    }


def test_a_dataset_that_cannot_be_served_is_named_at_the_start(workspace, published, tmp_path):
    flip_byte(Path(workspace.path("snapshot", current_snapshot(workspace), "users.arrow")))
    with pytest.raises(WorkspaceError, match="dataset 'bad': .*users.arrow was altered"):
        Catalog({"good": published.uri, "bad": workspace.uri})
    with pytest.raises(WorkspaceError, match="dataset 'new': .*nothing is published for serving"):
        Catalog({"new": str(tmp_path / "nothing")})
    with pytest.raises(WorkspaceError, match="dataset 'blank': workspace: the path is empty"):
        Catalog({"blank": " "})
    with pytest.raises(ValueError, match="datasets: none is named"):
        Catalog({})


@pytest.mark.parametrize(
    "changes", [{"injection": "output"}, {"input_replacement": False}, {"backbone": "org/m", "backbone_hash": "e" * 64}]
)
def test_datasets_must_share_the_backbone(workspace, published, changes):
    publish_next(workspace, **changes)
    with pytest.raises(
        WorkspaceError, match="dataset 'other': .*of dataset 'other' is for the backbone .* of 'demo' .* is for"
    ):
        Catalog({"demo": published.uri, "other": workspace.uri})
    assert Catalog({"other": workspace.uri}).names == ["other"]


def test_a_newer_snapshot_is_taken_and_who_holds_the_old_one_keeps_it(catalog, workspace):
    old = catalog.dataset()
    before, vector_before = old.snapshot.id, vector(old)
    assert catalog.refresh() == []
    after = publish_next(workspace, 1)
    assert catalog.refresh() == [Change("demo", before, after)]
    assert catalog.refresh() == []
    new = catalog.dataset()
    assert new.snapshot.id == after == catalog.states()["demo"]["snapshot"]
    assert not np.allclose(vector(new), vector_before)
    # Its folder is removed by the second publication after it, and still it answers.
    publish_next(workspace, 2)
    catalog.refresh()
    assert not old.snapshot.folder.exists()
    np.testing.assert_array_equal(vector(old), vector_before)
    assert old.user("u3").history and len(old.recommend(UserQuery("u1"), 3)) == 3


def refused(catalog, before, message) -> None:
    """A refresh says once that it refuses, and the old snapshot answers on."""
    changes = catalog.refresh()
    assert [(c.dataset, c.before, c.after) for c in changes] == [("demo", before, before)]
    assert message in changes[0].error
    assert catalog.refresh() == []
    assert message in catalog.states()["demo"]["error"]
    assert catalog.dataset().snapshot.id == catalog.states()["demo"]["snapshot"] == before
    assert vector(catalog.dataset()).shape == (32,)


@pytest.mark.parametrize("file", ["manifest.json", "arrays.safetensors", "adapter/adapter.safetensors"])
def test_a_corrupt_snapshot_is_refused_until_it_is_whole(catalog, workspace, file):
    before, after = catalog.dataset().snapshot.id, publish_next(workspace, 1)
    path = Path(workspace.path("snapshot", after, file))
    good = path.read_bytes()
    flip_byte(path)
    refused(catalog, before, f"{file} was altered")
    path.write_bytes(good)
    assert catalog.refresh() == [Change("demo", before, after)]
    assert catalog.states()["demo"]["error"] is None


def test_a_corrupt_snapshot_is_replaced_by_publishing_again(catalog, workspace):
    before, after = catalog.dataset().snapshot.id, publish_next(workspace, 1)
    flip_byte(Path(workspace.path("snapshot", after, "users.arrow")))
    refused(catalog, before, "users.arrow was altered")
    assert publish(workspace) == after
    assert catalog.refresh() == [Change("demo", before, after)]


def test_a_snapshot_for_another_backbone_is_refused(catalog, workspace):
    before = catalog.dataset().snapshot.id
    publish_next(workspace, 1, injection="output")
    refused(catalog, before, "injection = output")
    assert catalog.refresh() == []
    after = publish_next(workspace, 2)
    assert catalog.refresh() == [Change("demo", before, after)]


@pytest.mark.parametrize("text", [None, "{", '{"snapshot": "0123456789abcdef"}'])
def test_a_pointer_to_nothing_is_refused(catalog, workspace, text):
    pointer, before = Path(workspace.path("snapshot", "current.json")), catalog.dataset().snapshot.id
    good = pointer.read_bytes()
    pointer.unlink() if text is None else pointer.write_text(text)
    refused(catalog, before, "snapshot")
    pointer.write_bytes(good)
    assert catalog.refresh() == []
    assert catalog.states()["demo"]["error"] is None


def test_a_workspace_that_cannot_be_reached_leaves_the_old_snapshot(catalog, workspace, monkeypatch):
    before = catalog.dataset().snapshot.id
    after = publish_next(workspace, 1)
    for error in (OSError("no route"), EndpointConnectionError(endpoint_url="http://store"), PermissionError("no")):

        def failing(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(module, "current_snapshot", failing)
            refused(catalog, before, type(error).__name__)
        with monkeypatch.context() as patch:
            patch.setattr(module.Snapshot, "open", failing)
            catalog.refresh()
    assert catalog.refresh() == [Change("demo", before, after)]


def test_an_error_of_the_program_is_not_taken_for_one_of_the_data(catalog, monkeypatch):
    def failing(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(module, "current_snapshot", failing)
    with pytest.raises(KeyError, match="a bug"):
        catalog.refresh()


def test_a_refused_snapshot_is_not_read_again_until_it_changes_or_time_passes(catalog, workspace, monkeypatch):
    after = publish_next(workspace, 1)
    path = Path(workspace.path("snapshot", after, "users.arrow"))
    flip_byte(path)
    opened, original = [], Snapshot.open

    def counted(*arguments):
        opened.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(module.Snapshot, "open", counted)
    for _ in range(3):
        catalog.refresh()
    assert len(opened) == 1
    path.touch()
    catalog.refresh()
    assert len(opened) == 2
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.0)
    path.touch()
    catalog.refresh()
    catalog.refresh()
    assert len(opened) == 4


def test_one_dataset_is_exchanged_while_another_is_refused(workspace, published, tmp_path):
    other = Workspace(shutil.copytree(published.root, tmp_path / "other"))
    catalog = Catalog({"demo": workspace.uri, "other": other.uri})
    before = catalog.dataset().snapshot.id
    flip_byte(Path(workspace.path("snapshot", publish_next(workspace, 1), "items.arrow")))
    after = publish_next(other, 2)
    changes = catalog.refresh()
    assert changes[0].dataset == "demo" and changes[0].error and changes[1] == Change("other", before, after)


def test_requests_go_on_during_refreshes(catalog, workspace):
    """Every answer is of one snapshot: the vector and the hash belong together, whatever was published meanwhile."""
    expected, stop, seen = {}, threading.Event(), []

    def remember(snapshot_workspace):
        lookup = Catalog({"x": snapshot_workspace.uri}).dataset()
        expected[lookup.snapshot.adapter_hash] = vector(lookup)

    def ask() -> int:
        answers = 0
        while not stop.is_set():
            lookup = catalog.dataset()
            one = lookup.resolve(*PAIR)[0]
            lookup.recommend(PAIR[0][0], 3)
            lookup.evidence(PAIR[0][0], PAIR[1][0])
            seen.append((one.adapter_hash, one.user_vector))
            answers += 1
        return answers

    remember(workspace)
    with ThreadPoolExecutor(3) as pool:
        askers = [pool.submit(ask) for _ in range(3)]
        try:
            for seed in range(1, 5):
                publish_next(workspace, seed)
                remember(workspace)
                assert len(catalog.refresh()) == 1
        finally:
            stop.set()
        assert all(asker.result() > 0 for asker in askers)
    assert len(expected) == 5 and len({name for name, _ in seen}) > 1
    for name, found in seen:
        np.testing.assert_array_equal(found, expected[name])
