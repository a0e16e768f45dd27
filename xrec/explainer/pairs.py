"""The texts around a (user, item) pair: what the prompt quotes and what tuning learns to write."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from xrec.workspace import Workspace, WorkspaceError


@dataclass
class PairTexts:
    """Titles and profiles by index.

    Attributes:
        titles: one an item, in index order.
        user_profiles, item_profiles: only nodes whose profile was written without error.
    """

    titles: list[str]
    user_profiles: dict[int, str] = field(default_factory=dict)
    item_profiles: dict[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, workspace: Workspace) -> "PairTexts":
        """Read a workspace's titles, and its profiles where it has them."""
        titles = workspace.read_table("preprocess", "items_index").sort_by("item")["title"].to_pylist()
        return cls(titles, _profiles(workspace, "user"), _profiles(workspace, "item"))


def explained_pairs(workspace: Workspace, split: str) -> pa.Table:
    """The pairs of a split whose ground-truth explanation was written without error.

    Returns:
        Columns user, item, explanation, feature (null where unknown), sorted by user and item.

    Raises:
        WorkspaceError: the workspace has no explanations at all, or none in this split.
    """
    table = workspace.read_text_table("explanations")
    chosen = table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["status"], "ok")))
    if not len(chosen):
        counts = {c["values"]: c["counts"] for c in pc.value_counts(table["split"]).to_pylist()}
        raise WorkspaceError(
            f"workspace {workspace.uri}: no explained pair is in the split {split!r} (there are: {counts or 'none'}); "
            "choose another split, or give preprocess.explained_ratios a share for it"
        )
    return chosen.select(["user", "item", "explanation", "feature"]).sort_by(
        [("user", "ascending"), ("item", "ascending")]
    )


def _profiles(workspace: Workspace, side: str) -> dict[int, str]:
    name = f"{side}_profiles"
    if not workspace.has_table(workspace.text_stage(name), name):
        return {}
    table = workspace.read_text_table(name)
    table = table.filter(pc.equal(table["status"], "ok"))
    return dict(zip(table[side].to_pylist(), table["profile"].to_pylist(), strict=True))
