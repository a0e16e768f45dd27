"""What a metric over single predictions looks like to the stage `evaluate`, and which one each name of the settings is.

The metrics themselves are in the files named after them, and know nothing of tables. Metrics of a whole set of texts
are `scoring.py`'s business.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

# Columns of a batch of predictions: user, item, signal, explanation, finish_reason, and reference and feature, which
# are None where a pair has none.
Rows = dict[str, list[Any]]


class Scorer(Protocol):
    """One family of metrics, over single predictions.

    Attributes:
        columns: what it adds to the table `scores`.
    """

    columns: tuple[str, ...]

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        """The columns, each `[n]` float64, NaN where a metric does not apply to a row."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the figures depend on (a model's name, its layer), and counts of this process (`calls`, `unscored`)."""
        ...


def on_referenced(rows: Rows, columns: Sequence[str], score: Any) -> dict[str, np.ndarray]:
    """Score the rows that have a reference; NaN elsewhere.

    Args:
        rows: n predictions.
        columns: names of the result.
        score: a function of predictions and references that returns name -> `[rows with a reference]`.
    """
    found = {name: np.full(len(rows["explanation"]), np.nan) for name in columns}
    chosen = [n for n, reference in enumerate(rows["reference"]) if reference is not None]
    if chosen:
        scored = score([rows["explanation"][n] for n in chosen], [rows["reference"][n] for n in chosen])
        for name in columns:
            found[name][chosen] = scored[name]
    return found
