"""`report.html`: one self-contained page about a run, for a wide screen or a phone, light or dark.

It asks nothing of the network: styles and charts are inline. What it says is in `report_headline.py`,
`report_signals.py` (the first table), `report_content.py` and, of trust in its figures, `report_trust.py`; what it
draws in `report_charts.py`. Studies beside it are drawn by `comparison_report.py`.
"""

from typing import Any

from xrec.config import ReportConfig
from xrec.evaluation import report_charts as charts
from xrec.evaluation import report_content as content
from xrec.evaluation import report_trust as trust
from xrec.evaluation.comparison_report import comparison_content
from xrec.evaluation.page import render_page
from xrec.evaluation.report_headline import headline
from xrec.evaluation.report_signals import shown_signals, signal_rows
from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace, WorkspaceError

_MISSING = {
    "preprocess": "Counts, the split and the leak check come with `xrec preprocess`.",
    "embed": "The LightGCN curves come with `xrec embed`.",
    "tune": "The adapter's tuning curves come with `xrec tune`.",
    "explain": "Examples come with `xrec explain`.",
    "evaluate": "Metrics, the causal check, the likelihood and the probes come with `xrec evaluate`.",
}
COMPARISON = "comparison.json"


def render_report(workspace: Workspace, config: ReportConfig) -> str:
    """The page, from whatever stages have finished; it says which stage would bring what is absent.

    Raises:
        WorkspaceError: no stage has finished.
    """
    finished = content.finished_stages(workspace)
    if not finished:
        raise WorkspaceError(
            f"workspace {workspace.uri}: no stage has finished; run `xrec sample` or `xrec import` first"
        )
    summary = workspace.read_json("evaluate", "summary.json") if "evaluate" in finished else None
    return render_page(
        "report.html.j2",
        title=config.title,
        headline=headline(workspace, summary),
        training=charts.training_charts({s: read_metrics(workspace, s) for s in ("embed", "tune")}),
        examples=content.examples(workspace, config.examples) if "explain" in finished else [],
        signals=charts.SIGNAL_LABELS,
        vectors=charts.SIGNAL_VECTORS,
        stages=content.stage_rows(workspace),
        missing=[sentence for stage, sentence in _MISSING.items() if stage not in finished],
        comparisons=[
            comparison_content(workspace.read_json(stage, COMPARISON))
            for stage in content.STUDIES
            if stage in finished and workspace.exists(stage, COMPARISON)
        ],
        **_evaluation(summary),
    )


def _evaluation(summary: dict | None) -> dict[str, Any]:
    """The parts that `evaluate` brings; empty parts are left out by the template."""
    if summary is None:
        figures: dict[str, Any] = dict.fromkeys(("summary", "feature", "likelihood", "probe"))
        tables = ("metrics", "scorers", "causal", "changes", "leaks", "controls", "first_rows", "first_columns")
        tables += ("causal_charts", "likelihood_charts", "probe_charts")
        return figures | dict.fromkeys(tables, ())
    drawn = charts.feature_charts(summary)
    closeness = charts.signal_chart(summary, "bert_score_f1", "BERTScore F1", "F1 (higher is better)")
    controls = content.controls_of(summary)
    return {
        "summary": summary,
        "feature": summary.get("feature"),
        "likelihood": summary.get("likelihood"),
        "probe": summary.get("probe"),
        "first_columns": shown_signals(summary),
        "first_rows": signal_rows(summary),
        "metrics": content.metric_rows(summary),
        "scorers": trust.scorer_rows(summary),
        "causal": content.causal_rows(summary),
        "changes": trust.change_rows(summary, controls),
        "leaks": trust.leak_rows(summary),
        "controls": controls,
        "causal_charts": drawn + [closeness] * (closeness is not None and bool(controls)),
        "likelihood_charts": charts.likelihood_charts(summary["likelihood"]) if summary.get("likelihood") else [],
        "probe_charts": charts.probe_charts(summary.get("probe") or {}),
    }
