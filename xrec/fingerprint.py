"""What tells one stage's making from another's: hashes of settings and files, differences in words, versions."""

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

_VERSIONED = ("xrec", "torch", "transformers", "ray", "deepspeed", "torch-geometric", "pyarrow")


def hash_of(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def hash_files(folder: str | os.PathLike, pattern: str = "**/*") -> str:
    """SHA-256 over the names and contents of the files below a local folder: the identity of an external input."""
    root = Path(folder)
    digests = {}
    for path in sorted(p for p in root.glob(pattern) if p.is_file()):
        with path.open("rb") as file:
            digests[path.relative_to(root).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hash_of(digests)


def describe_differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Each leaf in which two JSON values differ, as `config.seed (1, now 2)`."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted(before.keys() | now.keys())
            for difference in describe_differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
        ]
    if before == now:
        return []
    shorten = lambda v: f"{v[:12]}…" if isinstance(v, str) and len(v) == 64 else repr(v)  # noqa: E731
    return [f"{path} ({shorten(before)}, now {shorten(now)})"]


def versions() -> dict[str, str]:
    """The installed versions of the packages that results may depend on."""
    found = {}
    for package in _VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
