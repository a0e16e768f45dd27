"""BARTScore against a loop that predicts one token at a time, on a tiny BART of random weights."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BartForConditionalGeneration, BertForSequenceClassification

from tests.scoring_models import PREDICTIONS, REFERENCES, save_bart, save_bert
from xrec.evaluation.bart_score import BartScorer, BartScoreScorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bart(tmp_path_factory.mktemp("bart"))


@lru_cache
def plain(folder):
    return AutoTokenizer.from_pretrained(folder), BartForConditionalGeneration.from_pretrained(folder).eval()


def token_by_token(folder, prediction, reference, limit=48):
    """Mean log-probability of the reference: one text, one token a step, the whole prefix read anew each time."""
    tokenizer, model = plain(folder)
    source, target = (tokenizer(text)["input_ids"] for text in (prediction, reference))
    # Truncation keeps the token that ends a text.
    source, target = (ids if len(ids) <= limit else [*ids[: limit - 1], 2] for ids in (source, target))
    prefix, total = [model.config.decoder_start_token_id], 0.0
    for token in target:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([prefix])).logits[0, -1]
        total += (logits[token] - logits.exp().sum().log()).item()
        prefix.append(token)
    return total / len(target)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_equals_a_loop_over_single_tokens(folder, batch_size):
    found = BartScorer(folder, batch_size=batch_size).score(PREDICTIONS, REFERENCES)
    expected = [token_by_token(folder, p, r) for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.std() > 0.05


def test_the_prediction_is_read_and_the_reference_is_scored(folder):
    scorer = BartScorer(folder)
    forward = scorer.score([PREDICTIONS[0]], [REFERENCES[0]])
    backward = scorer.score([REFERENCES[0]], [PREDICTIONS[0]])
    assert abs(forward - backward) > 1e-3


def test_texts_beyond_the_models_positions_are_cut(folder):
    long = "espresso and pastries " * 40
    found = BartScorer(folder).score([long, "Pizza"], [REFERENCES[0], long])
    expected = [token_by_token(folder, long, REFERENCES[0]), token_by_token(folder, "Pizza", long)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_checkpoint_replaces_the_weights(folder, tmp_path):
    other = BartForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "other")
    expected = BartScorer(str(tmp_path / "other")).score(PREDICTIONS, REFERENCES)
    weights = other.state_dict()
    torch.save(weights, tmp_path / "bart_score.pth")
    # As safetensors want it: shared weights once.
    once = {n: t.clone() for n, t in weights.items() if "embed_tokens" not in n and n != "lm_head.weight"}
    save_file(once, tmp_path / "bart_score.safetensors")
    for name in ("bart_score.pth", "bart_score.safetensors"):
        found = BartScorer(folder, checkpoint=str(tmp_path / name)).score(PREDICTIONS, REFERENCES)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - BartScorer(folder).score(PREDICTIONS, REFERENCES)).max() > 1e-2


def test_a_checkpoint_that_does_not_fit_is_refused(folder, tmp_path):
    def refused(weights, match):
        torch.save(weights, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=match):
            BartScorer(folder, checkpoint=str(tmp_path / "bad.pth"))

    whole = BartForConditionalGeneration.from_pretrained(folder).state_dict()
    refused({**whole, "module.extra": torch.zeros(1)}, "module.extra.* whole state dict")
    refused({n: t for n, t in whole.items() if "fc1" not in n}, "lacks .*fc1")
    refused({**whole, "model.encoder.layers.0.fc1.bias": torch.zeros(3)}, "size mismatch")
    refused([1, 2], "state dict")
    refused({"model": 1}, "state dict")
    with pytest.raises(ValueError, match="is no file"):
        BartScorer(folder, checkpoint=str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("text.pth", "text.safetensors"):
        with pytest.raises(ValueError, match="evaluate.bart_score.checkpoint = .* cannot be loaded"):
            BartScorer(folder, checkpoint=str(tmp_path / name))


def test_a_checkpoint_cannot_run_code(folder, tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (marker.touch, ())

    torch.save({"model.shared.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot be loaded"):
        BartScorer(folder, checkpoint=str(tmp_path / "evil.pth"))
    assert not marker.exists()


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluate.bart_score.model = .* cannot be loaded"):
        BartScorer(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="evaluate.bart_score.model = .* is a 'bert'; name a BART"):
        BartScorer(save_bert(tmp_path / "bert", model_class=BertForSequenceClassification))


def test_columns_leave_out_rows_without_a_reference_and_empty_texts(folder):
    scorer = BartScoreScorer(folder, batch_size=2)
    rows = {"explanation": [*PREDICTIONS[:2], "", "x"], "reference": [REFERENCES[0], None, "x", "  "]}
    found = scorer.score(rows)["bart_score"]
    assert np.isnan(found[1:]).all()
    assert found[0] == pytest.approx(token_by_token(folder, PREDICTIONS[0], REFERENCES[0]), abs=1e-4)
    assert scorer.facts() == {"model": folder, "checkpoint": None, "empty": 2}
