"""A run's folder: where each stage reads and writes, atomically, with a manifest that says from what.

A workspace is a local path or any fsspec URI (`s3://…`, `gs://…`, `memory://…`). Stage `s` owns the folder
`<workspace>/<s>/`. Its `manifest.json` is written last and means "finished"; `started.json` is written first and
lets a killed stage resume. What the tables look like is `tables.py`'s business; what a stage computes is its own.

A variant of a run (another adapter, a baseline, another seed) is a workspace inside it, `variants/<name>/<seed>/`, that
reads the stages before its own from the run: `base.json` there names the base and the stages that come from it.
"""

import hashlib
import json
import os
import platform
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from xrec import tables
from xrec.fingerprint import describe_differences, hash_of, versions

MANIFEST, STARTED, METRICS, METRICS_LOG = "manifest.json", "started.json", "metrics.json", "metrics.jsonl"
_BOOKKEEPING = {MANIFEST, STARTED, METRICS, METRICS_LOG}
# The folders of stages, in running order. `baseline` is what a system other than XRec has in place of the next two.
FOLDERS = (
    "data",
    "preprocess",
    "profile",
    "embed",
    "baseline",
    "backbone",
    "tune",
    "explain",
    "evaluate",
    "report",
)
_BASE, _VARIANTS, _SHARED = "base.json", "variants", "shared-"
_VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class WorkspaceError(RuntimeError):
    """A stage cannot run on this workspace; the message names what differs or is absent, and the remedy."""


class Workspace:
    """The files of one run.

    Args:
        uri: a local folder (created when first written) or an fsspec URI.
        storage_options: passed to fsspec (`{"endpoint_url": …}` for an S3-compatible server). Stages that run on
            other machines rely on the environment (`AWS_ENDPOINT_URL`, credentials) instead.
    """

    def __init__(self, uri: str | os.PathLike, storage_options: dict | None = None):
        uri, self.storage_options = os.fspath(uri), storage_options
        if not uri.strip():
            raise ValueError("workspace: the path is empty; name a folder or an fsspec URI such as s3://bucket/run")
        try:
            # Workers on other machines write here too: a remembered listing would hide their files.
            self.fs, root = fsspec.core.url_to_fs(uri, **({"use_listings_cache": False} | (storage_options or {})))
        except (ValueError, ImportError) as error:
            raise WorkspaceError(
                f"workspace {uri!r}: {error}; use a local path or an installed fsspec protocol"
            ) from error
        self.is_local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.root = root.rstrip("/")
        self.uri = os.path.abspath(root) if self.is_local else uri.rstrip("/")
        self.base: Workspace | None = None
        self.inherited: frozenset[str] = frozenset()
        if self.exists(_BASE):
            self._inherit(self.read_json(_BASE))

    def __repr__(self) -> str:
        return f"Workspace({self.uri!r})"

    def __str__(self) -> str:
        return self.uri

    # Paths ---------------------------------------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        """The path of a file inside the workspace, as its filesystem names it; that of the base for its stages."""
        if self.base is not None and parts and parts[0] in self.inherited:
            return self.base.path(*parts)
        return "/".join([self.root, *parts])

    def exists(self, *parts: str) -> bool:
        return self.fs.exists(self.path(*parts))

    def files(self, *parts: str) -> list[str]:
        """Every file below a folder, relative to it, sorted; temporary files left out."""
        folder = self.path(*parts)
        if not self.fs.isdir(folder):
            return []
        prefix = self.fs._strip_protocol(folder).rstrip("/") + "/"
        found = (str(f).removeprefix(prefix) for f in self.fs.find(folder))
        return sorted(f for f in found if ".tmp-" not in f)

    # Variants ------------------------------------------------------------------------------------------------------

    def variant(self, name: str, seed: int, own: tuple[str, ...], through: "Workspace | None" = None) -> "Workspace":
        """The workspace of one system at one seed, inside this one, made where it is not there yet.

        Args:
            name: of the system; letters, digits, `_`, `-` and `.`.
            seed: part of its path.
            own: the stages that it has for itself; those before the first of them are read from the base.
            through: a base between this workspace and the variant (`shared_variant`).

        Raises:
            ValueError: a name that is no name of a folder, or an unknown stage.
            WorkspaceError: it is there with other stages of its own.
        """
        if not _VARIANT_NAME.fullmatch(name):
            raise ValueError(f"variant {name!r}: name it by letters, digits, `_`, `-` and `.`")
        return self._derived((_VARIANTS, name, str(seed)), own[0], through or self)

    def shared_variant(self, key: str, own: tuple[str, ...]) -> "Workspace":
        """A workspace inside this one for stages that several variants share, made where it is not there yet.

        Args:
            key: says what these stages are made from.
            own: the stages.
        """
        return self._derived((_VARIANTS, f"{_SHARED}{key}"), own[0], self)

    def variants(self) -> list[tuple[str, int]]:
        """Name and seed of the variants that are there, sorted."""
        found = [file.split("/") for file in self.files(_VARIANTS) if file.endswith(f"/{_BASE}")]
        return sorted((parts[0], int(parts[1])) for parts in found if len(parts) == 3 and parts[1].isdigit())

    def _derived(self, parts: tuple[str, ...], first: str, base: "Workspace") -> "Workspace":
        if first not in FOLDERS:
            raise ValueError(f"variant {'/'.join(parts)}: unknown stage {first!r}; the stages are {', '.join(FOLDERS)}")
        relative = posixpath.relpath(base.root, self.path(*parts))
        wanted = {"base": relative, "inherited": list(FOLDERS[: FOLDERS.index(first)])}
        if not self.exists(*parts, _BASE):
            self.write_json(wanted, *parts, _BASE)
        if self.read_json(*parts, _BASE) != wanted:
            raise WorkspaceError(
                f"{self.path(*parts)} was made from other stages of the run: its settings have changed in one that "
                "comes before its own. Give the variant another name, or remove that folder"
            )
        return Workspace(f"{self.uri}/{'/'.join(parts)}", self.storage_options)

    def _inherit(self, facts: dict) -> None:
        scheme, separator, path = self.uri.rpartition("://")
        base = scheme + separator + posixpath.normpath(f"{path}/{facts['base']}")
        self.base, self.inherited = Workspace(base, self.storage_options), frozenset(facts["inherited"])

    # Bytes, JSON, tables -------------------------------------------------------------------------------------------

    def read_bytes(self, *parts: str) -> bytes:
        try:
            return self.fs.cat_file(self.path(*parts))
        except FileNotFoundError as error:
            raise WorkspaceError(f"{self.path(*parts)} does not exist; run {_verb(parts[0])} first") from error

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a file whole or not at all (temporary name, then rename)."""
        with self.open_new(*parts) as file:
            file.write(data)

    @contextmanager
    def open_new(self, *parts: str) -> Iterator[BinaryIO]:
        """A file to write to, which appears when the block has succeeded, and never else."""
        with self._atomic(self.path(*parts)) as temporary, self.fs.open(temporary, "wb") as file:
            yield file

    def read_json(self, *parts: str) -> Any:
        return json.loads(self.read_bytes(*parts))

    def write_json(self, value: Any, *parts: str) -> None:
        self.write_bytes(json.dumps(value, indent=1, sort_keys=True, default=str).encode(), *parts)

    def read_table(self, stage: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """Table `name` of a stage: `<stage>/<name>.parquet`, or every parquet file in the folder `<stage>/<name>/`.

        Args:
            columns: read these alone; a nullable one that the files lack is null.

        Raises:
            WorkspaceError: the table is not there.
            TableError: what is read breaks its schema.
        """
        single = f"{name}.parquet"
        if self.exists(stage, single):
            paths = [self.path(stage, single)]
        else:
            paths = [self.path(stage, name, f) for f in self.files(stage, name) if f.endswith(".parquet")]
        if not paths:
            raise WorkspaceError(
                f"workspace {self.uri}: the stage {stage!r} has no table {name!r}; run {_verb(stage)} first, or check "
                "that the source of the data has it"
            )
        parts = [self._read_parquet(path, columns) for path in paths]
        table = pa.concat_tables(parts, promote_options="default")
        return tables.validate(name, table, columns)

    def write_table(self, table: pa.Table, stage: str, name: str, part: str | None = None) -> None:
        """Validate against the schema called `name` and write `<stage>/<name>.parquet` atomically.

        With `part`, write `<stage>/<name>/<part>.parquet` instead, one file of a table that several processes write.
        """
        table = tables.validate(name, table)
        target = self.path(stage, f"{name}.parquet" if part is None else f"{name}/{part}.parquet")
        with self._atomic(target) as temporary, self.fs.open(temporary, "wb") as file:
            pq.write_table(table, file, compression="zstd")

    def has_table(self, stage: str, name: str) -> bool:
        return self.exists(stage, f"{name}.parquet") or bool(self.files(stage, name))

    def text_stage(self, name: str) -> str:
        """The stage that holds the text table `name`: `profile` when it wrote one, else `preprocess`."""
        return "profile" if self.has_table("profile", name) else "preprocess"

    def text_inputs(self) -> list[str]:
        """The stages beside `preprocess` that texts come from: `profile` when it has begun, finished or not."""
        return ["profile"] if self.files("profile") else []

    def read_text_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """`item_profiles`, `user_profiles` or `explanations`, from whichever stage holds it; see `read_table`."""
        return self.read_table(self.text_stage(name), name, columns)

    def _read_parquet(self, path: str, columns: list[str] | None) -> pa.Table:
        with self.fs.open(path, "rb") as file:
            source = pq.ParquetFile(file)
            there = source.schema_arrow.names
            return source.read(columns=None if columns is None else [c for c in columns if c in there])

    # Folders of files (checkpoints, adapters) ----------------------------------------------------------------------

    def upload(self, local: str | os.PathLike, *parts: str) -> None:
        """Copy a local file or folder into the workspace; a folder appears whole or not at all where it is local."""
        source, target = Path(local), self.path(*parts)
        with self._atomic(target, replace_folder=source.is_dir()) as temporary:
            if source.is_dir():
                for file in sorted(p for p in source.rglob("*") if p.is_file()):
                    destination = f"{temporary}/{file.relative_to(source).as_posix()}"
                    self.fs.makedirs(destination.rsplit("/", 1)[0], exist_ok=True)
                    self.fs.put_file(str(file), destination)
            else:
                self.fs.put_file(str(source), temporary)

    @contextmanager
    def new_folder(self, *parts: str) -> Iterator[Path]:
        """A local folder to write into, which appears in the workspace when the block has succeeded, and never else.

        Where the workspace is local it is written in place, under a temporary name, and never copied.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="xrec-") as folder:
                yield Path(folder)
                self.upload(folder, *parts)
            return
        with self._atomic(self.path(*parts), replace_folder=True) as temporary:
            Path(temporary).mkdir()
            yield Path(temporary)

    @contextmanager
    def local(self, *parts: str) -> Iterator[Path]:
        """A local copy of a file or folder of the workspace; the thing itself where the workspace is local."""
        path = self.path(*parts)
        if not self.fs.exists(path):
            raise WorkspaceError(f"{path} does not exist; run {_verb(parts[0])} first")
        if self.is_local:
            yield Path(path)
            return
        with tempfile.TemporaryDirectory(prefix="xrec-") as folder:
            target = Path(folder) / parts[-1]
            if self.fs.isdir(path):
                for name in self.files(*parts):
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    self.fs.get_file(f"{path}/{name}", str(target / name))
            else:
                self.fs.get_file(path, str(target))
            yield target

    def remove(self, *parts: str) -> None:
        path = self.path(*parts)
        if self.fs.exists(path):
            self.fs.rm(path, recursive=True)
            self.fs.invalidate_cache()

    def remove_unfinished(self, stage: str) -> None:
        """Remove the files and folders that a killed run of a stage was writing when it died."""
        folder = self.fs._strip_protocol(self.path(stage)).rstrip("/") + "/"
        found = [str(p).removeprefix(folder) for p in self.fs.find(folder, withdirs=True) if str(p).startswith(folder)]
        # Of a folder, its own name and not those of the files in it.
        begun = {match[0] for path in found if (match := re.match(r"(.*?/)??[^/]*\.tmp-[^/]*", path))}
        for path in begun:
            self.fs.rm(folder + path, recursive=True)

    @contextmanager
    def _atomic(self, target: str, replace_folder: bool = False) -> Iterator[str]:
        """Yield a temporary name beside `target`; rename it onto `target` if the block succeeds, remove it if not."""
        self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        temporary = f"{target}.tmp-{uuid.uuid4().hex[:12]}"
        try:
            yield temporary
            if replace_folder and self.fs.exists(target):
                self.fs.rm(target, recursive=True)
            if self.is_local:
                os.replace(temporary, target)
            elif replace_folder:
                # Object stores have no folders to move. Everything is uploaded by now, and a copy inside the store is
                # quick; that a stage is finished is said by its manifest alone, which comes last.
                for file in self.fs.find(temporary):
                    self.fs.mv(file, target + file.removeprefix(self.fs._strip_protocol(temporary)))
            else:
                self.fs.mv(temporary, target)
        except BaseException:
            if self.fs.exists(temporary):
                self.fs.rm(temporary, recursive=True)
            raise
        finally:
            self.fs.invalidate_cache()

    # Stages --------------------------------------------------------------------------------------------------------

    def is_finished(self, stage: str) -> bool:
        return self.exists(stage, MANIFEST)

    def manifest(self, stage: str) -> dict:
        """The manifest of a finished stage: config, inputs, outputs with hashes, versions, times."""
        if not self.is_finished(stage):
            raise WorkspaceError(
                f"workspace {self.uri}: the stage {stage!r} has not finished; run {_verb(stage)} first"
            )
        return self.read_json(stage, MANIFEST)

    def stage(
        self,
        name: str,
        config: dict,
        inputs: list[str] | None = None,
        external: dict[str, str] | None = None,
        force: bool = False,
        reopen: bool = False,
    ) -> "StageRun":
        """Begin, resume, or recognise as finished the stage `name`.

        Args:
            name: the stage, which is its folder's name; one of this workspace's own.
            config: everything that determines the result, JSON-able. A change of it is a mismatch.
            inputs: the finished stages that this one reads.
            external: further inputs, name -> content hash (`hash_files`).
            force: discard what is there instead of refusing a mismatch, and rebuild a finished stage.
            reopen: keep what a finished stage has written, but let it go on as an unfinished one.

        Returns:
            A `StageRun`; when its `done` is true, the caller returns without work.

        Raises:
            WorkspaceError: an input is unfinished or was altered, the folder was built from something else, or the
                stage is one of the base's.
        """
        if name in self.inherited:
            raise WorkspaceError(
                f"workspace {self.uri}: the stage {name!r} belongs to its base; run {_verb(name)} in {self.base}"
            )
        fingerprint = {
            "config": json.loads(json.dumps(config, default=str)),
            "inputs": {i: self.verified_hash(i) for i in inputs or []} | (external or {}),
        }
        if force:
            self.remove(name)
        if self.files(name) == [STARTED]:  # it failed before it wrote anything: nothing to resume or to protect
            self.remove(name)
        earlier = next((f for f in (MANIFEST, STARTED) if self.exists(name, f)), None)
        if earlier:
            differences = describe_differences(self.read_json(name, earlier)["fingerprint"], fingerprint)
            if differences:
                state = "finished" if earlier == MANIFEST else "begun"
                raise WorkspaceError(
                    f"workspace {self.uri}: the stage {name!r} was {state} with another {'; '.join(differences)}. "
                    "Pass --force to discard and rebuild it, or use another workspace"
                )
        done = earlier == MANIFEST and not reopen
        if not done:
            self.write_json({"fingerprint": fingerprint, "time": time.time()}, name, STARTED)
            if earlier == MANIFEST:
                self.remove(name, MANIFEST)
        return StageRun(self, name, fingerprint, done)

    def output_hash(self, stage: str) -> str:
        """The hash over every file that a finished stage wrote."""
        return self.manifest(stage)["output_hash"]

    def verified_hash(self, stage: str) -> str:
        """The same, after a look at the files themselves.

        Raises:
            WorkspaceError: the stage is unfinished, or a file was altered or is gone.
        """
        manifest = self.manifest(stage)
        for file, facts in manifest["outputs"].items():
            if not self.exists(stage, file):
                raise WorkspaceError(f"{self.path(stage, file)} is gone; rebuild it: {_verb(stage)} with --force")
            # Reading every byte back from an object store would cost more than most stages: sizes there, hashes here.
            same = (
                self.file_hash(stage, file) == facts["sha256"]
                if self.is_local
                else self._size(stage, file) == facts["bytes"]
            )
            if not same:
                raise WorkspaceError(
                    f"{self.path(stage, file)} was altered after the stage {stage!r} finished; "
                    f"rebuild it: {_verb(stage)} with --force"
                )
        return manifest["output_hash"]

    def file_hash(self, *parts: str) -> str:
        """The SHA-256 of a file, in hexadecimal."""
        with self.fs.open(self.path(*parts), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _size(self, *parts: str) -> int:
        return self.fs.info(self.path(*parts))["size"]


class StageRun:
    """One stage at work. `finish` makes it finished; leaving without it leaves it resumable.

    Attributes:
        done: the stage had already finished with the same config and inputs.
    """

    def __init__(self, workspace: Workspace, name: str, fingerprint: dict, done: bool):
        self.workspace, self.name, self.fingerprint, self.done = workspace, name, fingerprint, done
        self.started = time.time()

    def write_table(self, name: str, table: pa.Table) -> None:
        self.workspace.write_table(table, self.name, name)

    def write_json(self, name: str, value: Any) -> None:
        self.workspace.write_json(value, self.name, name)

    def upload(self, local: str | os.PathLike, name: str) -> None:
        self.workspace.upload(local, self.name, name)

    def finish(self, metrics: dict[str, float] | None = None, exclude: tuple[str, ...] = ()) -> dict:
        """Write `metrics.json` and, last, `manifest.json`; returns the manifest.

        Args:
            metrics: the final figures, one flat object (`"test/recall@20": 0.113`).
            exclude: leading folders whose files are working state rather than output (`checkpoints/`).
        """
        workspace, name = self.workspace, self.name
        if metrics is not None:
            workspace.write_json(metrics, name, METRICS)
        outputs = {
            file: {"sha256": workspace.file_hash(name, file), "bytes": workspace._size(name, file)}
            for file in workspace.files(name)
            if file not in _BOOKKEEPING and not file.startswith(exclude)
        }
        manifest = {
            "stage": name,
            "fingerprint": self.fingerprint,
            "outputs": outputs,
            "output_hash": hash_of({f: o["sha256"] for f, o in outputs.items()}),
            "versions": {"python": platform.python_version()} | versions(),
            "started": self.started,
            "seconds": round(time.time() - self.started, 3),
        }
        workspace.write_json(manifest, name, MANIFEST)
        workspace.remove(name, STARTED)
        self.done = True
        return manifest


def _verb(stage: str) -> str:
    """The command that writes a stage's folder."""
    return "`xrec ingest`, `xrec import` or `xrec sample`" if stage == "data" else f"`xrec {stage}`"
