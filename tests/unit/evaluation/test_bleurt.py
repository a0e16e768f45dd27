"""BLEURT against its head written out over a plain BERT, one pair at a time, on a tiny BERT of random weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

from tests.scoring_models import PREDICTIONS, REFERENCES, save_bert
from xrec.evaluation.bleurt import Bleurt, BleurtScorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bleurt"))


def by_hand(folder, prediction, reference):
    """The tanh of a dense layer over the first token's state, times the head's weights."""
    tokenizer, body = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    weights = load_file(f"{folder}/model.safetensors")
    first, second = (tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in (reference, prediction))
    while len(first) + len(second) > 64 - 3:
        (first if len(first) > len(second) else second).pop()
    ids = [2, *first, 3, *second, 3]
    kinds = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    with torch.no_grad():
        state = body(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([kinds])).last_hidden_state[0, 0]
        pooled = torch.tanh(weights["bert.pooler.dense.weight"] @ state + weights["bert.pooler.dense.bias"])
        return (weights["classifier.weight"] @ pooled + weights["classifier.bias"]).item()


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_equals_the_head_by_hand(folder, batch_size):
    found = Bleurt(folder, batch_size=batch_size).score(PREDICTIONS, REFERENCES)
    expected = [by_hand(folder, p, r) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.std() > 0.05


def test_the_longer_text_of_a_long_pair_is_cut(folder):
    long = "coffee and music " * 30
    found = Bleurt(folder).score([long, "Pizza"], [REFERENCES[0], long])
    expected = [by_hand(folder, long, REFERENCES[0]), by_hand(folder, "Pizza", long)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_models_without_a_head_of_one_label_are_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluate.bleurt.model = .* has 3 labels"):
        Bleurt(save_bert(tmp_path / "three", labels=3))
    with pytest.raises(ValueError, match="BertModel.* no head that rates; name a BERT with a head of one label"):
        Bleurt(save_bert(tmp_path / "plain", model_class=BertModel))
    with pytest.raises(ValueError, match="evaluate.bleurt.model = .* cannot be loaded"):
        Bleurt(str(tmp_path / "none"))


def test_a_head_that_is_not_among_the_weights_is_refused(tmp_path):
    """Its config may name a head that the file lacks: transformers would draw one at random."""
    folder = save_bert(tmp_path / "headless")
    BertModel.from_pretrained(folder).save_pretrained(tmp_path / "body")
    (tmp_path / "headless" / "model.safetensors").write_bytes((tmp_path / "body" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="no weights for .*classifier"):
        Bleurt(folder)


def test_columns_leave_out_rows_without_a_reference_and_empty_texts(folder):
    scorer = BleurtScorer(folder)
    rows = {"explanation": [*PREDICTIONS[:2], ""], "reference": [REFERENCES[0], None, "x"]}
    found = scorer.score(rows)["bleurt"]
    assert found[0] == pytest.approx(by_hand(folder, PREDICTIONS[0], REFERENCES[0]), abs=1e-5)
    assert np.isnan(found[1:]).all()
    assert scorer.facts() == {"model": folder, "empty": 1}
