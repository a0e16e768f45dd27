"""The report's charts: which figures of the summary and of the stages' logs are drawn, and how they read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xrec.evaluation.plots import Estimate, Line, interval_chart, line_chart

SIGNAL_LABELS = {"true": "own", "shuffled": "shuffled", "other_user": "another user's", "off": "none"}
# The same where the table or axis does not say what they are.
SIGNAL_VECTORS = {
    "true": "own vectors",
    "shuffled": "shuffled vectors",
    "other_user": "another user's vectors",
    "off": "no vectors",
}
_SIGNAL_SERIES = {"true": 0, "shuffled": 1, "other_user": 3, "off": 2}
_PROBES_SHOWN = 30
_HOW_TO_READ = "The dot is the mean over pairs, the bar its 95 % bootstrap interval."


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: what it shows.
        svg: the drawing.
        caption: how to read it.
    """

    title: str
    svg: str
    caption: str = ""


def signal_chart(
    summary: dict, key: str, title: str, x_label: str, references=(), limits=None, caption: str = _HOW_TO_READ
) -> Chart | None:
    """One metric under every signal; None where the summary lacks it."""
    found = {s: i for s, i in summary["metrics"].get(key, {}).items() if s in SIGNAL_LABELS and "low" in i}
    if not found:
        return None
    alternative = f"{title}: " + "; ".join(_spoken(SIGNAL_VECTORS[s], i) for s, i in found.items())
    svg = interval_chart(_by_signal(found), x_label, alternative, references, limits)
    return Chart(title, svg, caption)


def feature_charts(summary: dict) -> list[Chart]:
    """Feature accuracy and matching against chance, where the data has features."""
    if not summary.get("feature"):
        return []
    levels = summary["feature"]
    references = [("chance", levels["chance"]), ("most common", levels["majority"])]
    if levels.get("prompt_chance") is not None:
        references.append(("chance, given the prompt's texts", levels["prompt_chance"]))
    drawn = [
        signal_chart(
            summary, "feature/accuracy", "Names the right feature alone", "share of pairs", references, (0, 1)
        ),
        signal_chart(summary, "feature/matched", "Names the right feature at all", "share of pairs", (), (0, 1), ""),
    ]
    return [chart for chart in drawn if chart]


def likelihood_charts(likelihood: dict) -> list[Chart]:
    """Nats per token by signal, and the paired differences."""
    signals, difference = likelihood["signals"], likelihood["difference"]
    alternative = "Negative log-likelihood per token: " + "; ".join(
        _spoken(SIGNAL_VECTORS[s], i) for s, i in signals.items()
    )
    charts = [
        Chart(
            "Negative log-likelihood of the reference",
            interval_chart(_by_signal(signals), "nats per token (lower is better)", alternative),
            "The intervals overlap easily, because pairs differ far more than signals: the paired differences decide.",
        )
    ]
    if difference:
        alternative = "Paired difference to own vectors: " + "; ".join(
            _spoken(SIGNAL_VECTORS[s], i) for s, i in difference.items()
        )
        svg = interval_chart(
            _by_signal(difference), "more nats per token than own vectors", alternative, [("no effect", 0.0)]
        )
        charts.append(
            Chart(
                "What is lost without a pair's own vectors",
                svg,
                "Paired bootstrap over pairs. Right of the line, the pair's own vectors make its reference more "
                "probable.",
            )
        )
    return charts


def probe_charts(probes: dict[str, list[dict]]) -> list[Chart]:
    """Area under the curve of each word's linear probe, items and users."""
    charts = []
    for side, found in probes.items():
        if not found:
            continue
        rows = [
            Estimate(p["word"], p["auc"], p["auc"] - p["spread"], min(1.0, p["auc"] + p["spread"]))
            for p in found[:_PROBES_SHOWN]
        ]
        alternative = f"Linear probes of {side} embeddings: " + "; ".join(f"{p['word']} {p['auc']:.2f}" for p in found)
        svg = interval_chart(rows, "cross-validated AUC", alternative, [("chance", 0.5)])
        caption = f"Mean and standard deviation over the folds. Words of the {side}s' own texts, best known first."
        charts.append(Chart(f"What {side} embeddings know", svg, caption))
    return charts


def curve(
    title: str, log: Sequence[dict], lines: dict[str, tuple[str, ...]], x_label: str, y_label: str
) -> Chart | None:
    """Figures of a stage's log over its steps.

    Args:
        title: of the chart.
        log: the lines of `metrics.jsonl`.
        lines: label -> keys under which the figure may be logged; the first that occurs is drawn.
        x_label: what a step is.
        y_label: what is measured.

    Returns:
        The chart, or None where the log has none of the figures.
    """
    drawn = []
    for label, keys in lines.items():
        points = next((p for p in (_points(log, key) for key in keys) if p), [])
        if points:
            drawn.append(Line(label, [x for x, _ in points], [y for _, y in points]))
    if not drawn:
        return None
    alternative = f"{title}: " + "; ".join(f"{d.label} from {d.y[0]:.4g} to {d.y[-1]:.4g}" for d in drawn)
    return Chart(title, line_chart(drawn, x_label, y_label, alternative))


def training_charts(logs: dict[str, list[dict]]) -> dict[str, list[Chart]]:
    """The training curves of each stage that has a log."""
    embed, tune = (logs.get(s, []) for s in ("embed", "tune"))
    likelihood = {
        "own": ("val/nll_per_token",),
        "shuffled": ("val/nll_per_token/shuffled",),
    }
    charts = {
        "embed": [
            curve("LightGCN: training loss", embed, {"loss": ("train/loss", "loss")}, "epoch", "BPR loss"),
            curve("LightGCN: validation Recall@20", embed, {"Recall@20": ("val/recall@20",)}, "epoch", "Recall@20"),
        ],
        "tune": [
            curve("Adapter: training loss", tune, {"loss": ("train/loss", "loss")}, "step", "nats per token"),
            curve("Adapter: validation", tune, likelihood, "step", "nats per token"),
            curve(
                "Adapter: learning rate",
                tune,
                {"learning rate": ("train/learning_rate", "learning_rate")},
                "step",
                "learning rate",
            ),
        ],
    }
    return {stage: [c for c in found if c] for stage, found in charts.items() if any(found)}


def _points(log: Iterable[dict], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in log if line.get(key) is not None]


def _by_signal(found: dict) -> list[Estimate]:
    return [
        Estimate(SIGNAL_LABELS[s], found[s]["value"], found[s]["low"], found[s]["high"], _SIGNAL_SERIES[s])
        for s in SIGNAL_LABELS
        if s in found
    ]


def _spoken(label: str, interval: dict) -> str:
    return f"{label} {interval['value']:.4g}, interval {interval['low']:.4g} to {interval['high']:.4g}"
