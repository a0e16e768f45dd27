"""The tables in each format: complete, and safe against names with signs that the format reads."""

import io
import re

import pandas
import pytest

from tests.unit.evaluation.comparison_example import LEVELS, comparison
from xrec.evaluation.comparison_tables import html, latex, markdown

COLUMNS = ["bert_score_f1", "hallucination", "usr"]
NAMES = ["XRec", "w/o profiles", "Att2Seq", "NRT", "PETER", "PETER+", "PEPLER", "Item profile", "published_a&b"]
HOSTILE = r"a|b *c* <i>d</i> `e` $x_1$ \f {g} 50% #h ~i ^j [k](l)"


def _hostile():
    found = comparison()
    found["systems"][1] |= {"label": HOSTILE}
    found["systems"][2] |= {"label": HOSTILE}
    return found


def _unescaped(text):
    return re.sub(r"\\(.)", r"\1", text)


def test_markdown_has_a_row_a_system_and_a_column_a_metric():
    written = markdown(comparison(), COLUMNS, parts=("scores",))
    lines = [line for line in written.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(NAMES)
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in cells} == {4}
    assert [_unescaped(row[0].strip()) for row in cells[2:]] == NAMES
    assert cells[0][1].split() == ["BERTScore", "F1", "↑"]
    assert cells[2][1].strip().startswith("**0.4120** ± 0.1200<br>0.4058 to 0.4182<br>seeds ± ")
    assert cells[3][1].strip().startswith(r"<u>0.3910</u>\* ± 0.1200")


def test_markdown_escapes_names():
    written = markdown(_hostile(), ["usr"], parts=("scores",))
    row = written.splitlines()[5]
    cells = re.split(r"(?<!\\)\|", row)[1:-1]
    assert len(cells) == 2 and _unescaped(cells[0].strip()) == HOSTILE
    assert not re.search(r"(?<!\\)[*`<\[$]", cells[0])


def test_all_parts_of_a_comparison_with_groups():
    for write, count in ((markdown, r"^\*\*"), (latex, r"\\begin{tabular}"), (html, "<table>")):
        assert len(re.findall(count, write(comparison(groups=True)), flags=re.MULTILINE)) == 2 + 4
        assert len(re.findall(count, write(comparison()), flags=re.MULTILINE)) == 2
    with pytest.raises(ValueError, match="parts: 'rows' is unknown; use scores, differences, groups"):
        markdown(comparison(), parts=("rows",))


def test_latex_is_balanced_and_escaped():
    written = latex(_hostile())
    assert re.findall(r"\\(toprule|midrule|bottomrule)", written) == ["toprule", "midrule", "bottomrule"] * 2
    plain = re.sub(r"\\[{}]", "", written)
    assert plain.count("{") == plain.count("}")
    assert re.findall(r"\\begin{(\w+)", written) == ["table", "tabular"] * 2
    assert r"published\_a\&b & " in written and r"\textbackslash{}f \{g\} 50\%" in written
    body = "\n".join(re.findall(r"\\midrule(.*?)\\bottomrule", written, flags=re.DOTALL))
    rows = re.split(r"\\\\\n", body.strip())
    # Lines within a cell end with `\\` too, but not at the end of a line.
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows if row.strip()} == {len(LEVELS), len(LEVELS) - 2}
    assert not re.search(r"(?<!\\)[%#_](?!{)", body.replace("$_{", ""))
    assert r"$-$3.9100" in written and r"\textbf{0.4120}$_{\pm \textnormal{0.1200}}$" in written


def test_html_reads_back_as_the_same_figures():
    found = comparison()
    [table] = pandas.read_html(io.StringIO(html(found, COLUMNS, parts=("scores",))), index_col=0)
    assert list(table.index) == NAMES
    values = [float(re.match(r"[\d.]+", cell)[0]) for cell in table.iloc[:, 0]]
    assert values == [round(s["metrics"]["bert_score_f1"]["value"], 4) for s in found["systems"]]


def test_html_escapes_names_and_names_its_headers():
    written = html(_hostile())
    assert "<i>" not in written and "&lt;i&gt;d&lt;/i&gt;" in written and "published_a&amp;b" in written
    assert written.count('<th scope="row">') == 9 + 8
    assert "<th >" not in written
    assert 'class="gain"' in written and 'class="loss"' in written
