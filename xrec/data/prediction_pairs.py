"""Finds the pair of a workspace that each explanation made elsewhere is about; what cannot be placed is listed.

What files of such explanations look like is the business of `predictions.py`.
"""

from collections import Counter

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec import tables
from xrec.data.predictions import PredictionsError
from xrec.data.release import clean_text
from xrec.workspace import Workspace


def match_pairs(table: pa.Table, workspace: Workspace, source_hash: str = "") -> tuple[pa.Table, pa.Table]:
    """Find each row's pair: by its ids, else by its indices, else by its reference's text.

    A reference names a pair where it is the explanation of exactly one pair of the workspace, entities decoded and
    white space apart.

    Args:
        table: what `predictions.read_predictions` returned.
        workspace: with `preprocess` finished.
        source_hash: of the file; stands where a tuned model's predictions have the adapter's.

    Returns:
        The table `predictions`, of signal `true`; and the rows that were rejected, with `row` and `reason` before the
        file's own columns.

    Raises:
        PredictionsError: rows have neither ids nor indices nor references, or the workspace has no explanations to find
            references among.
        WorkspaceError: `preprocess` has not finished.
    """
    if "user_id" in table.column_names:
        found, reasons = _by_key(table, workspace, "user_id", "item_id")
    elif "user" in table.column_names:
        found, reasons = _by_key(table, workspace, "user", "item")
    elif "reference" in table.column_names:
        found, reasons = _by_reference(table, workspace)
    else:
        raise PredictionsError(
            "the predictions name no pairs: give the columns user_id and item_id, or user and item (the workspace's "
            "indices), or each row's reference text (a column `reference`, or a second file)"
        )
    _reject_unknown_and_repeated(found, reasons, workspace)
    kept = [row for row, reason in enumerate(reasons) if reason is None]
    texts = table["explanation"].take(pa.array(kept, pa.int64())).to_pylist()
    rows = [
        {"user": found[row][0], "item": found[row][1], "signal": "true", "explanation": text, "status": "ok"}
        | {"tokens": 0, "latency": 0.0, "adapter_hash": source_hash}
        for row, text in zip(kept, texts, strict=True)
    ]
    rejected = [row for row, reason in enumerate(reasons) if reason is not None]
    listed = {"row": pa.array(rejected, pa.int64()), "reason": pa.array([reasons[r] for r in rejected], pa.string())}
    own = table.take(pa.array(rejected, pa.int64()))
    return tables.from_rows("predictions", rows), pa.table(listed | {c: own[c] for c in own.column_names})


def split_of(predictions: pa.Table, workspace: Workspace) -> str:
    """The one split that all predicted pairs are of, or `all`."""
    numbers, splits = _known_pairs(workspace)
    places = np.searchsorted(numbers, _numbers(predictions["user"].to_numpy(), predictions["item"].to_numpy()))
    found = set(splits[places].tolist())
    return found.pop() if len(found) == 1 else "all"


def _by_key(table: pa.Table, workspace: Workspace, user: str, item: str) -> tuple[list, list]:
    users, items = workspace.read_table("preprocess", "users"), workspace.read_table("preprocess", "items_index")
    user_of = dict(zip(users[user].to_pylist(), users["user"].to_pylist(), strict=True))
    item_of = dict(zip(items[item].to_pylist(), items["item"].to_pylist(), strict=True))
    found = [
        (user_of.get(u), item_of.get(i)) for u, i in zip(table[user].to_pylist(), table[item].to_pylist(), strict=True)
    ]
    return found, [f"unknown {user}" if u is None else f"unknown {item}" if i is None else None for u, i in found]


def _by_reference(table: pa.Table, workspace: Workspace) -> tuple[list, list]:
    if not workspace.has_table(workspace.text_stage("explanations"), "explanations"):
        raise PredictionsError(
            f"{workspace}: it has no explanations to find the references among; give the columns user_id and item_id"
        )
    known = workspace.read_text_table("explanations")
    known = known.filter(pc.equal(known["status"], "ok"))
    pairs = list(zip(known["user"].to_pylist(), known["item"].to_pylist(), strict=True))
    texts = [clean_text(text) for text in known["explanation"].to_pylist()]
    counts, pair_of = Counter(texts), dict(zip(texts, pairs, strict=True))
    plain = [clean_text(text or "") for text in table["reference"].to_pylist()]
    return [pair_of.get(text) for text in plain], [_reference_reason(text, counts[text]) for text in plain]


def _reference_reason(text: str, pairs: int) -> str | None:
    if not text:
        return "no reference"
    return {0: "unknown reference", 1: None}.get(pairs, "ambiguous reference")


def _reject_unknown_and_repeated(found: list, reasons: list, workspace: Workspace) -> None:
    """Reject pairs of no split, which have no place in an evaluation, and all but the first row of a pair."""
    known = set(_known_pairs(workspace)[0].tolist())
    seen = set()
    for row, pair in enumerate(found):
        if reasons[row] is not None:
            continue
        if (pair[0] << 32 | pair[1]) not in known:
            reasons[row] = "pair of no split"
        elif pair in seen:
            reasons[row] = "repeated pair"
        seen.add(pair)


def _known_pairs(workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """`[p]` sorted pairs, in one number each, and the split of each; an explanation's before an interaction's."""
    parts = [workspace.read_table("preprocess", "interactions", ["user", "item", "split"])]
    if workspace.has_table(workspace.text_stage("explanations"), "explanations"):
        parts.insert(0, workspace.read_text_table("explanations").select(["user", "item", "split"]))
    whole = pa.concat_tables(parts)
    numbers, first = np.unique(_numbers(whole["user"].to_numpy(), whole["item"].to_numpy()), return_index=True)
    return numbers, whole["split"].to_numpy(zero_copy_only=False)[first]


def _numbers(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    return user.astype(np.int64) << 32 | item.astype(np.int64)
