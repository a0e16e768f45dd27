"""From predictions and references to `scores`: one row a prediction, one column a metric.

The metrics themselves are in the files named after them; what the columns add up to is `summary.py`'s business.
"""

import time
from collections.abc import Callable, Iterator, Mapping

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.evaluation.bleu import corpus_bleu
from xrec.evaluation.distinct import distinct_n
from xrec.evaluation.feature_matching import FeatureMatcher
from xrec.evaluation.likelihood import Likelihood
from xrec.evaluation.scorers import Scorer
from xrec.evaluation.unique_sentences import grouped_unique_sentence_ratio, unique_sentence_ratio

KEY = ["user", "item", "signal"]
_ROWS_AT_ONCE = 1024


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


def score_rows(
    joined: pa.Table, scorers: Mapping[str, Scorer], progress: Callable[[int], None] | None = None
) -> tuple[pa.Table, dict[str, float]]:
    """Every per-example metric of joined predictions.

    Args:
        joined: what `join_references` returned, or some of its rows.
        scorers: family -> scorer (`scorer_choice.open_scorers`).
        progress: called with the number of rows done after each batch.

    Returns:
        The `scores` table (a metric that a row lacks is null), and the seconds that each family took.
    """
    tables, seconds = [joined.select(KEY).slice(0, 0)], dict.fromkeys(scorers, 0.0)
    for batch in _slices(joined):
        rows = {name: batch[name].to_pylist() for name in batch.column_names}
        scores = batch.select(KEY)
        for family, scorer in scorers.items():
            started = time.perf_counter()
            for name, values in scorer.score(rows).items():
                scores = scores.append_column(name, pa.array(values, pa.float64(), from_pandas=True))
            seconds[family] += time.perf_counter() - started
        tables.append(scores)
        if progress is not None:
            progress(len(batch))
    return pa.concat_tables(tables, promote_options="default"), seconds


def corpus_metrics(joined: pa.Table, matcher: FeatureMatcher | None = None) -> dict[str, dict[str, float]]:
    """Metrics of a whole set of texts, by signal: diversity, corpus BLEU, and the spread of features.

    Args:
        joined: what `join_references` returned.
        matcher: for the features; None leaves them out.
    """
    found = {}
    for signal in pc.unique(joined["signal"]).to_pylist():
        rows = joined.filter(pc.equal(joined["signal"], signal))
        texts = rows["explanation"].to_pylist()
        found[signal] = {
            "usr": unique_sentence_ratio(texts),
            "usr_user": grouped_unique_sentence_ratio(texts, rows["user"].to_pylist()),
            "usr_item": grouped_unique_sentence_ratio(texts, rows["item"].to_pylist()),
            "distinct_1": distinct_n(texts, 1),
            "distinct_2": distinct_n(texts, 2),
        }
        referenced = rows.filter(pc.is_valid(rows["reference"]))
        if len(referenced):
            texts, references = referenced["explanation"].to_pylist(), referenced["reference"].to_pylist()
            found[signal]["bleu"] = corpus_bleu(texts, references)
        if matcher is not None and len(rows) > 1:
            spread = matcher.spread(rows["explanation"].to_pylist())
            found[signal] |= {"feature/coverage": spread.coverage, "feature/overlap": spread.overlap}
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


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, _ROWS_AT_ONCE) for start in range(0, len(table), _ROWS_AT_ONCE))


def _ascending(columns: list[str]) -> list[tuple[str, str]]:
    return [(column, "ascending") for column in columns]
