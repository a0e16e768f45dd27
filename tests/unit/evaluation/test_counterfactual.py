"""The effect of the signal on the text, against counts by hand."""

import numpy as np
import pyarrow as pa
import pytest

from xrec.evaluation.counterfactual import rouge_change, text_change

TEXTS = {
    "true": ["they love live jazz", "they love warm bread", "they love black tea", "the old terrace is sunny"],
    "off": ["they  love live jazz ", "they love live jazz", "they love black tea and more", ""],
    "shuffled": ["one two three four", "warm bread they love", "they love black tea", None],
}
FEATURES = ["live jazz", "warm bread", None, "live jazz"]


def joined(features: bool = True) -> pa.Table:
    """The rows of `TEXTS` in another order than they were written; None is a pair that has no text."""
    rows = [
        {"user": 7 - pair, "item": pair, "signal": signal, "explanation": text, "feature": FEATURES[pair]}
        for signal, texts in TEXTS.items()
        for pair, text in enumerate(texts)
        if text is not None
    ]
    schema = pa.schema(
        [("user", pa.int32()), ("item", pa.int32()), *((c, pa.string()) for c in ("signal", "explanation", "feature"))]
    )
    table = pa.Table.from_pylist(rows[::2] + rows[1::2], schema=schema)
    return table if features else table.drop_columns(["feature"])


def lcs(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    return 1 + lcs(a[1:], b[1:]) if a[0] == b[0] else max(lcs(a[1:], b), lcs(a, b[1:]))


def change(a: str, b: str) -> float:
    x, y = a.split(), b.split()
    return 1 - 2 * lcs(x, y) / (len(x) + len(y))


def test_measures_by_hand():
    found = text_change(joined(), resamples=200)
    assert sorted(found) == ["off", "shuffled"]
    off = {name: found["off"][name]["value"] for name in found["off"] if name != "pairs"}
    assert off == pytest.approx(
        {
            "unchanged": 1 / 4,
            "rouge_change": np.mean([change(a, b) for a, b in zip(TEXTS["true"], TEXTS["off"], strict=True)]),
            "words": np.mean([0, 0, 2, -5]),
            # The second names jazz instead of bread; no other of the four names a feature that was not there.
            "feature_changed": 1 / 4,
            # Of two that named the right one, one lost it; the last never named it, the third has none.
            "feature_lost": 1 / 2,
        }
    )
    assert found["off"]["pairs"] == 4
    assert found["off"]["feature_lost"]["rows"] == 2
    shuffled = found["shuffled"]
    assert (shuffled["pairs"], shuffled["unchanged"]["value"]) == (3, pytest.approx(1 / 3))
    assert shuffled["feature_lost"]["value"] == 1 / 2


def test_intervals_enclose_the_value_and_repeat():
    found = text_change(joined(), resamples=300, seed=4)
    assert found == text_change(joined(), resamples=300, seed=4)
    for measures in found.values():
        for name in ("unchanged", "rouge_change", "words"):
            assert measures[name]["low"] <= measures[name]["value"] <= measures[name]["high"]


def test_any_signal_is_a_control_and_data_without_features_have_no_measures_of_them():
    table = joined(features=False)
    signals = pa.array(["other_user" if s == "off" else s for s in table["signal"].to_pylist()])
    found = text_change(table.set_column(2, "signal", signals), resamples=50)
    assert sorted(found) == ["other_user", "shuffled"]
    assert set(found["other_user"]) == {"pairs", "unchanged", "rouge_change", "words"}


def test_without_a_true_signal_or_a_control_there_is_nothing_to_compare():
    table = joined()
    signals = np.array(table["signal"].to_pylist())
    assert text_change(table.filter(pa.array(signals != "true"))) == {}
    assert text_change(table.filter(pa.array(signals == "true"))) == {}


def test_rouge_change_against_a_recursion():
    words = ["jazz", "tea", "bread", "warm"]
    generator = np.random.default_rng(0)
    before, after = ([" ".join(generator.choice(words, generator.integers(1, 7))) for _ in range(40)] for _ in "ab")
    expected = [change(a, b) for a, b in zip(before, after, strict=True)]
    np.testing.assert_allclose(rouge_change(before, after), expected)
    assert rouge_change(["", "a"], [" ", ""]).tolist() == [0.0, 1.0]
