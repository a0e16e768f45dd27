"""The files of a snapshot, written from a workspace's stages: copies, and tables and arrays made for looking up.

Tables are read and written by columns: no user or interaction becomes a Python object.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import hashlib
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import AutoConfig

from xrec.embeddings import Embeddings
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.loading import check_backbone
from xrec.explainer.model import backbone_hash
from xrec.explainer.vectors import Side
from xrec.fingerprint import versions
from xrec.serving.arrays import derive_arrays
from xrec.serving.node_table import sorted_rows, write_nodes
from xrec.serving.snapshot import ADAPTER, ARRAYS, BACKBONE, EMBEDDINGS, ITEMS, USERS
from xrec.workspace import Workspace, WorkspaceError

_TABLES: dict[Side, tuple[str, str]] = {"user": ("users", USERS), "item": ("items_index", ITEMS)}


def write_content(workspace: Workspace, folder: Path) -> dict[str, Any]:
    """Write every file of a snapshot but its manifest.

    Args:
        workspace: with the stages finished.
        folder: new and local.

    Returns:
        What the manifest says of the files.

    Raises:
        WorkspaceError: the stages do not fit each other.
        ValueError: the adapter was written by another version of XRec.
    """
    _copy(workspace, ("tune", "adapter"), folder / ADAPTER)
    _copy(workspace, ("embed", EMBEDDINGS), folder / EMBEDDINGS)
    spec = XRecAdapter.from_pretrained(folder / ADAPTER).spec
    embeddings = Embeddings.load(folder / EMBEDDINGS)
    if spec.embedding_dim != embeddings.dim:
        raise WorkspaceError(
            f"workspace {workspace}: the adapter reads embeddings of width {spec.embedding_dim}, those of the stage "
            f"'embed' have {embeddings.dim}; tune it again with `xrec tune --force`"
        )
    users = _write_nodes(workspace, folder, "user", embeddings.user.shape[1])
    items = _write_nodes(workspace, folder, "item", embeddings.item.shape[1])
    train, known = _interactions(workspace, embeddings)
    arrays = derive_arrays(embeddings, (users[1], items[1]), train, known, (users[0], items[0]))
    arrays.save(folder / ARRAYS)
    backbone = _write_backbone(workspace, folder, spec)
    return {
        "created": datetime.now(UTC).isoformat(),
        "versions": {"python": platform.python_version()} | versions(),
        "backbone": backbone,
        "injection": spec.injection,
        "input_replacement": spec.input_replacement,
        "counts": {
            "users": len(users[0]),
            "items": len(items[0]),
            "trained_users": users[1],
            "trained_items": items[1],
            "interactions": known.shape[1],
            "layers": len(embeddings.user) - 1,
            "dim": embeddings.dim,
        },
        "files": {p.relative_to(folder).as_posix(): _facts(p) for p in sorted(folder.rglob("*")) if p.is_file()},
    }


def _copy(workspace: Workspace, parts: tuple[str, str], target: Path) -> None:
    source = workspace.path(*parts)
    if not workspace.fs.isdir(source):
        workspace.fs.get_file(source, str(target))
        return
    for name in workspace.files(*parts):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        workspace.fs.get_file(f"{source}/{name}", str(target / name))


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _write_nodes(workspace: Workspace, folder: Path, side: Side, embedded: int) -> tuple[np.ndarray, int]:
    """Write the table of one side; returns its rows by id, and how many of them training has seen."""
    name, file = _TABLES[side]
    table = workspace.read_table("preprocess", name).sort_by(side)
    index, zero_shot = table[side].to_numpy(), table["zero_shot"].to_numpy()
    trained = int(len(table) - zero_shot.sum())
    if len(table) != embedded or (index != np.arange(embedded)).any() or zero_shot[:trained].any():
        raise WorkspaceError(
            f"workspace {workspace}: the table {name!r} has {len(table)} rows and 'embed' has {embedded} embeddings; "
            f"both must count the same {side}s from 0, zero-shot ones last: rerun preprocess and embed with --force"
        )
    columns = {"id": table[f"{side}_id"]} | ({"title": table["title"]} if side == "item" else {})
    nodes, profiles = _profiles(workspace, side)
    if len(nodes) and nodes[-1] >= embedded:
        raise WorkspaceError(
            f"workspace {workspace}: {side} {nodes[-1]} has a profile, but there are {embedded} {side}s; write the "
            "profiles again with `xrec profile --force`"
        )
    write_nodes(folder / file, columns, nodes, profiles)
    return sorted_rows(columns["id"]), trained


def _profiles(workspace: Workspace, side: Side) -> tuple[np.ndarray, pa.ChunkedArray]:
    """The nodes whose profile was written without error, ascending, and the profiles."""
    name = f"{side}_profiles"
    stage = workspace.text_stage(name)
    if not workspace.has_table(stage, name):
        return np.empty(0, np.int64), pa.chunked_array([], pa.large_string())
    table = workspace.read_table(stage, name, columns=[side, "profile", "status"])
    table = table.filter(pc.equal(table["status"], "ok")).select([side, "profile"])
    # Sorting gathers all texts into one array, which may hold more than the 2 GiB of a `string`.
    table = table.set_column(1, "profile", table["profile"].cast(pa.large_string())).sort_by(side)
    return table[side].to_numpy().astype(np.int64), table["profile"]


def _interactions(workspace: Workspace, embeddings: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """`[2, E]` int64 users and items of the training interactions, and of all that serving may know of.

    Those of validation and test stay unknown: what a server recommends is then what was evaluated.
    """
    table = workspace.read_table("preprocess", "interactions")
    parts = []
    for splits in (["train"], ["train", "fold_in"]):
        chosen = table.filter(pc.is_in(table["split"], pa.array(splits)))
        parts.append(np.stack([chosen["user"].to_numpy(), chosen["item"].to_numpy()]).astype(np.int64))
    limits = np.array([[embeddings.user.shape[1]], [embeddings.item.shape[1]]])
    if (parts[1] >= limits).any():
        raise WorkspaceError(
            f"workspace {workspace}: an interaction names a user or item without an embedding; rerun embed with --force"
        )
    return parts[0], parts[1]


def _write_backbone(workspace: Workspace, folder: Path, spec: AdapterSpec) -> dict[str, str | None]:
    """Copy the workspace's own backbone where the adapter was tuned for it; returns the backbone's name and hash."""
    name = workspace.manifest("tune")["fingerprint"]["config"]["backbone"]
    if name is not None:
        return {"name": name, "hash": spec.backbone_hash or name}
    target = folder / BACKBONE
    _copy(workspace, ("backbone", "model"), target)
    config = AutoConfig.from_pretrained(target)
    check_backbone(spec, None, str(target), config)
    return {"name": None, "hash": backbone_hash(str(target), config)}
