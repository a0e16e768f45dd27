"""Snapshots: any altered byte is refused by name, what is large is mapped, what is remote comes once to a node."""

import hashlib
import json
import shutil
import stat
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.snapshot_changes import flip_byte, publish_next, sign
from tests.tiny_world import DIM, ITEMS, USERS
from xrec.serving.publishing import publish
from xrec.serving.snapshot import Snapshot, SnapshotError, backbone_key, current_snapshot
from xrec.workspace import Workspace

FILES = [
    "manifest.json",
    "embeddings.safetensors",
    "arrays.safetensors",
    "users.arrow",
    "items.arrow",
    "adapter/adapter.safetensors",
    "adapter/config.json",
    "adapter/README.md",
    "backbone/config.json",
    "backbone/model.safetensors",
    "backbone/tokenizer.json",
]


@pytest.fixture
def folder(workspace) -> Path:
    return Path(workspace.path("snapshot", current_snapshot(workspace)))


def test_it_says_what_it_holds(snapshot, published):
    assert len(snapshot.users) == USERS and len(snapshot.items) == ITEMS
    assert (snapshot.trained_users, snapshot.trained_items) == (USERS - 2, ITEMS - 2)
    assert snapshot.spec.embedding_dim == DIM
    weights = Path(published.path("tune", "adapter", "adapter.safetensors")).read_bytes()
    assert snapshot.adapter_hash == hashlib.sha256(weights).hexdigest()
    assert Path(snapshot.backbone_path, "tokenizer.json").is_file()
    key = snapshot.manifest["backbone"]["hash"]
    assert snapshot.backbone_key == backbone_key(key, "input", True)
    assert len({backbone_key(key, *rest) for rest in (("input", True), ("input", False), ("output", True))}) == 3
    assert len(key) == 64 and snapshot.manifest["backbone"]["name"] is None


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_an_altered_byte_is_refused_by_the_files_name(workspace, folder, file, place):
    flip_byte(folder / file, place)
    with pytest.raises(SnapshotError, match=rf"{file} was altered after it was published.*; publish it again"):
        Snapshot.open(workspace)


@pytest.mark.parametrize("file", FILES)
def test_a_cut_or_missing_file_is_refused_by_its_name(workspace, folder, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:-1])
    with pytest.raises(SnapshotError, match=f"{file} was altered"):
        Snapshot.open(workspace)
    (folder / file).unlink()
    with pytest.raises(SnapshotError, match=file):
        Snapshot.open(workspace)


def test_every_file_is_in_the_manifest(folder):
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(FILES) <= there
    assert there - {"manifest.json"} == set(json.loads((folder / "manifest.json").read_bytes())["files"])


def test_a_manifest_with_other_words_is_refused(workspace, folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps(manifest))
    with pytest.raises(SnapshotError, match="was altered"):
        Snapshot.open(workspace)
    path.write_text("[]")
    with pytest.raises(SnapshotError, match="was altered"):
        Snapshot.open(workspace)
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True))
    assert Snapshot.open(workspace).id == folder.name
    sign(folder, format=2)
    with pytest.raises(SnapshotError, match="format 2, but this version of XRec reads format 1"):
        Snapshot.open(workspace)


HOLDS = "{} holds a number that is not finite"


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("embeddings", "user", HOLDS),
        ("embeddings", "item", HOLDS),
        ("arrays", "item_mean", HOLDS),
        ("arrays", "average_user", HOLDS),
        ("arrays", "user_map", HOLDS),
        ("adapter/adapter", "item.expert_weight", "1 of [0-9,]+ values of '{}' are not finite"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(workspace, folder, file, name, message, value):
    path = folder / f"{file}.safetensors"
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path)
    sign(folder)
    with pytest.raises(SnapshotError, match=rf"{file.split('/')[0]}.*: {message.format(name)}"):
        Snapshot.open(workspace)


def test_contents_that_do_not_fit_each_other_are_refused(workspace, folder):
    path = folder / "embeddings.safetensors"
    tensors = load_file(path)
    original = path.read_bytes()
    for user, item, named in (
        (tensors["user"][:, 1:], tensors["item"], "users = 14, but the files have 13, 14"),
        (tensors["user"], tensors["item"][:, 1:], "items = 10, but the files have 9, 10"),
        (tensors["user"][1:], tensors["item"][1:], "layers = 2, but the files have 1, 2"),
        (tensors["user"][:, :, 1:], tensors["item"][:, :, 1:], "dim = 8, but the files have 7, 8"),
        (tensors["user"][0], tensors["item"], r"embeddings.safetensors: .*must be \[layers"),
    ):
        save_file({"user": user.contiguous(), "item": item.contiguous()}, path)
        sign(folder)
        with pytest.raises(SnapshotError, match=named):
            Snapshot.open(workspace)
    path.write_bytes(original)
    shutil.copy(folder / "items.arrow", folder / "users.arrow")
    sign(folder)
    with pytest.raises(SnapshotError, match="users.arrow: .*expected 14"):
        Snapshot.open(workspace)
    (folder / "users.arrow").write_bytes(b"no arrow file")
    sign(folder)
    with pytest.raises(SnapshotError, match="users.arrow: "):
        Snapshot.open(workspace)


def test_the_pointer_must_name_a_snapshot(workspace, folder):
    pointer = Path(workspace.path("snapshot", "current.json"))
    for text in (
        "",
        "{",
        "[]",
        "{}",
        '{"snapshot": 3}',
        '{"snapshot": "../../tune"}',
        '{"snapshot": "ABCDEF0123456789"}',
    ):
        pointer.write_text(text)
        with pytest.raises(SnapshotError, match="current.json .*name.*; publish it again"):
            Snapshot.open(workspace)
    pointer.write_text('{"snapshot": "0123456789abcdef"}')
    with pytest.raises(SnapshotError, match="0123456789abcdef is not a snapshot"):
        Snapshot.open(workspace)
    pointer.unlink()
    with pytest.raises(SnapshotError, match="nothing is published for serving; publish it"):
        Snapshot.open(workspace)
    assert Snapshot.open(workspace, folder.name).id == folder.name
    with pytest.raises(SnapshotError, match="is not a snapshot"):
        Snapshot.open(workspace, "../tune")
    folder.rename(folder.with_name("0123456789abcdef"))
    with pytest.raises(SnapshotError, match=f"holds the snapshot {folder.name}, not 0123456789abcdef"):
        Snapshot.open(workspace, "0123456789abcdef")


def mapped(path: Path, address: int) -> bool:
    """Whether an address of this process lies in the mapping of a file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    return any(address in range(*(int(end, 16) for end in line[0].split("-"))) for line in lines)


def test_what_grows_with_users_and_items_is_mapped(workspace, folder):
    snapshot = Snapshot.open(workspace)
    for side in (snapshot.embeddings.user, snapshot.embeddings.item):
        assert mapped(folder / "embeddings.safetensors", side.data_ptr())
    for name, array in vars(snapshot.arrays).items():
        assert mapped(folder / "arrays.safetensors", array.ctypes.data), name
    for table, file in ((snapshot.users, "users.arrow"), (snapshot.items, "items.arrow")):
        for column in table.table.columns:
            for buffer in (b for chunk in column.chunks for b in chunk.buffers() if b is not None):
                assert mapped(folder / file, buffer.address)


def test_an_open_snapshot_outlives_its_folder(workspace, folder):
    snapshot = Snapshot.open(workspace)
    expected = snapshot.embeddings.user.clone(), snapshot.arrays.item_mean.copy(), snapshot.users.table.to_pylist()
    shutil.rmtree(folder)
    assert torch.equal(snapshot.embeddings.user, expected[0])
    np.testing.assert_array_equal(snapshot.arrays.item_mean, expected[1])
    assert snapshot.users.table.to_pylist() == expected[2]


# Remote workspaces ---------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(published, cache) -> Workspace:
    """The finished stages, and nothing published, in fsspec's memory."""
    workspace = Workspace(f"memory://{uuid.uuid4().hex}")
    for stage in ("preprocess", "embed", "backbone", "tune"):
        workspace.upload(published.path(stage), stage)
    return workspace


def counting(workspace, monkeypatch) -> list[str]:
    downloads, get_file = [], workspace.fs.get_file

    def counted(source, *arguments, **options):
        downloads.append(source)
        get_file(source, *arguments, **options)

    monkeypatch.setattr(workspace.fs, "get_file", counted)
    return downloads


def test_a_node_downloads_a_remote_snapshot_once(remote, snapshot, monkeypatch, cache):
    named = publish(remote)
    assert named == snapshot.id
    downloads = counting(remote, monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: Snapshot.open(remote), range(6)))
    assert sorted(p.rsplit(f"{named}/")[-1] for p in downloads) == sorted(snapshot.manifest["files"])
    assert {s.folder for s in opened} == {opened[0].folder} and opened[0].folder.is_relative_to(cache)
    assert torch.equal(opened[0].embeddings.user, snapshot.embeddings.user)
    assert opened[0].manifest["files"] == snapshot.manifest["files"]
    top = cache / opened[0].folder.relative_to(cache).parts[0]
    assert stat.S_IMODE(top.stat().st_mode) == 0o700


def test_an_altered_copy_is_downloaded_again(remote, monkeypatch):
    publish(remote)
    flip_byte(Snapshot.open(remote).folder / "items.arrow")
    downloads = counting(remote, monkeypatch)
    assert Snapshot.open(remote).items.title(3) == "place 3"
    assert downloads
    downloads.clear()
    Snapshot.open(remote)
    assert not downloads


@pytest.mark.parametrize("file", ["manifest.json", "items.arrow"])
def test_an_altered_remote_snapshot_is_refused(remote, file):
    place = ("snapshot", publish(remote), file)
    original = remote.read_bytes(*place)
    data = bytearray(original)
    data[len(data) // 2] ^= 1
    remote.write_bytes(bytes(data), *place)
    for _ in range(2):
        with pytest.raises(SnapshotError, match=f"{file} was altered"):
            Snapshot.open(remote)
    remote.write_bytes(original, *place)
    assert Snapshot.open(remote).id == place[1]


def test_a_remote_snapshot_that_lacks_a_file_is_refused(remote):
    named = publish(remote)
    remote.remove("snapshot", named, "items.arrow")
    with pytest.raises(SnapshotError, match="items.arrow is gone; publish it again"):
        Snapshot.open(remote)
    remote.remove("snapshot", named, "manifest.json")
    with pytest.raises(SnapshotError, match="it has no manifest.json"):
        Snapshot.open(remote)


def test_a_node_keeps_the_newest_copies(remote):
    folders = []
    for seed in range(4):
        folders.append(Snapshot.open(remote, publish_next(remote, seed)).folder)
    assert {p.name for p in folders[0].parent.iterdir() if p.is_dir()} == {p.name for p in folders[-2:]}
