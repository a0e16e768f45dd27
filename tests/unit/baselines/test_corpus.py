"""What training may see: batches, ratings, and no word of a validation or test text in the tokenizer."""

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.baselines.worlds import make_workspace
from xrec.baselines.corpus import MAX_TOKENS, Rows, Texts, new_rows, read_ratings
from xrec.baselines.preparation import prepare, rows_to_explain
from xrec.config.baseline import BaselineConfig
from xrec.explainer.model import IGNORED

SMALL = {"hidden": 8, "heads": 2, "layers": 1, "vocabulary": 400}
MODELS = ["att2seq", "nrt", "peter", "peter_plus", "pepler"]


class Ends:
    """All that a batch asks of a tokenizer."""

    bos_token_id, eos_token_id = 0, 1


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("baselines") / "w")


def test_a_batch_pads_on_the_right_and_ends_each_text():
    rows = Rows(np.arange(3), np.arange(3) + 5, [[4, 5], [], [6]], np.full(3, np.nan, np.float32), [[7], [], [8, 9]])
    batch = rows.batch(np.array([2, 0, 1]), Ends)
    assert batch.inputs.tolist() == [[0, 6, 1], [0, 4, 5], [0, 1, 1]]
    assert batch.labels.tolist() == [[6, 1, IGNORED], [4, 5, 1], [1, IGNORED, IGNORED]]
    assert batch.user.tolist() == [2, 0, 1]
    assert batch.item.tolist() == [7, 5, 6]
    assert batch.feature.tolist() == [[8, 9], [7, 1], [1, 1]]
    assert batch.feature_mask.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.tokens == 6


def test_a_text_that_is_too_long_is_cut_and_not_ended():
    texts = [[3] * (MAX_TOKENS + 5), [3] * MAX_TOKENS]
    rows = Rows(np.arange(2), np.arange(2), texts, np.zeros(2, np.float32), [[], []])
    labels = rows.batch(slice(None), Ends).labels
    assert labels.shape == (2, MAX_TOKENS + 1)
    assert labels[:, -1].tolist() == [IGNORED, 1]


def test_ratings_are_those_of_the_pairs_latest_reviews(tmp_path):
    workspace = make_workspace(tmp_path / "w")
    reviews = workspace.read_table("data", "reviews").to_pylist()
    again = {**reviews[4], "rating": 1.5, "timestamp": 10_000}
    workspace.write_table(pa.Table.from_pylist([again, *reviews]), "data", "reviews")
    pairs = pa.table({"user": [0, 0, 11], "item": [1, 0, 8]})
    asked = [(f"u{u}", f"i{i}") for u, i in zip(*pairs.to_pydict().values(), strict=True)]
    latest = {(r["user_id"], r["item_id"]): r["rating"] for r in [*reviews, again]}
    assert (again["user_id"], again["item_id"]) not in asked
    np.testing.assert_array_equal(read_ratings(workspace, pairs), [latest.get(pair, np.nan) for pair in asked])
    one = pa.table({"user": [int(again["user_id"][1:])], "item": [int(again["item_id"][1:])]})
    assert read_ratings(workspace, one).tolist() == [1.5]


@pytest.mark.parametrize("name", MODELS)
def test_no_validation_or_test_text_reaches_tokenizer_or_training(workspace, name):
    prepared = prepare(workspace, BaselineConfig(name=name, **SMALL))
    texts = Texts.load(workspace)
    assert set(texts.train["split"] if "split" in texts.train.column_names else []) == set()
    vocabulary = {token.lstrip("Ġ") for token in prepared.tokenizer.get_vocab()}
    assert "trainword" in vocabulary
    # A merge that only a held-out text could have taught.
    assert not {"va", "val", "valw", "te", "tes", "est", "test"} & vocabulary
    for phase in prepared.phases:
        read = prepared.tokenizer.batch_decode(phase.train.text)
        assert sum("trainword" in text for text in read) == len(texts.train)
        assert not any("valword" in text or "testword" in text for text in read)
        held_out = prepared.tokenizer.batch_decode(phase.validation.text)
        assert held_out
        assert all("valword" in text for text in held_out)


def test_the_features_of_pairs_to_explain_come_from_training(workspace):
    config = BaselineConfig(name="peter_plus", **SMALL)
    prepared = prepare(workspace, config)
    pairs = pa.table({"user": [0, 3], "item": [1, 5]})
    rows = rows_to_explain(workspace, config, pairs, prepared.tokenizer)
    assert prepared.tokenizer.batch_decode(rows.feature) == [" quiet garden", " old jazz"]
    told = pairs.append_column("explanation", [["a text", "another"]]).append_column("feature", [["Loud Music", "tea"]])
    config = config.model_copy(update={"feature": "reference"})
    rows = rows_to_explain(workspace, config, told, prepared.tokenizer)
    assert prepared.tokenizer.batch_decode(rows.feature) == [" loud music", " tea"]
    assert rows.text == [[], []]


def test_only_nodes_with_training_explanations_have_embeddings_of_their_own(workspace):
    prepared = prepare(workspace, BaselineConfig(name="att2seq", **SMALL))
    train = Texts.load(workspace).train
    known = set(train["user"].to_pylist())
    assert prepared.shape.known_users == len(known)
    assert {u for u, row in enumerate(prepared.model.users.rows.tolist()) if row} == known


def test_new_rows_without_texts_are_empty():
    rows = new_rows(pa.table({"user": [1, 2], "item": [3, 4]}), None)
    assert rows.text == [[], []]
    assert rows.feature == [[], []]
    assert np.isnan(rows.rating).all()
