"""Adapted vectors: what a file of them gives back, that it is mapped, and that a node downloads it once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.vectors import AdaptedVectors, MappedVectors, derangement, remove_shared_copy, shared_copy
from xrec.explainer.vectors import write_vectors as write
from xrec.workspace import Workspace

USERS, ITEMS, DIM, HIDDEN = 30, 20, 5, 12
NODES = {"user": np.array([7, 3, 3, 29, 400, -1]), "item": np.array([0, 19])}


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    adapter = XRecAdapter(AdapterSpec(embedding_dim=DIM, hidden_size=HIDDEN, experts=3))
    torch.nn.init.normal_(adapter.user.gate)
    return AdaptedVectors(adapter, torch.randn(USERS, DIM), torch.randn(ITEMS, DIM), shuffle_seed=4)


@pytest.fixture
def path(source, tmp_path):
    write(tmp_path / "vectors.safetensors", source, NODES, ("true", "shuffled", "off"), torch.float32)
    return tmp_path / "vectors.safetensors"


@pytest.mark.parametrize("signal", ["true", "shuffled"])
def test_a_file_gives_what_the_adapter_computes(source, path, signal):
    mapped = MappedVectors(path)
    assert mapped.counts == {"user": USERS, "item": ITEMS}
    for side, nodes in (("user", [29, 3, 29, 7]), ("item", [19, 0])):
        found = mapped.look_up(side, nodes, signal)
        for row, node in zip(found, nodes, strict=True):
            other = int(derangement(mapped.counts[side], 4 + (side == "item"))[node])
            embedding = source.embeddings[side][node if signal == "true" else other]
            torch.testing.assert_close(row, getattr(source.adapter, side)(embedding[None])[0].detach())
    assert mapped.look_up("user", [3], "off") is None
    assert mapped.look_up("user", [], signal).shape == (0, HIDDEN)


def test_only_what_is_asked_for_is_written(source, path, tmp_path):
    shuffled = {int(derangement(USERS, 4)[node]) for node in (3, 7, 29)}
    assert len(MappedVectors(path).vectors["user"]) == len({3, 7, 29} | shuffled)
    write(tmp_path / "true", source, NODES, ("true",), torch.float32)
    mapped = MappedVectors(tmp_path / "true")
    assert len(mapped.vectors["user"]) == 3 and len(mapped.vectors["item"]) == 2
    with pytest.raises(ValueError, match="the vector of user 4 was not written"):
        mapped.look_up("user", [3, 4], "true")
    with pytest.raises(ValueError, match="the signal 'shuffled' were not written"):
        mapped.look_up("user", [3], "shuffled")
    write(tmp_path / "off", source, NODES, ("off",), torch.float32)
    assert MappedVectors(tmp_path / "off").look_up("item", [0], "off") is None


def test_a_gpus_engine_gets_bfloat16(source, path, tmp_path):
    write(tmp_path / "half", source, NODES, ("true",), torch.bfloat16)
    half, whole = MappedVectors(tmp_path / "half"), MappedVectors(path)
    assert half.vectors["user"].dtype == torch.bfloat16
    expected = whole.look_up("user", [3, 29], "true").to(torch.bfloat16).float()
    assert torch.equal(half.look_up("user", [3, 29], "true"), expected)


def mapped_ranges(path: Path) -> list[range]:
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    return [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]


def test_the_file_is_mapped_and_not_read(source, path):
    mapped = MappedVectors(path)
    ranges = mapped_ranges(path)
    for side in ("user", "item"):
        assert any(mapped.vectors[side].data_ptr() in one for one in ranges)


def test_many_nodes_are_adapted_in_batches(source, tmp_path):
    user = torch.randn(10_000, DIM, generator=torch.Generator().manual_seed(1))
    many = AdaptedVectors(source.adapter, user, source.embeddings["item"])
    write(tmp_path / "many", many, {"user": np.arange(10_000), "item": np.array([], int)}, ("true",), torch.float32)
    mapped = MappedVectors(tmp_path / "many")
    with torch.inference_mode():
        torch.testing.assert_close(mapped.vectors["user"].clone(), source.adapter.user(user))
    assert mapped.vectors["item"].shape == (0, HIDDEN)
    assert [p.name for p in tmp_path.iterdir()] == ["many"]


def test_a_node_downloads_a_remote_file_once(path, monkeypatch, tmp_path):
    workspace, place = Workspace("memory://vectors"), ("explain", "work", "vectors-1.safetensors")
    workspace.upload(path, *place)
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    downloads, get_file = [], workspace.fs.get_file

    def counted(*arguments):
        downloads.append(arguments)
        get_file(*arguments)

    monkeypatch.setattr(workspace.fs, "get_file", counted)
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: shared_copy(workspace, place), range(8)))
    assert len(set(copies)) == len(downloads) == 1
    mapped = MappedVectors(copies[0])
    remove_shared_copy(workspace, place)
    assert not copies[0].exists()
    assert torch.equal(mapped.look_up("user", [3], "true"), MappedVectors(path).look_up("user", [3], "true"))


def test_a_local_file_is_used_as_it_is(path):
    workspace = Workspace(path.parent)
    assert shared_copy(workspace, (path.name,)) == path
    remove_shared_copy(workspace, (path.name,))
    assert path.exists()


@pytest.mark.parametrize("count", [2, 3, 10, 1001])
def test_derangement_moves_every_index(count):
    permutation = derangement(count, 0)
    assert sorted(permutation.tolist()) == list(range(count))
    assert all(int(p) != i for i, p in enumerate(permutation))
