"""From predictions and references to `scores`: one row a prediction, one column a metric.

The metrics themselves are in the files named after them; what the columns add up to is `summary.py`'s business.
"""

from collections.abc import Iterator

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.evaluation.bert_score import BertScorer
from xrec.evaluation.distinct import distinct_n
from xrec.evaluation.feature_matching import FeatureMatcher
from xrec.evaluation.length import cut_off, over_limit, word_counts
from xrec.evaluation.likelihood import Likelihood
from xrec.evaluation.unique_sentences import unique_sentence_ratio

KEY = ["user", "item", "signal"]
_ROWS_AT_ONCE = 4096


def join_references(predictions: pa.Table, explanations: pa.Table | None) -> pa.Table:
    """The predictions that succeeded, each beside its reference.

    Args:
        predictions: table `predictions`; failed rows are left out.
        explanations: table `explanations`, or None where the data has no ground truth; failed rows are left out.

    Returns:
        user, item, signal, explanation, finish_reason, reference (null where the pair has none), feature (may be null);
        ordered by key.
    """
    rows = predictions.filter(pc.equal(predictions["status"], "ok"))
    rows = rows.select([*KEY, "explanation", "finish_reason"])
    if explanations is None:
        nothing = pa.nulls(len(rows), pa.string())
        return rows.append_column("reference", nothing).append_column("feature", nothing).sort_by(_ascending(KEY))
    truth = explanations.filter(pc.equal(explanations["status"], "ok"))
    truth = truth.select(["user", "item", "explanation", "feature"])
    truth = truth.rename_columns(["user", "item", "reference", "feature"])
    return rows.join(truth, ["user", "item"], join_type="left outer").sort_by(_ascending(KEY)).combine_chunks()


def score_predictions(
    joined: pa.Table, scorer: BertScorer | None = None, matcher: FeatureMatcher | None = None, progress=None
) -> tuple[pa.Table, int]:
    """Every per-example metric of every joined prediction, a batch of rows at a time.

    Args:
        joined: what `join_references` returned.
        scorer: for BERTScore; None leaves it out.
        matcher: for feature matching; None leaves it out.
        progress: called with the number of rows done after each batch.

    Returns:
        The `scores` table (a metric that a row lacks is null), and the number of rows with a reference whose
        prediction or reference is empty, which have BERTScore 0.
    """
    tables, empty = [joined.select(KEY).slice(0, 0)], 0
    for batch in _slices(joined):
        texts, references = batch["explanation"].to_pylist(), batch["reference"].to_pylist()
        columns = {
            "words": word_counts(texts).astype(np.float64),
            "over_50_words": over_limit(texts),
            "cut_off": cut_off(batch["finish_reason"].to_pylist()),
        }
        if matcher is not None:
            features = batch["feature"].to_pylist()
            columns["feature_accuracy"], columns["feature_matched"] = matcher.score(texts, features)
        if scorer is not None:
            scored, empties = _bert_score(scorer, texts, references)
            columns.update(scored)
            empty += empties
        scores = batch.select(KEY)
        for name, values in columns.items():
            scores = scores.append_column(name, pa.array(values, pa.float64(), from_pandas=True))
        tables.append(scores)
        if progress is not None:
            progress(len(batch))
    return pa.concat_tables(tables, promote_options="default"), empty


def corpus_metrics(joined: pa.Table) -> dict[str, dict[str, float]]:
    """Metrics of a whole set of texts, by signal: unique sentence ratio, Distinct-1, Distinct-2."""
    found = {}
    for signal in pc.unique(joined["signal"]).to_pylist():
        texts = joined.filter(pc.equal(joined["signal"], signal))["explanation"].to_pylist()
        found[signal] = {
            "usr": unique_sentence_ratio(texts),
            "distinct_1": distinct_n(texts, 1),
            "distinct_2": distinct_n(texts, 2),
        }
    return found


def add_likelihood(scores: pa.Table, pairs: list[tuple[int, int]], likelihood: Likelihood) -> pa.Table:
    """Add `nll` (nats, summed) and `nll_tokens` to `scores`; a pair without a prediction gets a row of its own."""
    users, items = (np.array([pair[k] for pair in pairs], dtype=np.int32) for k in (0, 1))
    parts = [
        pa.table(
            {
                "user": users,
                "item": items,
                "signal": pa.array([signal] * len(pairs), pa.string()),
                "nll": nll,
                "nll_tokens": likelihood.tokens.astype(np.int64),
            }
        )
        for signal, nll in likelihood.nll.items()
    ]
    return scores.join(pa.concat_tables(parts), KEY, join_type="full outer").sort_by(_ascending(KEY)).combine_chunks()


def _bert_score(scorer: BertScorer, texts: list[str], references: list[str | None]) -> tuple[dict, int]:
    columns = {f"bert_score_{part}": np.full(len(texts), np.nan) for part in ("precision", "recall", "f1")}
    rows = [row for row, reference in enumerate(references) if reference is not None]
    found = scorer.score([texts[r] for r in rows], [references[r] or "" for r in rows])
    for part in ("precision", "recall", "f1"):
        columns[f"bert_score_{part}"][rows] = getattr(found, part)
    return columns, found.empty


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, _ROWS_AT_ONCE) for start in range(0, len(table), _ROWS_AT_ONCE))


def _ascending(columns: list[str]) -> list[tuple[str, str]]:
    return [(column, "ascending") for column in columns]
