"""What the scores add up to: every figure and interval that the report and `metrics.json` show.

A difference between signals is signed so that positive means "the pair's own embeddings did better".
"""

from dataclasses import asdict

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.evaluation.bootstrap import mean_intervals
from xrec.evaluation.feature_matching import FeatureMatcher, chance_levels, named_guess
from xrec.evaluation.likelihood import Likelihood
from xrec.evaluation.metrics import METRICS
from xrec.evaluation.prompt_texts import PromptTexts


def metric_summary(scores: pa.Table, corpus: dict[str, dict[str, float]], resamples: int, seed: int) -> dict:
    """Every text metric under every signal, and its paired difference to the signal `true`.

    Args:
        scores: per-example scores (`scoring.score_predictions`).
        corpus: signal -> metrics of the whole set of texts.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        metric key -> {signal -> {value, low, high, rows, std}, "difference": {other signal -> {value, low, high, rows,
        p}}}. Metrics of the whole set have a value and rows only.
    """
    columns = [m for m in METRICS if m.column in scores.column_names]
    summary: dict = {m.key: {"difference": {}} for m in METRICS if m in columns or m.column is None}
    tables = {s: scores.filter(pc.equal(scores["signal"], s)) for s in corpus}
    for signal, table in tables.items():
        for key, value in corpus[signal].items():
            summary[key][signal] = {"value": value, "rows": len(table)}
        values = _columns(table, [m.column for m in columns if m.column])
        for metric, interval in _intervals(columns, values, resamples, seed):
            summary[metric.key][signal] = interval
        for metric in (m for m in columns if "low" in summary[m.key].get(signal, {})):
            # Over examples, as the paper's Table 1 has it.
            own = summary[metric.key][signal]
            own["std"] = float(np.nanstd(_columns(table, [metric.column])))
            del own["p"]  # of a mean being 0, which nobody asks
    for signal in (s for s in tables if s != "true" and "true" in tables):
        rows, own_rows = _shared_rows(tables[signal], tables["true"])
        names = [m.column for m in columns if m.column]
        gain = _columns(tables["true"], names)[own_rows] - _columns(tables[signal], names)[rows]
        gain *= np.array([-1.0 if m.better == "lower" else 1.0 for m in columns])
        for metric, interval in _intervals(columns, gain, resamples, seed):
            summary[metric.key]["difference"][signal] = interval
    return {key: found for key, found in summary.items() if len(found) > 1}


def likelihood_summary(likelihood: Likelihood, resamples: int, seed: int) -> dict:
    """Nats per token and perplexity of the references under each signal, and the paired differences.

    Returns:
        {"rows", "tokens", "signals": {signal -> {value, low, high, rows, perplexity}},
        "difference": {other signal -> {value, low, high, rows}}}.
    """
    by_signal, differences = likelihood.intervals(resamples, seed)
    return {
        "rows": len(likelihood.tokens),
        "tokens": int(likelihood.tokens.sum()),
        "signals": {s: asdict(i) | {"perplexity": float(np.exp(i.value))} for s, i in by_signal.items()},
        "difference": {s: asdict(i) for s, i in differences.items()},
    }


def feature_summary(joined: pa.Table, vocabulary: list[str], prompts: PromptTexts | None = None) -> dict:
    """Chance levels of feature matching over the pairs explained with their own embeddings.

    Args:
        joined: what `scoring.join_references` returned.
        vocabulary: the distinct features.
        prompts: what the prompts say, where that is known.

    Returns:
        {"vocabulary", "rows", "majority", "chance", "prompt_chance", "prompt_named", "prompt_fields"}: the last three
        say how well one guesses from the texts that the prompt quotes (`named_guess`), and which these are; null and
        empty where it quotes none.
    """
    own = joined.filter(pc.equal(joined["signal"], "true"))
    features = own["feature"].to_pylist()
    levels = chance_levels(features)
    fields = prompts.fields if prompts else []
    guess = None
    if prompts and fields:
        pairs = zip(own["user"].to_pylist(), own["item"].to_pylist(), strict=True)
        guess = named_guess(FeatureMatcher(vocabulary), [prompts.quoted(*pair) for pair in pairs], features)
    return {
        "vocabulary": vocabulary,
        "rows": sum(f is not None for f in features),
        "majority": levels.majority,
        "chance": levels.independent,
        "prompt_chance": guess.accuracy if guess else None,
        "prompt_named": guess.named if guess else None,
        "prompt_fields": fields,
    }


def flat_metrics(summary: dict) -> dict[str, float]:
    """The final figures as one flat object: `test/usr`, `test/nll_per_token/shuffled`, `test/nll_difference/low` …"""
    split, flat = summary["split"], {}
    for signal, counts in summary["counts"].items():
        flat[_key(split, "predictions", signal)] = counts["ok"]
        flat[_key(split, "failed", signal)] = counts["failed"]
    for key, found in summary["metrics"].items():
        for signal, interval in ((s, i) for s, i in found.items() if s != "difference"):
            flat[_key(split, key, signal)] = interval["value"]
        _flatten_differences(flat, f"{split}/{key}_difference", found["difference"])
    if summary.get("feature"):
        for level in ("majority", "chance", "prompt_chance"):
            if summary["feature"].get(level) is not None:
                flat[f"{split}/feature/{level}"] = summary["feature"][level]
    if summary.get("likelihood"):
        for signal, interval in summary["likelihood"]["signals"].items():
            flat[_key(split, "nll_per_token", signal)] = interval["value"]
            flat[_key(split, "perplexity", signal)] = interval["perplexity"]
        _flatten_differences(flat, f"{split}/nll_difference", summary["likelihood"]["difference"])
    for side, probes in (summary.get("probe") or {}).items():
        if probes:
            flat[f"probe/{side}/mean_auc"] = float(np.mean([p["auc"] for p in probes]))
    return flat


def _flatten_differences(flat: dict[str, float], name: str, differences: dict) -> None:
    for signal, interval in differences.items():
        # The shuffled control is the main one: its figures carry no suffix.
        key = name if signal == "shuffled" else f"{name}/{signal}"
        flat.update({key: interval["value"], f"{key}/low": interval["low"], f"{key}/high": interval["high"]})


def _key(split: str, metric: str, signal: str) -> str:
    return f"{split}/{metric}" if signal == "true" else f"{split}/{metric}/{signal}"


def _intervals(metrics: list, values: np.ndarray, resamples: int, seed: int) -> list[tuple]:
    """The metrics that at least one row has, with their intervals as dictionaries."""
    present = [k for k in range(values.shape[1]) if not np.isnan(values[:, k]).all()] if len(values) else []
    if not present:
        return []
    found = mean_intervals(values[:, present], resamples, seed)
    return [(metrics[k], asdict(interval)) for k, interval in zip(present, found, strict=True)]


def _columns(table: pa.Table, names: list) -> np.ndarray:
    """`[rows, names]` float64, null as NaN."""
    if not names:
        return np.zeros((len(table), 0))
    return np.stack([table[n].to_numpy(zero_copy_only=False).astype(np.float64) for n in names], axis=1)


def _shared_rows(left: pa.Table, right: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both tables that are about the same pairs, in the same order."""
    keys = [t["user"].to_numpy().astype(np.int64) << 32 | t["item"].to_numpy().astype(np.int64) for t in (left, right)]
    _, rows, other_rows = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return rows, other_rows
