"""The adapter's starting point against scikit-learn's ridge regression, and what it must not read."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.alignment import align_with_words
from xrec.explainer.backbone_corpus import train_tokenizer
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


@pytest.mark.parametrize("experts", [8, 3])
def test_the_mixture_computes_the_regression(world, experts):
    kinds, embeddings, pairs, tokenizer, table = world
    adapter = XRecAdapter(AdapterSpec(6, 10, experts)).eval()
    adapter.fit_normalization(embeddings["user"], embeddings["item"])
    figures = align_with_words(adapter, embeddings, pairs, PairTexts(["t"] * 60), tokenizer, table, False, 0)
    ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in WORDS]
    targets = np.stack([table[ids[k]].mean(0).numpy() for k in kinds])
    inputs = StandardScaler().fit_transform(embeddings["user"].numpy())
    found = adapter.user(embeddings["user"]).detach().numpy()
    errors = [np.abs(found - Ridge(alpha).fit(inputs, targets).predict(inputs)).max() for alpha in (1, 10, 100, 1000)]
    assert min(errors) < 1e-3
    assert figures["align/user/explained"] > 0.9
    assert figures["align/item/explained"] < 0.3


def test_only_training_pairs_count_and_few_nodes_change_nothing(world):
    _, embeddings, pairs, tokenizer, table = world
    adapter = XRecAdapter(AdapterSpec(6, 10, 4))
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    assert align_with_words(adapter, embeddings, pairs[:19], PairTexts(["t"] * 60), tokenizer, table, False, 0) == {}
    assert all(torch.equal(before[name], value) for name, value in adapter.state_dict().items())
