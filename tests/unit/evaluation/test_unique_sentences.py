"""The unique sentence ratio on hand-counted cases and on the published predictions."""

import pytest

from xrec.data.unpickling import load_plain
from xrec.evaluation.unique_sentences import unique_sentence_ratio


def test_hand_counted():
    assert unique_sentence_ratio(["a b", "a b", "a  b ", "c"]) == 2 / 4
    assert unique_sentence_ratio(["one"]) == 1.0


def test_case_and_punctuation_make_a_difference():
    assert unique_sentence_ratio(["Good food.", "good food.", "Good food"]) == 1.0


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="empty"):
        unique_sentence_ratio([])


@pytest.mark.parametrize("dataset", ["yelp", "amazon"])
def test_published_predictions_reach_the_papers_figure(release_data, dataset):
    """The paper reports a USR of 1.0000 on both datasets (arXiv 2406.02377, Table 2)."""
    texts = load_plain(release_data / "xrec-release" / dataset / "tst_pred.pkl")
    assert len(texts) == 3000
    assert round(unique_sentence_ratio(texts), 4) == 1.0
