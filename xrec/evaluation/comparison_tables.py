"""A comparison's tables as Markdown, LaTeX (booktabs) and HTML, written by pandas.

Names of systems are data: each format escapes them. What the tables say is in `comparison_cells.py`; a whole page with
them, with charts and examples, is the business of `comparison_report.py`.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pandas as pd
from markupsafe import escape

from xrec.evaluation.comparison_cells import Cell, Table, difference_table, group_tables, score_table

Part = Literal["scores", "differences", "groups"]
PARTS: tuple[Part, ...] = ("scores", "differences", "groups")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "\u00a0": "~",
        "±": r"$\pm$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "†": r"$^{\dagger}$",
    }
)


def markdown(comparison: dict[str, Any], columns: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> str:
    """The tables as GitHub's Markdown, each below its caption.

    Args:
        comparison: the content of `comparison.json`.
        columns: keys of the metrics shown; default: all that it has (of the groups: the main ones).
        parts: `scores`, `differences`, `groups`; one that the comparison lacks is left out.

    Raises:
        ValueError: a metric in `columns` that the comparison lacks, or an unknown part.
    """
    blocks = []
    for table in tables_of(comparison, columns, parts):
        frame = _frame(table, _markdown_cell, _escape_markdown)
        frame.insert(0, "System", [_escape_markdown(label) for _, label, _ in table.rows])
        align = ["left", *["right"] * len(table.columns)]
        written = frame.to_markdown(index=False, colalign=align, disable_numparse=True)
        blocks += [f"**{_escape_markdown(table.caption)}**", written, *map(_escape_markdown, table.notes)]
    return "\n\n".join(blocks) + "\n"


def latex(comparison: dict[str, Any], columns: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> str:
    r"""The tables as LaTeX, each a `table*` for `\usepackage{booktabs,graphicx}`; arguments as for `markdown`."""
    blocks = ["% \\usepackage{booktabs,graphicx}"]
    for table in tables_of(comparison, columns, parts):
        styler = _styled(table, _latex_cell, _escape_latex)
        written = styler.to_latex(hrules=True, column_format="l" + "r" * len(table.columns))
        caption = " ".join([f"{_escape_latex(table.caption)}.", *map(_escape_latex, table.notes)])
        blocks.append(
            "\\begin{table*}\n\\centering\n\\resizebox{\\linewidth}{!}{%\n"
            f"{written}}}\n\\caption{{{caption}}}\n\\end{{table*}}"
        )
    return "\n\n".join(blocks) + "\n"


def html(comparison: dict[str, Any], columns: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> str:
    """The tables as HTML, each in a box that scrolls; arguments as for `markdown`."""
    return "\n".join(html_table(table) for table in tables_of(comparison, columns, parts))


def html_table(table: Table) -> str:
    """One table with its caption and notes; the style sheet is the page's (`templates/report.css`)."""
    name = escape(table.caption)
    styler = _styled(table, _html_cell, lambda text: str(escape(text)))
    head, body, rest = styler.to_html(exclude_styles=True).partition("<tbody>")
    written = head.replace("<th >", '<th scope="col">') + body + rest.replace("<th >", '<th scope="row">')
    notes = "".join(f'<p class="quiet small">{escape(note)}</p>\n' for note in table.notes)
    box = f'<div class="scroll comparison" tabindex="0" role="region" aria-label="{name}">'
    return f"<h3>{name}</h3>\n{box}\n{written}</div>\n{notes}"


def tables_of(comparison: dict[str, Any], columns: Sequence[str] | None, parts: Sequence[Part] = PARTS) -> list[Table]:
    """The tables of the parts wanted, as far as the comparison has them; arguments as for `markdown`."""
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"parts: {unknown[0]!r} is unknown; use {', '.join(PARTS)}")
    found: list[Table] = []
    for part in parts:
        if part == "groups":
            found += group_tables(comparison, columns)
        else:
            table = score_table(comparison, columns) if part == "scores" else difference_table(comparison, columns)
            found += [table] if table else []
    return found


def _frame(table: Table, write: Callable[[Cell], str], escaped: Callable[[str], str]) -> pd.DataFrame:
    rows = [[write(cell) if cell else "" for cell in cells] for _, _, cells in table.rows]
    names = pd.Index([name for name, _, _ in table.rows])
    return pd.DataFrame(rows, index=names, columns=[escaped(c) for c in table.columns], dtype=object)


def _styled(table: Table, write: Callable[[Cell], str], escaped: Callable[[str], str]) -> Any:
    frame = _frame(table, write, escaped)
    frame.columns.name = "System"
    # Rows are told apart by the systems' names, since labels may repeat; pandas reads the labels as format strings.
    labels = [escaped(label).replace("{", "{{").replace("}", "}}") for _, label, _ in table.rows]
    return frame.style.relabel_index(labels, axis="index")


def _markdown_cell(cell: Cell) -> str:
    value = ("{}", "**{}**", "<u>{}</u>")[cell.rank].format(cell.value)
    first = value + cell.mark.replace("*", r"\*") + (f" ± {cell.spread}" if cell.spread else "")
    return "<br>".join([first, *cell.lines])


def _latex_cell(cell: Cell) -> str:
    value = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")[cell.rank].format(_latex_number(cell.value))
    mark = {"*": "$^{*}$"}.get(cell.mark, _escape_latex(cell.mark))
    spread = rf"$_{{\pm \textnormal{{{_latex_number(cell.spread)}}}}}$" if cell.spread else ""
    lines = [rf"{{\scriptsize {_latex_number(line)}}}" for line in cell.lines]
    stacked = r" \\ ".join([value + mark + spread, *lines])
    return rf"\shortstack[r]{{{stacked}}}"


def _html_cell(cell: Cell) -> str:
    value = ("{}", "<b>{}</b>", "<u>{}</u>")[cell.rank].format(escape(cell.value))
    if cell.kind:
        value = f'<span class="{cell.kind}">{value}</span>'
    mark = f"<sup>{cell.mark}</sup>" if cell.mark else ""
    spread = f' <span class="quiet small">± {escape(cell.spread)}</span>' if cell.spread else ""
    lines = "".join(f'<br><span class="quiet small">{escape(line)}</span>' for line in cell.lines)
    return value + mark + spread + lines


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|~&#$])", r"\\\1", " ".join(text.split()))


def _escape_latex(text: str) -> str:
    return text.translate(_LATEX)


def _latex_number(text: str) -> str:
    # A hyphen is no minus sign.
    return re.sub(r"-(?=\d)", "$-$", _escape_latex(text))
