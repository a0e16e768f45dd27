"""Predictions made elsewhere, as a variant of a workspace: another system's texts, or the published ones.

They take the place of the stage `explain`, so that `evaluate` scores them as it does our own, and `compare` sets them
beside other systems.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xrec.data.prediction_pairs import match_pairs, split_of
from xrec.data.predictions import PredictionsError, read_predictions
from xrec.workspace import Workspace

REJECTED = "rejected.parquet"
SEED = 0


def run(
    workspace: Workspace, path: str, name: str, references: str | None = None, force: bool = False
) -> tuple[Workspace, str]:
    """Write `variants/<name>/0/explain`; rows of unknown pairs are listed in its `rejected.parquet`.

    Args:
        workspace: with `preprocess` finished.
        path: a file that `xrec.data.predictions` reads.
        name: of the system.
        references: a file of the rows' references, for predictions that name no pairs.
        force: replace what is there under this name.

    Returns:
        The variant, and the summary line.

    Raises:
        PredictionsError: the file is unreadable, or none of its rows is about a pair of the workspace.
        ValueError: the name is no name of a folder.
        WorkspaceError: other predictions are there under this name, or `preprocess` has not finished.
    """
    table = read_predictions(path, references)
    external = {"predictions": _hash(path)} | ({"references": _hash(references)} if references else {})
    predictions, rejected = match_pairs(table, workspace, external["predictions"])
    counts = Counter(rejected["reason"].to_pylist())
    if not len(predictions):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
        raise PredictionsError(
            f"{path}: none of its {len(table):,} rows is about a pair of {workspace} ({reasons}); check that both are "
            "of the same data"
        )
    variant = workspace.variant(name, SEED, ("explain", "evaluate"))
    stage = variant.stage(
        "explain",
        {"system": name, "split": split_of(predictions, workspace), "seed": SEED},
        inputs=["preprocess", *variant.text_inputs()],
        external=external,
        force=force,
    )
    summary = _summary(path, len(table), counts)
    if stage.done:
        return variant, f"predictions: already there ({summary} in {variant}/explain)"
    stage.write_table("predictions", predictions)
    if len(rejected):
        _write_rejected(variant, rejected)
    figures = {"predictions": float(len(predictions)), "rejected": float(len(rejected))}
    stage.finish(figures | {f"rejected/{reason}": float(count) for reason, count in counts.items()})
    return variant, f"predictions: {summary} -> {variant}/explain"


def _write_rejected(variant: Workspace, rejected: pa.Table) -> None:
    with variant.open_new("explain", REJECTED) as file:
        pq.write_table(rejected, file, compression="zstd")


def _hash(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summary(path: str, rows: int, counts: Counter) -> str:
    kept = rows - counts.total()
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    return f"{kept:,} of {rows:,} rows of {os.path.basename(path)}" + (f", rejected: {rejected}" if rejected else "")
