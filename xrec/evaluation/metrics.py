"""The names, meaning and direction of every metric: what scores columns, summaries and reports have in common."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: its name in `scores`, `summary.json` and, behind the split, `metrics.json`.
        label: what a report calls it.
        better: `higher`, `lower`, or `none` where neither is better by itself.
        percent: whether a report shows it as a percentage.
        column: the column of `scores` of which it is the mean; None for a metric of the whole set of texts.
        meaning: one line for readers.
    """

    key: str
    label: str
    better: str
    percent: bool
    column: str | None
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "feature/accuracy",
        "Feature accuracy",
        "higher",
        True,
        "feature_accuracy",
        "Share of explanations that name the pair's true feature and no other.",
    ),
    Metric(
        "feature/matched",
        "Feature matched",
        "higher",
        True,
        "feature_matched",
        "Share of explanations that name the pair's true feature.",
    ),
    Metric(
        "bert_score_f1",
        "BERTScore F1",
        "higher",
        False,
        "bert_score_f1",
        "Closeness of prediction and reference in the vectors of a language model.",
    ),
    Metric(
        "bert_score_precision",
        "BERTScore precision",
        "higher",
        False,
        "bert_score_precision",
        "How much of the prediction the reference supports.",
    ),
    Metric(
        "bert_score_recall",
        "BERTScore recall",
        "higher",
        False,
        "bert_score_recall",
        "How much of the reference the prediction covers.",
    ),
    Metric("usr", "Unique sentence ratio", "higher", False, None, "Distinct explanations over all explanations."),
    Metric("distinct_1", "Distinct-1", "higher", False, None, "Distinct words over all words."),
    Metric("distinct_2", "Distinct-2", "higher", False, None, "Distinct word pairs over all word pairs."),
    Metric("words", "Words", "none", False, "words", "Mean length of an explanation."),
    Metric("over_50_words", "Over 50 words", "lower", True, "over_50_words", "Share of explanations over the limit."),
    Metric(
        "cut_off",
        "Cut off",
        "lower",
        True,
        "cut_off",
        "Share of explanations that hit the token limit inside a sentence.",
    ),
)
