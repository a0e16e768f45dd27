"""Predictions made elsewhere find their pair, and what finds none is listed with its reason."""

import pyarrow as pa
import pytest

from tests.tiny_world import make_workspace
from xrec.data.prediction_pairs import match_pairs, split_of
from xrec.data.predictions import PredictionsError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("pairs") / "w")


@pytest.fixture(scope="module")
def test_pairs(workspace):
    return [row for row in workspace.read_text_table("explanations").to_pylist() if row["split"] == "test"]


def _table(rows):
    return pa.Table.from_pylist(rows)


def test_by_ids(workspace, test_pairs):
    rows = [{"user_id": f"u{p['user']}", "item_id": f"i{p['item']}", "explanation": "x"} for p in test_pairs]
    rows += [
        {"user_id": "nobody", "item_id": "i0", "explanation": "lost"},
        {"user_id": "u0", "item_id": "nothing", "explanation": "lost too"},
        rows[0] | {"explanation": "again"},
    ]
    predictions, rejected = match_pairs(_table(rows), workspace, "f" * 64)
    assert [(r["user"], r["item"]) for r in predictions.to_pylist()] == [(p["user"], p["item"]) for p in test_pairs]
    first = predictions.to_pylist()[0]
    assert (first["signal"], first["tokens"], first["adapter_hash"], first["status"]) == ("true", 0, "f" * 64, "ok")
    assert rejected.select(["row", "reason", "explanation"]).to_pylist() == [
        {"row": len(test_pairs), "reason": "unknown user_id", "explanation": "lost"},
        {"row": len(test_pairs) + 1, "reason": "unknown item_id", "explanation": "lost too"},
        {"row": len(test_pairs) + 2, "reason": "repeated pair", "explanation": "again"},
    ]
    assert split_of(predictions, workspace) == "test"


def test_by_indices_and_a_pair_that_nobody_knows(workspace):
    interactions = workspace.read_table("preprocess", "interactions").to_pylist()
    known = {(row["user"], row["item"]) for row in interactions}
    strange = next((u, i) for u in range(12) for i in range(10) if (u, i) not in known)
    pairs = [(row["user"], row["item"]) for row in interactions[:9]] + [strange, (99, 0)]
    rows = [{"user": u, "item": i, "explanation": "x"} for u, i in pairs]
    predictions, rejected = match_pairs(_table(rows), workspace)
    assert len(predictions) == 9
    assert rejected["reason"].to_pylist() == ["pair of no split", "unknown user"]
    assert len({row["split"] for row in interactions[:9]}) > 1
    assert split_of(predictions, workspace) == "all"


def test_by_reference(workspace, test_pairs):
    pair = test_pairs[0]
    rows = [
        {"explanation": "found", "reference": f"  {pair['explanation'].replace(' ', '  ')}\n"},
        {"explanation": "lost", "reference": "no such text"},
        {"explanation": "silent", "reference": None},
    ]
    predictions, rejected = match_pairs(_table(rows), workspace)
    assert [(r["user"], r["item"], r["explanation"]) for r in predictions.to_pylist()] == [
        (pair["user"], pair["item"], "found")
    ]
    assert rejected["reason"].to_pylist() == ["unknown reference", "no reference"]


def test_a_reference_of_two_pairs_is_ambiguous(tmp_path):
    workspace = make_workspace(tmp_path / "w")
    known = workspace.read_text_table("explanations")
    texts = ["the same words"] * 2 + known["explanation"].to_pylist()[2:]
    changed = known.set_column(known.column_names.index("explanation"), "explanation", pa.array(texts))
    workspace.write_table(changed, "preprocess", "explanations")
    _, rejected = match_pairs(_table([{"explanation": "x", "reference": "the same words"}]), workspace)
    assert rejected["reason"].to_pylist() == ["ambiguous reference"]


def test_texts_alone_name_no_pair(workspace):
    with pytest.raises(PredictionsError, match="name no pairs: give the columns user_id and item_id"):
        match_pairs(_table([{"explanation": "x"}]), workspace)


def test_references_need_explanations(tmp_path):
    workspace = make_workspace(tmp_path / "w")
    workspace.remove("preprocess", "explanations.parquet")
    with pytest.raises(PredictionsError, match="no explanations to find the references among"):
        match_pairs(_table([{"explanation": "x", "reference": "y"}]), workspace)
