"""Making a snapshot of finished stages and switching the pointer to it; a kill at any moment leaves the old one served.

A local snapshot is built beside the others under a temporary name and renamed; an object store, which has no folders to
rename, gets the manifest last. Whoever publishes removes what a killed one left. What a snapshot is, and what opening
it checks, is `snapshot.py`'s business.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xrec.serving.content import write_content
from xrec.serving.snapshot import (
    FOLDER,
    FORMAT,
    POINTER,
    Snapshot,
    SnapshotError,
    current_snapshot,
    decode_manifest,
    encode_manifest,
    is_snapshot_id,
    snapshot_id,
)
from xrec.workspace import MANIFEST, Workspace, WorkspaceError


def publish(workspace: Workspace, keep: int = 2) -> str:
    """Publish a snapshot of the stages preprocess (and profile), embed, tune and, where it is used, backbone.

    Args:
        workspace: with these stages finished.
        keep: snapshots that stay, the newest ones; the current one is among them.

    Returns:
        The id of the snapshot. Where the current one is made of the same stages and whole, nothing is written.

    Raises:
        WorkspaceError: a stage is unfinished, was altered, or does not fit the others.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep} must be 1 or more: the current snapshot stays")
    with _one_publisher(workspace):
        stages = _stages(workspace)
        named = snapshot_id(stages)
        if not _is_published(workspace, named):
            for stage in stages:
                workspace.verified_hash(stage)
            _check_adapter_inputs(workspace, stages)
            _make(workspace, named, stages)
        if _current(workspace) != named:
            workspace.write_json({"snapshot": named}, FOLDER, POINTER)
        _clean_up(workspace, keep)
    return named


def _stages(workspace: Workspace) -> dict[str, str]:
    """The output hashes of the stages that serving depends on."""
    own = workspace.manifest("tune")["fingerprint"]["config"]["backbone"] is None
    names = ["preprocess", *workspace.text_inputs(), "embed", "tune", *(["backbone"] if own else [])]
    return {name: workspace.output_hash(name) for name in names}


def _check_adapter_inputs(workspace: Workspace, stages: dict[str, str]) -> None:
    """Every run of `embed` has its own axes: an adapter reads those that it was tuned on."""
    tuned_on = workspace.manifest("tune")["fingerprint"]["inputs"]
    for stage in ("embed", "backbone"):
        if stage in stages and tuned_on.get(stage) != stages[stage]:
            raise WorkspaceError(
                f"workspace {workspace}: the stage {stage!r} was rebuilt after the adapter was tuned on it; tune it "
                "again with `xrec tune --force`"
            )


def _is_published(workspace: Workspace, named: str) -> bool:
    """Whether there is such a snapshot, with every byte in place; in the workspace, not in a node's copy of it."""
    path = workspace.path(FOLDER, named)
    try:
        manifest = decode_manifest(workspace.read_bytes(FOLDER, named, MANIFEST), path)
        for name, facts in manifest["files"].items():
            if workspace.file_hash(FOLDER, named, name) != facts["sha256"]:
                return False
    except (WorkspaceError, FileNotFoundError):
        return False
    return manifest["snapshot"] == named


def _current(workspace: Workspace) -> str | None:
    try:
        return current_snapshot(workspace)
    except SnapshotError:
        return None


@contextmanager
def _one_publisher(workspace: Workspace) -> Iterator[None]:
    """One at a time where there are locks; elsewhere two write the same bytes, and each its manifest last."""
    if not workspace.is_local:
        yield
        return
    Path(workspace.path(FOLDER)).mkdir(parents=True, exist_ok=True)
    with open(workspace.path(FOLDER, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(workspace: Workspace, named: str, stages: dict[str, str]) -> None:
    place = workspace.path(FOLDER) if workspace.is_local else None
    with tempfile.TemporaryDirectory(prefix=f"{named}.tmp-", dir=place) as temporary:
        folder = Path(temporary) / named
        folder.mkdir()
        manifest = write_content(workspace, folder) | {"format": FORMAT, "snapshot": named, "stages": stages}
        (folder / MANIFEST).write_bytes(encode_manifest(manifest))
        Snapshot(folder)
        if _stages(workspace) != stages:
            raise WorkspaceError(
                f"workspace {workspace}: a stage was rebuilt meanwhile; publish again with `xrec snapshot`"
            )
        if workspace.is_local:
            target = workspace.path(FOLDER, named)
            if os.path.exists(target):
                os.rename(target, f"{temporary}/replaced")
            os.rename(folder, target)
        else:
            _upload(workspace, folder, named, manifest["files"])


def _upload(workspace: Workspace, folder: Path, named: str, files: Iterable[str]) -> None:
    names = [*files, MANIFEST]
    for name in names:
        target = workspace.path(FOLDER, named, name)
        workspace.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        workspace.fs.put_file(str(folder / name), target)
    for name in names:
        target = workspace.path(FOLDER, named, name)
        if not workspace.fs.exists(target) or workspace.fs.info(target)["size"] != (folder / name).stat().st_size:
            raise WorkspaceError(f"{target} was not uploaded whole; publish again with `xrec snapshot`")


def _clean_up(workspace: Workspace, keep: int) -> None:
    """Remove snapshots beyond the newest `keep`, and what killed publishers left."""
    created, current = {}, _current(workspace)
    names = {str(path).rstrip("/").rsplit("/", 1)[-1] for path in workspace.fs.ls(workspace.path(FOLDER), detail=False)}
    for name in names - {POINTER, "lock"}:
        if is_snapshot_id(name) and workspace.exists(FOLDER, name, MANIFEST):
            created[name] = _created(workspace, name)
        else:
            workspace.remove(FOLDER, name)
    newest = sorted(created, key=lambda name: (name == current, created[name]), reverse=True)
    for name in newest[keep:]:
        # Whoever is killed here leaves a folder without a manifest, which the next one removes.
        workspace.remove(FOLDER, name, MANIFEST)
        workspace.remove(FOLDER, name)


def _created(workspace: Workspace, name: str) -> str:
    try:
        return workspace.read_json(FOLDER, name, MANIFEST)["created"]
    except (ValueError, KeyError, TypeError):
        return ""
