"""The datasets of a server: each with the snapshot that it serves, exchanged for a newer one while requests go on.

A request keeps the lookup that it began with. Whatever is wrong with a new snapshot, the old one stays.
"""

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from xrec.fingerprint import hash_of
from xrec.serving.lookup import DatasetLookup
from xrec.serving.queries import RequestError
from xrec.serving.snapshot import FOLDER, Snapshot, SnapshotError, current_snapshot
from xrec.workspace import Workspace, WorkspaceError

# A snapshot that was refused is not read again and again, unless one of its files has changed.
_RETRY_SECONDS = 300.0
# What object stores raise beside OSError where they cannot be reached.
_STORE_ERRORS = {
    "botocore.exceptions": "BotoCoreError",
    "aiohttp": "ClientError",
    "google.auth.exceptions": "GoogleAuthError",
}


@dataclass(frozen=True)
class Change:
    """What a refresh has changed.

    Attributes:
        dataset: its name.
        before, after: ids of the snapshot that was served and of the one that is; equal where the new one was refused.
        error: why it was refused, said when that is new.
    """

    dataset: str
    before: str
    after: str
    error: str | None = None


@dataclass(frozen=True)
class _Served:
    workspace: Workspace
    lookup: DatasetLookup
    loaded_at: str
    error: str | None = None
    refused: tuple[str, float] | None = None


class Catalog:
    """Several datasets that one language model explains.

    Args:
        workspaces: name -> workspace, or its path or URI. The first is what requests without a name mean.

    Raises:
        WorkspaceError: a dataset has no whole snapshot, or two were tuned for different backbones.
        ValueError: there is no dataset.
    """

    def __init__(self, workspaces: Mapping[str, str | Workspace]):
        if not workspaces:
            raise ValueError("datasets: none is named; name at least one with its workspace")
        self._refreshing = threading.Lock()
        self._served: dict[str, _Served] = {}
        for name, place in workspaces.items():
            try:
                workspace = place if isinstance(place, Workspace) else Workspace(place)
                snapshot = Snapshot.open(workspace)
                self._check_backbone(name, snapshot)
            except (WorkspaceError, ValueError, OSError, *_store_errors()) as error:
                raise WorkspaceError(f"dataset {name!r}: {error}") from error
            self._served[name] = _Served(workspace, DatasetLookup(snapshot), _now())

    @property
    def names(self) -> list[str]:
        return list(self._served)

    def dataset(self, name: str | None = None) -> DatasetLookup:
        """The lookup of a dataset, of the first one where no name is given; a request keeps it to its end.

        Raises:
            RequestError: 404, there is no such dataset.
        """
        served = self._served.get(next(iter(self._served)) if name is None else name)
        if served is None:
            raise RequestError(
                404,
                "dataset_not_found",
                f"there is no dataset {name!r}; the datasets are {', '.join(self._served)}",
                "dataset",
            )
        return served.lookup

    def refresh(self) -> list[Change]:
        """Serve what `current.json` names now, wherever that is another snapshot, whole, and for the same backbone.

        May run in a thread while others look up. Returns the exchanges, and refusals that are new.
        """
        with self._refreshing:
            return [change for name in self.names if (change := self._refresh(name)) is not None]

    def states(self) -> dict[str, dict[str, Any]]:
        """Every dataset as it is served now.

        Returns:
            For each name: `workspace`, `snapshot` (its id), `loaded_at` (ISO 8601, UTC), `users` and `items` (how
            many), `adapter_hash`, `backbone` (its key), and `error`, why a newer snapshot is not served, or None.
        """
        return {name: _state(served) for name, served in list(self._served.items())}

    def _refresh(self, name: str) -> Change | None:
        served = self._served[name]
        before, refused, message = served.lookup.snapshot.id, None, None
        try:
            named = current_snapshot(served.workspace)
            if named == before:
                if served.error is not None:
                    self._served[name] = replace(served, error=None, refused=None)
                return None
            looked_at = _signature(served.workspace, named)
            if served.refused and served.refused[0] == looked_at and time.monotonic() < served.refused[1]:
                return None
            refused = (looked_at, time.monotonic() + _RETRY_SECONDS)
            snapshot = Snapshot.open(served.workspace, named)
            self._check_backbone(name, snapshot)
            self._served[name] = _Served(served.workspace, DatasetLookup(snapshot), _now())
            return Change(name, before, snapshot.id)
        except SnapshotError as error:
            message = str(error)
        except (WorkspaceError, ValueError, OSError, *_store_errors()) as error:
            # It says nothing of the snapshot itself, so the next refresh tries again.
            message, refused = f"{type(error).__name__}: {error}", None
        self._served[name] = replace(served, error=message, refused=refused)
        return Change(name, before, before, message) if message != served.error else None

    def _check_backbone(self, name: str, snapshot: Snapshot) -> None:
        """An engine holds one language model and one way of injection: all datasets must be tuned for it."""
        if not self._served:
            return
        other, served = next(iter(self._served.items()))
        first = served.lookup.snapshot
        if first.backbone_key != snapshot.backbone_key:
            raise SnapshotError(
                f"the snapshot {snapshot.id} of dataset {name!r} is for {_described(snapshot)}, but what is served of "
                f"{other!r} ({first.id}) is for {_described(first)}; tune both for one backbone, or serve them apart "
                "(a new backbone needs a new server)"
            )


def _described(snapshot: Snapshot) -> str:
    backbone, spec = snapshot.manifest["backbone"], snapshot.spec
    return (
        f"the backbone {backbone['name'] or 'of its own workspace'} with hash {backbone['hash'][:12]}…, "
        f"injection = {spec.injection}, input_replacement = {spec.input_replacement}"
    )


def _state(served: _Served) -> dict[str, Any]:
    snapshot = served.lookup.snapshot
    return {
        "workspace": str(served.workspace),
        "snapshot": snapshot.id,
        "loaded_at": served.loaded_at,
        "users": len(snapshot.users),
        "items": len(snapshot.items),
        "adapter_hash": snapshot.adapter_hash,
        "backbone": snapshot.backbone_key,
        "error": served.error,
    }


def _signature(workspace: Workspace, named: str) -> str:
    """Changes when a file of a snapshot does: sizes, times and the like, not contents."""
    found: dict[str, Any] = workspace.fs.find(workspace.path(FOLDER, named), detail=True)
    return hash_of({"snapshot": named, "files": found})


def _store_errors() -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[m], kind) for m, kind in _STORE_ERRORS.items() if m in sys.modules)


def _now() -> str:
    return datetime.now(UTC).isoformat()
