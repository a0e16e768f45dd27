"""Where an explainer's adapted vectors come from: computed from embeddings when asked, or mapped from a file.

A batch job computes them once, for the users and items that it asks for, and its workers map the file: one copy a node,
however many workers. Shapes: N users, M items, D embedding width, H the backbone's hidden size, n nodes asked for.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xrec.explainer.adapter import XRecAdapter
from xrec.workspace import Workspace

Side = Literal["user", "item"]
Signal = Literal["true", "shuffled", "other_user", "off"]
SIDES: tuple[Side, ...] = ("user", "item")
# The sides whose embeddings a signal permutes.
_PERMUTED: dict[str, tuple[Side, ...]] = {"true": (), "shuffled": SIDES, "other_user": ("user",)}
_HEADER_KEY = "xrec"
# Nodes adapted together: a mixture holds `[n, experts * D]` numbers for them.
_BATCH = 4096


class VectorSource(Protocol):
    """Gives an explainer its vectors.

    Attributes:
        counts: how many users and items have embeddings.
    """

    counts: dict[Side, int]

    def look_up(self, side: Side, nodes: Sequence[int], signal: Signal) -> torch.Tensor | None:
        """`[n, H]` float32 vectors of known nodes; None for the signal `off`."""
        ...


class AdaptedVectors:
    """Vectors computed when they are asked for.

    Args:
        adapter: tuned.
        user, item: `[N, D]` and `[M, D]` embeddings, layers averaged.
        shuffle_seed: fixes the permutations behind the signals `shuffled` and `other_user`.
    """

    def __init__(self, adapter: XRecAdapter, user: torch.Tensor, item: torch.Tensor, shuffle_seed: int = 0):
        self.adapter = adapter.eval()
        self.embeddings: dict[Side, torch.Tensor] = {"user": user, "item": item}
        self.counts: dict[Side, int] = {"user": len(user), "item": len(item)}
        self.permutations = {
            side: derangement(self.counts[side], shuffle_seed + offset) for offset, side in enumerate(SIDES)
        }

    @torch.inference_mode()
    def look_up(self, side: Side, nodes: Sequence[int], signal: Signal) -> torch.Tensor | None:
        if signal == "off":
            return None
        return getattr(self.adapter, side)(self.embeddings[side][self.sources(side, nodes, signal)]).float()

    def sources(self, side: Side, nodes: Sequence[int] | np.ndarray, signal: Signal) -> torch.Tensor:
        """`[n]` the nodes whose embeddings stand for these ones."""
        chosen = torch.as_tensor(nodes, dtype=torch.long)
        return self.permutations[side][chosen] if side in _PERMUTED[signal] else chosen


class MappedVectors:
    """Vectors looked up in a file that `write_vectors` wrote; mapped, so that processes of a node share one copy.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.nodes: dict[Side, np.ndarray] = {}
        self.rows: dict[tuple[Side, str], torch.Tensor] = {}
        self.vectors: dict[Side, torch.Tensor] = {}
        with safe_open(os.fspath(path), framework="pt") as file:
            self.counts: dict[Side, int] = json.loads(file.metadata()[_HEADER_KEY])["counts"]
            for side in SIDES:
                self.vectors[side] = file.get_tensor(f"{side}.vectors")
                self.nodes[side] = file.get_tensor(f"{side}.nodes").numpy()
                for signal in _PERMUTED:
                    if f"{side}.{signal}" in file.keys():  # noqa: SIM118 (not a dict)
                        self.rows[side, signal] = file.get_tensor(f"{side}.{signal}")

    def look_up(self, side: Side, nodes: Sequence[int], signal: Signal) -> torch.Tensor | None:
        if signal == "off":
            return None
        if (side, signal) not in self.rows:
            raise ValueError(f"the vectors of the signal {signal!r} were not written; name it when writing them")
        known, wanted = self.nodes[side], np.asarray(nodes)
        places = np.searchsorted(known, wanted).clip(max=max(0, len(known) - 1))
        missing = wanted[known[places] != wanted] if len(known) else wanted
        if len(missing):
            raise ValueError(f"the vector of {side} {missing[0]} was not written; name every node when writing them")
        rows = self.rows[side, signal][torch.from_numpy(places)]
        return self.vectors[side][rows].float()


def write_vectors(
    path: str | os.PathLike,
    source: AdaptedVectors,
    nodes: dict[Side, np.ndarray],
    signals: Sequence[Signal],
    dtype: torch.dtype,
) -> None:
    """Write the vectors of some nodes as safetensors: for either side `vectors` `[r, H]`, `nodes` `[n]` (sorted), and
    for each signal the row `[n]` of each node's vector.

    Args:
        path: a new local file.
        source: computes them.
        nodes: the users and items that will be asked for; those without an embedding are left out.
        signals: the signals that will be asked for.
        dtype: what the engine runs in.
    """
    tensors: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory(prefix="xrec-", dir=Path(path).parent) as folder:
        for side in SIDES:
            asked = np.unique(nodes[side])
            asked = asked[(asked >= 0) & (asked < source.counts[side])]
            behind = {s: source.sources(side, asked, s).numpy() for s in signals if s != "off"}
            distinct = np.unique(np.concatenate([*behind.values(), np.empty(0, np.int64)]))
            tensors[f"{side}.nodes"] = torch.from_numpy(asked.astype(np.int64))
            for signal, own in behind.items():
                tensors[f"{side}.{signal}"] = torch.from_numpy(np.searchsorted(distinct, own))
            tensors[f"{side}.vectors"] = _adapted(source, side, distinct, dtype, f"{folder}/{side}")
        save_file(tensors, path, metadata={_HEADER_KEY: json.dumps({"counts": source.counts})})


def shared_copy(workspace: Workspace, parts: Sequence[str]) -> Path:
    """A file of the workspace to map on this node: itself where it is local, else one copy for all processes.

    Args:
        parts: its path in the workspace. Its name says what it holds: another content has another name.
    """
    if workspace.is_local:
        return Path(workspace.path(*parts))
    target = node_cache() / parts[-1]
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with open(target.with_name("lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = target.with_suffix(".partial")
            workspace.fs.get_file(workspace.path(*parts), str(partial))
            os.replace(partial, target)
    return target


def remove_shared_copy(workspace: Workspace, parts: Sequence[str]) -> None:
    """Remove what `shared_copy` made; whoever has mapped it keeps it."""
    if not workspace.is_local:
        (node_cache() / parts[-1]).unlink(missing_ok=True)


def node_cache() -> Path:
    """This user's folder for what processes of a node share."""
    return Path(tempfile.gettempdir()) / f"xrec-{os.getuid()}"


def derangement(count: int, seed: int) -> torch.Tensor:
    """A random permutation of `count` indices in which none stays in place (one cycle); `[count]` int64."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    result = torch.empty(count, dtype=torch.long)
    result[order] = order.roll(1)
    return result


def _adapted(source: AdaptedVectors, side: Side, nodes: np.ndarray, dtype: torch.dtype, scratch: str) -> torch.Tensor:
    """`[n, H]` vectors in a scratch file, since those of many nodes would fill this process's memory."""
    width = source.adapter.spec.hidden_size
    if not len(nodes):
        return torch.empty((0, width), dtype=dtype)
    size: Any = len(nodes) * width
    result = torch.from_file(scratch, shared=True, size=size, dtype=dtype).view(len(nodes), width)
    for start in range(0, len(nodes), _BATCH):
        chosen = torch.from_numpy(nodes[start : start + _BATCH])
        with torch.inference_mode():
            result[start : start + len(chosen)] = getattr(source.adapter, side)(source.embeddings[side][chosen])
    return result
