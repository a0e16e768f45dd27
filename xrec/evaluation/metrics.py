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
        "feature/coverage",
        "Feature coverage",
        "higher",
        False,
        None,
        "Share of all features that the explanations name together (FCR).",
    ),
    Metric(
        "feature/overlap",
        "Feature overlap",
        "lower",
        False,
        None,
        "Features that two explanations share, the mean over all couples of them (DIV).",
    ),
    Metric(
        "gpt_score",
        "GPTScore",
        "higher",
        False,
        "gpt_score",
        "A language model's mark for closeness in meaning, 0 to 100.",
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
    Metric(
        "bart_score",
        "BARTScore",
        "higher",
        False,
        "bart_score",
        "Mean log-probability of the reference's tokens for a BART that reads the prediction.",
    ),
    Metric(
        "bleurt",
        "BLEURT",
        "higher",
        False,
        "bleurt",
        "A BERT's learned rating of the prediction against the reference.",
    ),
    Metric("rouge_1", "ROUGE-1", "higher", False, "rouge_1", "F1 of the words that prediction and reference share."),
    Metric("rouge_2", "ROUGE-2", "higher", False, "rouge_2", "F1 of the word pairs that they share."),
    Metric("rouge_l", "ROUGE-L", "higher", False, "rouge_l", "F1 of their longest common subsequence of words."),
    Metric("bleu", "BLEU", "higher", False, None, "Corpus BLEU-4, 0 to 100."),
    Metric("bleu_1", "BLEU-1", "higher", False, "bleu_1", "Precision of words, a sentence at a time, 0 to 100."),
    Metric("bleu_4", "BLEU-4", "higher", False, "bleu_4", "BLEU of a sentence, smoothed, 0 to 100."),
    Metric(
        "factuality_precision",
        "Statement precision",
        "higher",
        True,
        "factuality_precision",
        "Share of an explanation's statements that the reference supports.",
    ),
    Metric(
        "factuality_recall",
        "Statement recall",
        "higher",
        True,
        "factuality_recall",
        "Share of the reference's statements that the explanation supports.",
    ),
    Metric(
        "factuality_f1",
        "Statement F1",
        "higher",
        True,
        "factuality_f1",
        "Harmonic mean of statement precision and recall.",
    ),
    Metric(
        "hallucination",
        "Hallucination rate",
        "lower",
        True,
        "hallucination",
        "Share of an explanation's statements that neither profile nor any training review supports.",
    ),
    Metric(
        "prompt_copy",
        "Copies of the prompt",
        "lower",
        True,
        "prompt_copy",
        "Share of explanations that say nothing but what the prompt says: its instruction, labels, title and profiles.",
    ),
    Metric(
        "profile_copy",
        "Copies of title and profiles",
        "lower",
        True,
        "profile_copy",
        "Share of explanations that say nothing but what the title and profiles in the prompt say.",
    ),
    Metric("usr", "Unique sentence ratio", "higher", False, None, "Distinct explanations over all explanations."),
    Metric(
        "usr_user", "USR within a user", "higher", False, None, "The same within each user's explanations, averaged."
    ),
    Metric(
        "usr_item", "USR within an item", "higher", False, None, "The same within each item's explanations, averaged."
    ),
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
