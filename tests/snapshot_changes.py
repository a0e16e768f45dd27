"""What may happen to a snapshot: altered bytes, other contents under a good manifest, a successor."""

import hashlib
import json
from pathlib import Path

from tests.tiny_world import finish_tune
from xrec.serving.publishing import publish
from xrec.serving.snapshot import encode_manifest
from xrec.workspace import Workspace


def sign(folder: Path, **changes) -> None:
    """Write the manifest of a snapshot's folder anew, as if its files had been published as they are now."""
    manifest = json.loads((folder / "manifest.json").read_bytes()) | changes
    for name, facts in manifest["files"].items():
        data = (folder / name).read_bytes()
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))


def flip_byte(path: Path, place: float = 0.5) -> None:
    """Alter one byte, at a share of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def publish_next(workspace: Workspace, seed: int = 1, **changes) -> str:
    """Tune anew, with other random weights, and publish that."""
    finish_tune(workspace, seed, force=True, **changes)
    return publish(workspace)
