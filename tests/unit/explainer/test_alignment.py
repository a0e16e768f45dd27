"""The adapter's starting point against scikit-learn's ridge regression, and what it must not read."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from tests.random_models import train_tokenizer
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.alignment import align_with_words
from xrec.explainer.pairs import PairTexts

WORDS = ["jazz", "pizza", "garden", "coffee"]


@pytest.fixture(scope="module")
def world():
    """60 users whose embedding tells which of four words their explanations use; items tell nothing."""
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 4, 60)
    users = torch.from_numpy(np.eye(4)[kinds] @ generator.normal(size=(4, 6)) + 0.05 * generator.normal(size=(60, 6)))
    items = torch.from_numpy(generator.normal(size=(60, 6)))
    pairs = [(n, n, f"for the {WORDS[kinds[n]]}") for n in range(60)]
    tokenizer = train_tokenizer([text for *_, text in pairs], 300)
    table = torch.from_numpy(generator.normal(size=(300, 10)) + 2).float()
    return kinds, {"user": users.float(), "item": items.float()}, pairs, tokenizer, table


@pytest.mark.parametrize(
    ("experts", "top_k", "normalize"), [(8, None, True), (3, None, True), (4, 1, True), (4, None, False)]
)
def test_the_mixture_computes_the_regression(world, experts, top_k, normalize):
    """Whatever the gate and the inputs' scale, vectors are scikit-learn's predictions, up to size and a constant."""
    kinds, embeddings, pairs, tokenizer, table = world
    users = embeddings["user"] if normalize else embeddings["user"] * 1e-3
    adapter = XRecAdapter(AdapterSpec(6, 10, experts, top_k=top_k)).eval()
    if normalize:
        adapter.fit_normalization(users, embeddings["item"])
    adapter.fit_output_scale(users, embeddings["item"], 0.05)
    nodes = {"user": users, "item": embeddings["item"]}
    figures = align_with_words(adapter, nodes, pairs, PairTexts(["t"] * 60), tokenizer, table, False, 0.05)
    ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in WORDS]
    targets = np.stack([table[ids[k]].mean(0).numpy() for k in kinds])
    inputs = users.numpy().astype(float)
    inputs = StandardScaler().fit_transform(inputs) if normalize else inputs / inputs.std()
    found = adapter.user(users).detach().numpy()
    assert np.sqrt((found**2).mean()) == pytest.approx(0.05, rel=1e-3)
    correlations = []
    for alpha in (1, 10, 100, 1000):
        expected = Ridge(alpha).fit(inputs, targets).predict(inputs)
        centred = [(m - m.mean(0)).ravel() for m in (found, expected)]
        correlations.append(np.corrcoef(*centred)[0, 1])
    assert max(correlations) > 1 - 1e-4
    assert figures["align/user/explained"] > 0.9
    assert figures["align/item/explained"] < 0.3


def test_only_training_pairs_count_and_few_nodes_change_nothing(world):
    _, embeddings, pairs, tokenizer, table = world
    adapter = XRecAdapter(AdapterSpec(6, 10, 4))
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    assert align_with_words(adapter, embeddings, pairs[:19], PairTexts(["t"] * 60), tokenizer, table, False, 0.1) == {}
    assert all(torch.equal(before[name], value) for name, value in adapter.state_dict().items())
