"""A tiny workspace with zero-shot users and items, and a snapshot of it."""

import shutil
from pathlib import Path

import pytest

from tests.tiny_world import finish_tune, make_workspace
from xrec.serving.publishing import publish
from xrec.serving.snapshot import Snapshot
from xrec.workspace import Workspace


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Workspace:
    """Copy it to change it."""
    workspace = make_workspace(tmp_path_factory.mktemp("published") / "w", zero_shot_items=2)
    # With this seed the random model ends every text of `test_live.py` by itself, after many tokens.
    finish_tune(workspace, seed=12)
    publish(workspace)
    return workspace


@pytest.fixture(scope="session")
def snapshot(published) -> Snapshot:
    return Snapshot.open(published)


@pytest.fixture
def workspace(published, tmp_path) -> Workspace:
    """One's own copy of the published workspace."""
    return Workspace(Path(shutil.copytree(published.root, tmp_path / "w")))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where this node keeps its copies of remote files."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder
