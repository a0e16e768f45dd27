"""`report.html`: one self-contained page about a run, for a wide screen or a phone, light or dark.

It asks nothing of the network: styles and charts are inline. Every text of the data is escaped (jinja2's autoescape);
only the charts, drawn here, are markup. What it says is in `report_content.py`, what it draws in `report_charts.py`.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from xrec.config import ReportConfig
from xrec.evaluation import report_charts as charts
from xrec.evaluation import report_content as content
from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace, WorkspaceError

_MISSING = {
    "preprocess": "Counts, the split and the leak check come with `xrec preprocess`.",
    "embed": "The LightGCN curves come with `xrec embed`.",
    "tune": "The adapter's tuning curves come with `xrec tune`.",
    "explain": "Examples come with `xrec explain`.",
    "evaluate": "Metrics, the causal check, the likelihood and the probes come with `xrec evaluate`.",
}


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
    environment = Environment(
        loader=PackageLoader("xrec.evaluation"),
        autoescape=select_autoescape(default_for_string=True, default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = _drawing
    return environment.get_template("report.html.j2").render(
        title=config.title,
        headline=content.headline(workspace, summary),
        training=charts.training_charts({s: read_metrics(workspace, s) for s in ("embed", "backbone", "tune")}),
        examples=content.examples(workspace, config.examples) if "explain" in finished else [],
        signals=charts.SIGNAL_LABELS,
        stages=content.stage_rows(workspace),
        missing=[sentence for stage, sentence in _MISSING.items() if stage not in finished],
        **_evaluation(summary),
    )


def _evaluation(summary: dict | None) -> dict[str, Any]:
    """The parts that `evaluate` brings; empty parts are left out by the template."""
    if summary is None:
        figures: dict[str, Any] = dict.fromkeys(("summary", "bert_score", "feature", "likelihood", "probe"))
        tables = ("metrics", "causal", "controls", "causal_charts", "likelihood_charts", "probe_charts")
        return figures | dict.fromkeys(tables, ())
    drawn = charts.feature_charts(summary)
    closeness = charts.signal_chart(summary, "bert_score_f1", "BERTScore F1", "F1 (higher is better)")
    controls = [s for s in ("shuffled", "off") if s in summary["counts"]]
    return {
        "summary": summary,
        "bert_score": content.summary_model(summary),
        "feature": summary.get("feature"),
        "likelihood": summary.get("likelihood"),
        "probe": summary.get("probe"),
        "metrics": content.metric_rows(summary),
        "causal": content.causal_rows(summary),
        "controls": controls,
        "causal_charts": drawn + [closeness] * (closeness is not None and bool(controls)),
        "likelihood_charts": charts.likelihood_charts(summary["likelihood"]) if summary.get("likelihood") else [],
        "probe_charts": charts.probe_charts(summary.get("probe") or {}),
    }


def _drawing(chart: charts.Chart) -> Markup:
    """A chart's SVG is ours, and its texts are escaped already."""
    return Markup(chart.svg)
