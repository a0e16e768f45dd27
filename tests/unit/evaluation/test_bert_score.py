"""BERTScore against a greedy matching written out here, against the library's scorer, and on the inputs it fails on."""

from importlib import resources

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

from tests.scoring_models import save_bart
from xrec.evaluation.bert_score import BertScorer, BertScoreScorer, embedded_model_folder

PREDICTIONS = [
    "The user would enjoy this cafe for its espresso and pastries.",
    "Great books, thrilling plots!",
    "Wood-fired pizza in Philadelphia",
]
REFERENCES = [
    "You would like the coffee shop because of its fresh croissants and strong coffee.",
    "The reader praises the thrilling plot of this novel.",
    "The user would enjoy the live jazz.",
]


@pytest.fixture(scope="module")
def scorer():
    return BertScorer()


def test_equals_greedy_matching_by_hand(scorer):
    folder = embedded_model_folder()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def vectors(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(states, dim=-1)

    found = scorer.score(PREDICTIONS, REFERENCES)
    for row, (prediction, reference) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        similarity = vectors(prediction) @ vectors(reference).T
        # [CLS] and [SEP] may be matched with, but are not averaged over.
        precision = similarity.max(1).values[1:-1].mean().item()
        recall = similarity.max(0).values[1:-1].mean().item()
        assert found.precision[row] == pytest.approx(precision, abs=1e-5)
        assert found.recall[row] == pytest.approx(recall, abs=1e-5)
        assert found.f1[row] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)


@pytest.mark.parametrize("layers", [2, 6])
def test_equals_the_librarys_scorer_at_any_layer(layers):
    from bert_score import BERTScorer as LibraryScorer

    library = LibraryScorer(model_type=str(embedded_model_folder()), num_layers=layers, device="cpu")
    expected = torch.stack(library.score(PREDICTIONS, REFERENCES)).numpy()
    found = BertScorer(layers=layers).score(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(np.stack([found.precision, found.recall, found.f1]), expected, atol=1e-5)


def test_the_same_text_scores_one_and_related_text_more_than_unrelated(scorer):
    found = scorer.score([REFERENCES[0], PREDICTIONS[0], PREDICTIONS[2]], [REFERENCES[0]] * 3)
    assert found.f1[0] == pytest.approx(1.0, abs=1e-5)
    assert found.f1[0] > found.f1[1] > found.f1[2]


def test_empty_texts_score_zero_and_are_counted(scorer):
    found = scorer.score(["", "  \n", PREDICTIONS[0], PREDICTIONS[0]], [REFERENCES[0], "x", "", REFERENCES[0]])
    assert found.empty == 3
    assert found.f1[:3].tolist() == [0, 0, 0]
    assert found.f1[3] > 0.3
    assert scorer.score([], []).f1.shape == (0,)


def test_a_text_beyond_the_models_positions_is_cut(scorer):
    found = scorer.score(["word " * 2000], ["word " * 2000])
    assert found.f1[0] == pytest.approx(1.0, abs=1e-5)


def test_a_tokenizer_without_a_length_limit_works(tmp_path):
    """Many published tokenizers leave `model_max_length` at 1e30, on which the library overflows."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_folder(), model_max_length=int(1e30))
    tokenizer.save_pretrained(tmp_path)
    AutoModel.from_pretrained(embedded_model_folder()).save_pretrained(tmp_path)
    assert BertScorer(str(tmp_path)).score(["a"], ["a"]).f1[0] == pytest.approx(1.0, abs=1e-5)


def test_chunks_do_not_change_the_scores(scorer, monkeypatch):
    whole = scorer.score(PREDICTIONS, REFERENCES).f1
    monkeypatch.setattr("xrec.evaluation.bert_score._ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(scorer.score(PREDICTIONS, REFERENCES).f1, whole, atol=1e-6)


def test_bad_settings_are_refused(tmp_path, scorer):
    with pytest.raises(ValueError, match="evaluate.bert_score.layers = 9"):
        BertScorer(layers=9)
    with pytest.raises(ValueError, match="evaluate.bert_score.model = .* cannot be loaded"):
        BertScorer(str(tmp_path))
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        scorer.score(["a"], ["a", "b"])


@pytest.fixture
def roberta(tmp_path, monkeypatch):
    """A model of random weights in a folder that has the name of a published one."""
    folder = tmp_path / "models" / "roberta-large"
    save_bart(folder)
    AutoTokenizer.from_pretrained(folder, model_max_length=62).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    config = RobertaConfig(vocab_size=320, num_hidden_layers=24, pad_token_id=1, initializer_range=0.5, **sizes)
    RobertaModel(config).save_pretrained(folder)
    monkeypatch.chdir(folder.parent)
    return "roberta-large"


@pytest.mark.parametrize("layers", [None, 5])
@pytest.mark.parametrize("rescale", [True, "auto"])
def test_rescaling_subtracts_the_librarys_baseline(roberta, layers, rescale):
    raw = BertScorer(roberta, layers).score(PREDICTIONS, REFERENCES)
    rescaled = BertScorer(roberta, layers, rescale=rescale).score([*PREDICTIONS, ""], [*REFERENCES, "x"])
    file = resources.files("bert_score") / "rescale_baseline" / "en" / "roberta-large.tsv"
    # The paper's layer, which is the library's choice, is 17.
    baseline = pd.read_csv(str(file)).set_index("LAYER").loc[layers or 17]
    for part, column in (("precision", "P"), ("recall", "R"), ("f1", "F")):
        expected = (getattr(raw, part) - baseline[column]) / (1 - baseline[column])
        np.testing.assert_allclose(getattr(rescaled, part)[:3], expected, atol=1e-9)
        assert getattr(rescaled, part)[3] == 0


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_rescaling_equals_the_librarys(roberta):
    from bert_score import BERTScorer as LibraryScorer

    library = LibraryScorer(roberta, lang="en", rescale_with_baseline=True, device="cpu", use_fast_tokenizer=True)
    expected = torch.stack(library.score(PREDICTIONS, REFERENCES)).numpy()
    found = BertScorer(roberta, rescale=True).score(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(np.stack([found.precision, found.recall, found.f1]), expected, atol=1e-4)


def test_a_model_without_a_baseline(roberta, scorer):
    with pytest.raises(ValueError, match="evaluate.bert_score.rescale = true: .* no baseline for 'minilm' at layer 6"):
        BertScorer(rescale=True)
    automatic = BertScorer(rescale="auto")
    assert automatic.baseline is None
    np.testing.assert_array_equal(automatic.score(PREDICTIONS, REFERENCES).f1, scorer.score(PREDICTIONS, REFERENCES).f1)
    with pytest.raises(ValueError, match="no baseline for './roberta-large'"):
        BertScorer(f"./{roberta}", rescale=True)


def test_columns_leave_out_rows_without_a_reference(scorer):
    adapter = BertScoreScorer()
    found = adapter.score({"explanation": [*PREDICTIONS[:2], ""], "reference": [REFERENCES[0], None, "x"]})
    assert tuple(found) == adapter.columns
    whole = scorer.score(PREDICTIONS[:1], REFERENCES[:1])
    for part in ("precision", "recall", "f1"):
        np.testing.assert_allclose(found[f"bert_score_{part}"], [getattr(whole, part)[0], np.nan, 0], atol=1e-6)
    assert adapter.facts() == {"model": "minilm", "layers": 6, "rescaled": False, "empty": 1}
