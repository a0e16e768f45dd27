"""The effect of the collaborative signal on the text: the same pairs explained with the true signal and with another.

Metrics under each signal are in the summary as for any predictions; here the texts themselves are compared, without a
reference. A text that does not change shows that what the explanation says came from elsewhere: the profiles, or the
model's habits. Nothing here says that a change is for the better.
"""

from collections.abc import Sequence
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rouge_score.rouge_scorer import RougeScorer

from xrec.evaluation.bootstrap import mean_intervals
from xrec.evaluation.feature_matching import FeatureMatcher
from xrec.evaluation.length import word_counts

TRUE = "true"
_PAIR = ["user", "item"]
MEANING = {
    "unchanged": "Share of explanations that stay the same, but for white space.",
    "rouge_change": "1 - ROUGE-L F1 of the two texts: 0 for the same words in the same order, 1 for no word in common.",
    "feature_changed": "Share of explanations that name other features than before.",
    "feature_lost": "Share of the explanations that named their pair's true feature which no longer do.",
    "words": "Mean number of words more (or, negative, fewer) than under the true signal.",
}


def text_change(scores: pa.Table, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """How explanations change when the signal does.

    Args:
        scores: `user`, `item`, `signal`, `explanation` and, where the data has features, `feature` (the pair's true
            one, or null); no pair twice under a signal.
        resamples: bootstrap resamples of each interval.
        seed: of the bootstrap.

    Returns:
        Signal other than `true` -> `{"pairs": n, <measure>: {"value", "low", "high", "rows", "meaning"}}`, over the
        pairs that have a text under both signals. Measures are those of `MEANING`; the two of features where some pair
        has a feature. Signals without such a pair are left out.
    """
    columns = [*_PAIR, "explanation", *(["feature"] if "feature" in scores.column_names else [])]
    texts = {
        signal: scores.filter(pc.equal(scores["signal"], signal)).select(columns)
        for signal in sorted(pc.unique(scores["signal"]).to_pylist())
    }
    if TRUE not in texts:
        return {}
    found = {}
    for signal, control in texts.items():
        joined = texts[TRUE].join(
            control.select([*_PAIR, "explanation"]), keys=_PAIR, join_type="inner", right_suffix="_control"
        )
        if signal != TRUE and len(joined):
            joined = joined.sort_by([("user", "ascending"), ("item", "ascending")])
            found[signal] = _change(joined, resamples, seed)
    return found


def _change(joined: pa.Table, resamples: int, seed: int) -> dict[str, Any]:
    before, after = joined["explanation"].to_pylist(), joined["explanation_control"].to_pylist()
    measures = {
        "unchanged": np.array([a.split() == b.split() for a, b in zip(before, after, strict=True)], np.float64),
        "rouge_change": rouge_change(before, after),
        "words": (word_counts(after) - word_counts(before)).astype(np.float64),
    }
    if "feature" in joined.column_names and joined["feature"].null_count < len(joined):
        measures |= _feature_change(before, after, joined["feature"].to_pylist())
    measured = {name: values for name, values in measures.items() if not np.isnan(values).all()}
    intervals = mean_intervals(np.stack(list(measured.values()), axis=1), resamples, seed)
    return {"pairs": len(joined)} | {
        name: {
            "value": interval.value,
            "low": interval.low,
            "high": interval.high,
            "rows": interval.rows,
            "meaning": MEANING[name],
        }
        for name, interval in zip(measured, intervals, strict=True)
    }


def rouge_change(before: Sequence[str], after: Sequence[str]) -> np.ndarray:
    """`[n]` float64: 1 - ROUGE-L F1 (Lin 2004) of each couple of texts; 0 for two texts without a word."""
    scorer = RougeScorer(["rougeL"])
    found = np.zeros(len(before))
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        # Equal texts are common, and need no computation; the library gives two empty ones a score of 0.
        if old.split() != new.split():
            found[row] = 1 - scorer.score(old, new)["rougeL"].fmeasure
    return found


def _feature_change(before: list[str], after: list[str], features: list[str | None]) -> dict[str, np.ndarray]:
    matcher = FeatureMatcher({feature for feature in features if feature})
    changed = [matcher.named(old) != matcher.named(new) for old, new in zip(before, after, strict=True)]
    (_, had), (_, has) = matcher.score(before, features), matcher.score(after, features)
    # NaN where there was nothing to lose.
    lost = np.where(had == 1, 1 - has, np.nan)
    return {"feature_changed": np.array(changed, np.float64), "feature_lost": lost}
