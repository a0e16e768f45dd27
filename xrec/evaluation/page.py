"""Self-contained HTML pages from the templates beside this file: autoescaped, with inline styles and charts.

Every text of the data is escaped; only what is drawn or tabulated here (`Chart.svg`, `Markup`) is markup.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from xrec.evaluation.report_charts import Chart


def render_page(template: str, **content: Any) -> str:
    """The page that a template of `templates/` makes of its content."""
    environment = Environment(
        loader=PackageLoader("xrec.evaluation"),
        autoescape=select_autoescape(default_for_string=True, default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = _drawing
    return environment.get_template(template).render(**content)


def _drawing(chart: Chart) -> Markup:
    """A chart's SVG is ours, and its texts are escaped already."""
    return Markup(chart.svg)
