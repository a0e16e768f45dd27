"""The embeddings file: what is written is read, whole or not at all, and other files are refused."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xrec.embeddings import Embeddings


@pytest.fixture
def embeddings() -> Embeddings:
    generator = torch.Generator().manual_seed(0)
    user, item = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 7, 4, generator=generator)
    return Embeddings(user, item, {"model": "LightGCN"})


def test_round_trip(embeddings, tmp_path):
    embeddings.save(tmp_path / "embeddings.safetensors")
    loaded = Embeddings.load(tmp_path / "embeddings.safetensors")
    assert torch.equal(loaded.user, embeddings.user)
    assert torch.equal(loaded.item, embeddings.item)
    assert loaded.metadata == embeddings.metadata
    assert loaded.dim == 4
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.safetensors"]


def test_saves_views_of_other_tensors(embeddings, tmp_path):
    both = torch.cat([embeddings.user, embeddings.item], 1)
    Embeddings(both[:, :5], both[:, 5:]).save(tmp_path / "file")
    assert torch.equal(Embeddings.load(tmp_path / "file").item, embeddings.item)


def test_any_safetensors_reader_reads_it(embeddings, tmp_path):
    embeddings.save(tmp_path / "file")
    with safe_open(tmp_path / "file", framework="numpy") as file:
        assert set(file.keys()) == {"user", "item"}
        assert file.get_tensor("user").shape == (3, 5, 4)


def test_layers_are_averaged(embeddings):
    expected = (embeddings.user[0] + embeddings.user[1] + embeddings.user[2]) / 3
    torch.testing.assert_close(embeddings.user_mean(), expected)
    assert embeddings.item_mean().shape == (7, 4)


@pytest.mark.parametrize(
    ("user", "item"), [((3, 5, 4), (2, 7, 4)), ((3, 5, 4), (3, 7, 5)), ((5, 4), (7, 4)), ((3, 5, 4), (7, 4))]
)
def test_refuses_shapes_that_do_not_fit(user, item):
    with pytest.raises(ValueError, match=r"must be \[layers \+ 1, nodes, dim\]"):
        Embeddings(torch.zeros(user), torch.zeros(item))


def test_refuses_other_files(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "file")
    with pytest.raises(ValueError, match=r"holds \['weight'\], not the tensors 'user' and 'item'"):
        Embeddings.load(tmp_path / "file")


def test_a_failed_save_leaves_the_old_file(embeddings, tmp_path):
    path = tmp_path / "file"
    embeddings.save(path)
    broken = Embeddings(embeddings.user, embeddings.item, {"layers": {3}})  # a set is not JSON
    with pytest.raises(TypeError):
        broken.save(path)
    assert Embeddings.load(path).metadata == {"model": "LightGCN"}


def test_equal_embeddings_make_equal_files(tmp_path):
    user, item = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    for name in "abcdef":
        Embeddings(user, item, {key: key for key in "zyxwvutsrq"}).save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1
    assert Embeddings.load(tmp_path / "a").metadata["z"] == "z"
