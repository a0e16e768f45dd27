"""An immutable copy of what serving reads, opened only if every byte of it is as it was written.

Stages rewrite their folders; a server that has them mapped must not see that. `W/snapshot/<id>/` is written once
(`publishing.py`), and `W/snapshot/current.json` names the one to serve. Large files are mapped: processes of a node
share one copy of them. Shapes: L layers, N users, M items, D embedding width.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from xrec.embeddings import Embeddings
from xrec.explainer.adapter import WEIGHTS, AdapterSpec, XRecAdapter
from xrec.explainer.vectors import node_cache
from xrec.fingerprint import hash_of
from xrec.serving.arrays import SnapshotArrays
from xrec.serving.node_table import NodeTable
from xrec.workspace import MANIFEST, Workspace, WorkspaceError

FOLDER, POINTER = "snapshot", "current.json"
# Raised whenever the files below change their meaning, so that other versions publish anew.
FORMAT = 1
ADAPTER, BACKBONE, EMBEDDINGS = "adapter", "backbone", "embeddings.safetensors"
USERS, ITEMS, ARRAYS = "users.arrow", "items.arrow", "arrays.safetensors"
_ID = re.compile(r"[0-9a-f]{16}")
_REMEDY = "publish it again with `xrec snapshot`"
# Nodes whose numbers are looked at together.
_ROWS = 65_536
# Copies of one workspace's snapshots that a node keeps: the one that serves and the one that is to.
_COPIES = 2


class SnapshotError(WorkspaceError):
    """A snapshot is absent, incomplete or altered; the message names the file and the remedy."""


def snapshot_id(stages: dict[str, str]) -> str:
    """The id of the snapshot made from stages with these output hashes."""
    return hash_of({"format": FORMAT, "stages": stages})[:16]


def backbone_key(backbone_hash: str, injection: str, input_replacement: bool) -> str:
    """What vectors are for; those of two adapters with the same identity can be explained by one engine."""
    return f"{backbone_hash}/{injection}/{'replaced' if input_replacement else 'kept'}"


def encode_manifest(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest; they hold their own checksum."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return json.dumps(content | {"checksum": hash_of(content)}, indent=1, sort_keys=True).encode()


def current_snapshot(workspace: Workspace) -> str:
    """The id that `current.json` names.

    Raises:
        SnapshotError: there is none, or it is not readable.
    """
    path = workspace.path(FOLDER, POINTER)
    if not workspace.exists(FOLDER, POINTER):
        raise SnapshotError(f"{path} does not exist: nothing is published for serving; publish it with `xrec snapshot`")
    try:
        named = workspace.read_json(FOLDER, POINTER)["snapshot"]
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{path} does not name a snapshot; {_REMEDY}") from error
    if not isinstance(named, str) or not _ID.fullmatch(named):
        raise SnapshotError(f"{path} names the snapshot {named!r}, which is not an id; {_REMEDY}")
    return named


def is_snapshot_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


class Snapshot:
    """What serving reads, checked.

    Args:
        folder: local.

    Attributes:
        id: of the snapshot.
        manifest: what it was made from, and when.
        embeddings: `[L + 1, N, D]` and `[L + 1, M, D]`, mapped.
        arrays: what is derived from them and from the interactions, mapped.
        users, items: ids and texts, mapped.
        adapter, adapter_hash: the tuned adapter, and the SHA-256 of its weights.
        trained_users, trained_items: those whom training has seen; they come first.
        backbone_key: identity of what the adapter's vectors are for, see `backbone_key`.

    Raises:
        SnapshotError: a file is absent, altered or of a wrong shape, or a number is not finite.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.id: str = self.manifest["snapshot"]
        _check_files(self.folder, self.manifest["files"])
        with _named(self.folder / EMBEDDINGS):
            self.embeddings = Embeddings.load(self.folder / EMBEDDINGS)
            _check_finite("user", self.embeddings.user)
            _check_finite("item", self.embeddings.item)
        with _named(self.folder / ARRAYS):
            self.arrays = SnapshotArrays.load(self.folder / ARRAYS)
            for name in ("user_map", "item_map", "average_user", "average_item", "item_mean"):
                _check_finite(name, torch.from_numpy(getattr(self.arrays, name))[None])
        with _named(self.folder / USERS):
            self.users = NodeTable(self.folder / USERS, self.arrays.users_by_id)
        with _named(self.folder / ITEMS):
            self.items = NodeTable(self.folder / ITEMS, self.arrays.items_by_id)
        with _named(self.folder / ADAPTER):
            self.adapter = XRecAdapter.from_pretrained(self.folder / ADAPTER).requires_grad_(False)
            for name, value in self.adapter.state_dict().items():
                _check_finite(name, value[None])
        self._check_counts()
        counts = self.manifest["counts"]
        self.trained_users, self.trained_items = counts["trained_users"], counts["trained_items"]
        self.adapter_hash: str = self.manifest["files"][f"{ADAPTER}/{WEIGHTS}"]["sha256"]
        self.backbone_key = backbone_key(
            self.manifest["backbone"]["hash"], self.spec.injection, self.spec.input_replacement
        )

    @classmethod
    def open(cls, workspace: Workspace, id: str | None = None) -> "Snapshot":
        """Open a published snapshot; a remote one is copied once for all processes of this node.

        Args:
            workspace: where it was published.
            id: of the snapshot; None: the current one.

        Raises:
            SnapshotError: there is no such snapshot, or its files are not what was published.
        """
        named = current_snapshot(workspace) if id is None else id
        if not is_snapshot_id(named) or not workspace.exists(FOLDER, named, MANIFEST):
            raise SnapshotError(f"{workspace.path(FOLDER, named)} is not a snapshot (it has no {MANIFEST}); {_REMEDY}")
        snapshot = cls(workspace.path(FOLDER, named)) if workspace.is_local else _open_copy(workspace, named)
        if snapshot.id != named:
            raise SnapshotError(f"{snapshot.folder} holds the snapshot {snapshot.id}, not {named}; {_REMEDY}")
        return snapshot

    @property
    def spec(self) -> AdapterSpec:
        return self.adapter.spec

    @property
    def backbone_path(self) -> str:
        """What to load the backbone from: its name, or the folder in the snapshot where it is the workspace's own."""
        return self.manifest["backbone"]["name"] or str(self.folder / BACKBONE)

    def _check_counts(self) -> None:
        embeddings, adapter = self.embeddings, self.spec
        found = {
            "users": {embeddings.user.shape[1], len(self.users), len(self.arrays.user_degree)},
            "items": {embeddings.item.shape[1], len(self.items), len(self.arrays.item_degree)},
            "layers": {len(embeddings.user) - 1, len(self.arrays.average_user) - 1},
            "dim": {embeddings.dim, adapter.embedding_dim, self.arrays.item_mean.shape[1]},
            "interactions": {len(self.arrays.user_items)},
        }
        for name, values in found.items():
            if values != {self.manifest["counts"][name]}:
                raise SnapshotError(
                    f"{self.folder / MANIFEST}: {name} = {self.manifest['counts'][name]}, but the files have "
                    f"{', '.join(map(str, sorted(values)))}; {_REMEDY}"
                )


def decode_manifest(data: bytes, path: str | os.PathLike) -> dict[str, Any]:
    """A manifest from its bytes.

    Args:
        path: what an error calls it.

    Raises:
        SnapshotError: it is altered, or of another format.
    """
    try:
        manifest = json.loads(data)
        whole = isinstance(manifest, dict) and encode_manifest(manifest) == data
    except ValueError:
        whole, manifest = False, {}
    if not whole:
        raise SnapshotError(f"{path} was altered after it was published; {_REMEDY}")
    if manifest["format"] != FORMAT:
        raise SnapshotError(
            f"{path}: format {manifest['format']}, but this version of XRec reads format {FORMAT}; {_REMEDY}"
        )
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return decode_manifest((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    except OSError as error:
        raise SnapshotError(f"{folder / MANIFEST} cannot be read ({error}); {_REMEDY}") from error


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, facts in files.items():
        path = folder / name
        try:
            same = path.stat().st_size == facts["bytes"]
            if same:
                with path.open("rb") as file:
                    same = hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
        except OSError as error:
            raise SnapshotError(f"{path} cannot be read ({error}); {_REMEDY}") from error
        if not same:
            raise SnapshotError(f"{path} was altered after it was published (SHA-256 or size differs); {_REMEDY}")


def _check_finite(name: str, values: torch.Tensor) -> None:
    """Check `[L, n, …]` numbers, some at a time: all at once would take as much memory as they do."""
    for layer in values:
        for rows in layer.split(_ROWS) if layer.ndim else [layer]:
            if not np.isfinite(rows.numpy()).all():
                raise ValueError(f"{name} holds a number that is not finite")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file an error speaks."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SnapshotError(f"{path}: {error}; {_REMEDY}") from error


# One copy a node ---------------------------------------------------------------------------------------------------


def _open_copy(workspace: Workspace, named: str) -> Snapshot:
    try:
        return Snapshot(_node_copy(workspace, named))
    except SnapshotError:
        # A disk or a person may have altered the copy, and the workspace has the snapshot still.
        return Snapshot(_node_copy(workspace, named, anew=True))


def _node_copy(workspace: Workspace, named: str, anew: bool = False) -> Path:
    target = node_cache() / "snapshots" / hash_of(workspace.uri)[:16] / named
    node_cache().mkdir(mode=0o700, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if anew:
            shutil.rmtree(target, ignore_errors=True)
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _download(workspace, named, partial)
            os.replace(partial, target)
            _remove_old_copies(target)
    return target


def _download(workspace: Workspace, named: str, folder: Path) -> None:
    folder.mkdir()
    (folder / MANIFEST).write_bytes(workspace.read_bytes(FOLDER, named, MANIFEST))
    for name in _read_manifest(folder)["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            workspace.fs.get_file(workspace.path(FOLDER, named, name), str(folder / name))
        except FileNotFoundError as error:
            raise SnapshotError(f"{workspace.path(FOLDER, named, name)} is gone; {_REMEDY}") from error


def _remove_old_copies(newest: Path) -> None:
    """Remove what no process needs any more; whoever has mapped a removed one keeps it."""
    others = [p for p in newest.parent.iterdir() if p.is_dir() and p != newest]
    for path in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True)[_COPIES - 1 :]:
        shutil.rmtree(path)
