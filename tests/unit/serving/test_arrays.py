"""What a snapshot derives, against scipy's sparse matrices and loops."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.sparse import csr_array

from xrec.embeddings import Embeddings
from xrec.serving.arrays import SnapshotArrays, derive_arrays

USERS, ITEMS, DIM, TRAINED = 40, 25, 6, (36, 22)


@pytest.fixture(scope="module")
def derived():
    generator = torch.Generator().manual_seed(0)
    embeddings = Embeddings(
        torch.randn(3, USERS, DIM, generator=generator), torch.randn(3, ITEMS, DIM, generator=generator)
    )
    draws = np.random.default_rng(0)
    pairs = np.stack(np.unravel_index(draws.choice(USERS * ITEMS, 300, replace=False), (USERS, ITEMS)))
    train = pairs[:, (pairs[0] < TRAINED[0]) & (pairs[1] < TRAINED[1])]
    by_id = draws.permutation(USERS).astype(np.int32), draws.permutation(ITEMS).astype(np.int32)
    return embeddings, train, pairs, derive_arrays(embeddings, TRAINED, train, pairs, by_id)


def test_interactions_are_scipys_rows_in_both_directions(derived):
    _, _, pairs, arrays = derived
    matrix = csr_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(USERS, ITEMS))
    for found, expected in ((arrays.of_users, matrix), (arrays.of_items, csr_array(matrix.T))):
        expected.sort_indices()
        assert found.offsets.tolist() == expected.indptr.tolist() and found.offsets.dtype == np.int64
        assert found.others.tolist() == expected.indices.tolist() and found.others.dtype == np.int32
        for row in range(expected.shape[0]):
            assert found.of(row).tolist() == np.flatnonzero(expected[[row]].toarray()[0]).tolist()
            assert found.count(row) == len(found.of(row))


def test_statistics_are_of_trained_nodes_and_training_interactions(derived):
    embeddings, train, pairs, arrays = derived
    assert train.shape[1] < pairs.shape[1]
    assert arrays.user_degree.tolist() == [sum(1 for u in train[0] if u == user) for user in range(USERS)]
    assert arrays.item_degree.tolist() == [sum(1 for i in train[1] if i == item) for item in range(ITEMS)]
    for layer in range(3):
        user, item = embeddings.user[layer].numpy(), embeddings.item[layer].numpy()
        np.testing.assert_allclose(arrays.average_user[layer], user[:36].mean(0), rtol=1e-5)
        np.testing.assert_allclose(arrays.average_item[layer], item[:22].mean(0), rtol=1e-5)
    layers = [embeddings.item[layer].numpy() for layer in range(3)]
    np.testing.assert_allclose(arrays.item_mean, (layers[0] + layers[1] + layers[2]) / 3, rtol=1e-4, atol=1e-6)


def test_a_file_gives_them_back(derived, tmp_path):
    arrays = derived[3]
    arrays.save(tmp_path / "arrays")
    arrays.save(tmp_path / "again")
    assert (tmp_path / "arrays").read_bytes() == (tmp_path / "again").read_bytes()
    back = SnapshotArrays.load(tmp_path / "arrays")
    for name, value in vars(arrays).items():
        np.testing.assert_array_equal(getattr(back, name), value)


def test_arrays_that_do_not_fit_are_refused(derived, tmp_path):
    arrays = vars(derived[3])
    save_file({"user_offsets": torch.zeros(3)}, tmp_path / "few")
    with pytest.raises(ValueError, match=r"it holds \['user_offsets'\], expected"):
        SnapshotArrays.load(tmp_path / "few")
    for name in (
        "user_items",
        "item_users",
        "user_offsets",
        "item_offsets",
        "users_by_id",
        "items_by_id",
        "item_degree",
        "average_user",
        "user_map",
    ):
        with pytest.raises(ValueError, match=r"has the shape .*, expected"):
            SnapshotArrays(**(arrays | {name: arrays[name][:-1]}))
