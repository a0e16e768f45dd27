"""`comparison.json`: what a study found, put together from its systems' scores, predictions and texts.

The figures are the business of `comparison.py` and `sparsity.py`; how they are shown, of `comparison_report.py`.
"""

from collections.abc import Sequence
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.config import SparsityConfig, StudyConfig
from xrec.evaluation.comparison import (
    Scored,
    System,
    compare,
    load_scores,
    most_different,
    pair_numbers,
    shared_pairs,
)
from xrec.evaluation.metrics import METRICS
from xrec.evaluation.sparsity import frequency_groups, group_figures
from xrec.workspace import Workspace, WorkspaceError


def build_comparison(
    workspace: Workspace, stage: str, config: StudyConfig, systems: Sequence[System], split: str
) -> dict[str, Any]:
    """Everything that is shown of a study (docs/file-formats.md).

    Args:
        workspace: of the study.
        stage: `compare`, `ablate` or `sparsity`.
        config: its settings.
        systems: evaluated.
        split: of the pairs.

    Raises:
        WorkspaceError: the systems have no pair in common.
    """
    scored = load_scores(systems)
    zero_shot = {side: _zero_shot(workspace, side) for side in ("user", "item")}
    pairs = shared_pairs(scored)
    if config.zero_shot == "leave out":
        pairs = pairs[~np.isin(pairs >> 32, zero_shot["user"]) & ~np.isin(pairs & 0xFFFFFFFF, zero_shot["item"])]
    if not len(pairs):
        raise WorkspaceError(
            f"workspace {workspace}: {', '.join(s.name for s in scored)} have no pair in common; explain the same "
            "split with all of them"
        )
    return {
        "stage": stage,
        "reference": config.reference,
        "split": split,
        "resamples": config.bootstrap,
        "pairs": len(pairs),
        "zero_shot": config.zero_shot,
        "systems": compare(scored, config.reference, pairs, config.bootstrap),
        "examples": _examples(workspace, config, scored, pairs),
        "groups": _groups(workspace, config, scored, pairs, zero_shot["user"]),
    }


def flat_figures(comparison: dict[str, Any]) -> dict[str, float]:
    """The final figures as one flat object: `xrec/bert_score_f1`, `peter/bert_score_f1/difference` …"""
    flat: dict[str, float] = {"pairs": comparison["pairs"]}
    for system in comparison["systems"]:
        for key, found in system["metrics"].items():
            flat[f"{system['name']}/{key}"] = found["value"]
        for key, found in system.get("difference", {}).items():
            flat[f"{system['name']}/{key}/difference"] = found["value"]
    return flat


def _zero_shot(workspace: Workspace, side: str) -> np.ndarray:
    """Indices of the users or items that training has not seen."""
    table = workspace.read_table("preprocess", "users" if side == "user" else "items_index", [side, "zero_shot"])
    return table.filter(table["zero_shot"])[side].to_numpy()


def _groups(
    workspace: Workspace, config: StudyConfig, scored: Sequence[Scored], pairs: np.ndarray, zero_shot: np.ndarray
) -> list[dict[str, Any]] | None:
    if not isinstance(config, SparsityConfig):
        return None
    interactions = workspace.read_table("preprocess", "interactions", ["user", "split"])
    known = interactions.filter(pc.equal(interactions["split"], "train"))["user"].to_numpy()
    users = np.unique(pairs >> 32)
    counts = np.bincount(known, minlength=int(users.max()) + 1)[users]
    groups = frequency_groups(users, counts, np.isin(users, zero_shot), config.groups)
    return group_figures(scored, groups, pairs, config.bootstrap)


def _examples(
    workspace: Workspace, config: StudyConfig, scored: Sequence[Scored], pairs: np.ndarray
) -> list[dict[str, Any]]:
    by_column = {m.column: m for m in METRICS if m.column}
    column = config.metric
    if not any(column in s.scores for s in scored):
        column = next((c for c in by_column if all(c in s.scores for s in scored)), "")
    chosen = most_different(scored, config.reference, pairs, column, config.examples)
    if not len(chosen):
        return []
    wanted = pa.array(chosen)
    texts = {s.name: _texts(s.workspaces[0], "explain", "predictions", wanted) for s in scored}
    references = _texts(workspace, workspace.text_stage("explanations"), "explanations", wanted)
    users = _names(workspace, "users", "user", "user_id")
    titles = _names(workspace, "items_index", "item", "title")
    examples = []
    for number in chosen.tolist():
        user, item = number >> 32, number & 0xFFFFFFFF
        scores = {s.name: s.on(np.array([number]), column)[0, 0] for s in scored}
        examples.append(
            {
                "user": user,
                "item": item,
                "user_id": users[user],
                "title": titles[item],
                "reference": references.get(number),
                "metric": by_column[column].key,
                "texts": {name: found[number] for name, found in texts.items() if number in found},
                "scores": {name: float(score) for name, score in scores.items() if not np.isnan(score)},
            }
        )
    return examples


def _texts(workspace: Workspace, stage: str, table: str, wanted: pa.Array) -> dict[int, str]:
    """Pair number -> explanation, of the wanted pairs."""
    if not workspace.has_table(stage, table):
        return {}
    rows = workspace.read_table(stage, table)
    if "signal" in rows.column_names:
        rows = rows.filter(pc.equal(rows["signal"], "true"))
    numbers = pa.array(pair_numbers(rows["user"].to_numpy(), rows["item"].to_numpy()))
    chosen = pc.is_in(numbers, value_set=wanted)
    return dict(zip(numbers.filter(chosen).to_pylist(), rows["explanation"].filter(chosen).to_pylist(), strict=True))


def _names(workspace: Workspace, table: str, key: str, value: str) -> dict[int, str]:
    rows = workspace.read_table("preprocess", table, [key, value])
    return dict(zip(rows[key].to_pylist(), rows[value].to_pylist(), strict=True))
