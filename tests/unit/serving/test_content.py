"""What goes into a snapshot: the stages' texts and interactions, and stages that do not fit each other refused."""

import pyarrow as pa
import pytest
import torch

from tests.snapshot_changes import publish_next
from tests.tiny_world import DIM, ITEMS, USERS, finish_tune, make_workspace
from xrec import tables
from xrec.embeddings import Embeddings
from xrec.serving.publishing import publish
from xrec.serving.snapshot import Snapshot
from xrec.workspace import WorkspaceError

PROVENANCE = {"model": "m", "prompt_hash": "p", "tokens_in": 0, "tokens_out": 0}


def rewrite(workspace, name, change) -> None:
    """Write a table of preprocess anew, and what depends on it as if it had been made from that."""
    contents = {
        table: workspace.read_table("preprocess", table)
        for table in ("users", "items_index", "interactions", "explanations", "user_profiles", "item_profiles")
    }
    contents[name] = change(contents[name])
    stage = workspace.stage("preprocess", {}, force=True)
    for table, content in contents.items():
        if content is not None:
            stage.write_table(table, content)
    stage.finish({})
    finish_tune(workspace, force=True)


def test_the_order_of_rows_in_the_tables_does_not_matter(workspace, snapshot):
    for name in ("users", "items_index", "user_profiles", "interactions"):
        rewrite(workspace, name, lambda table: table.take(list(range(len(table)))[::-1]))
    again = Snapshot.open(workspace, publish(workspace))
    assert again.id != snapshot.id
    for file in ("users.arrow", "items.arrow", "arrays.safetensors"):
        assert again.manifest["files"][file] == snapshot.manifest["files"][file]


def test_profiles_come_from_the_stage_that_wrote_them_without_error(workspace):
    rows = [
        {"user": u, "profile": f"new {u}", "status": "failed" if u == 3 else "ok", "error": None, **PROVENANCE}
        for u in (9, 3, 5)
    ]
    stage = workspace.stage("profile", {}, inputs=["preprocess"])
    stage.write_table("user_profiles", tables.from_rows("user_profiles", rows))
    with pytest.raises(WorkspaceError, match="'profile' has not finished"):
        publish(workspace)
    stage.finish({})
    snapshot = Snapshot.open(workspace, publish(workspace))
    assert {u: snapshot.users.profile(u) for u in range(USERS) if snapshot.users.profile(u)} == {5: "new 5", 9: "new 9"}
    assert snapshot.items.profile(2) == workspace.read_table("preprocess", "item_profiles")["profile"][2].as_py()
    assert "profile" in snapshot.manifest["stages"]


def test_a_workspace_without_profiles(workspace):
    rewrite(workspace, "user_profiles", lambda table: None)
    snapshot = Snapshot.open(workspace, publish(workspace))
    assert snapshot.users.table["profile"].null_count == USERS and snapshot.items.table["profile"].null_count == 0


def test_a_backbone_known_by_name_is_not_copied(workspace):
    named = publish_next(workspace, backbone="org/model", backbone_hash="f" * 64, injection="output")
    snapshot = Snapshot.open(workspace, named)
    assert snapshot.manifest["backbone"] == {"name": "org/model", "hash": "f" * 64}
    assert snapshot.backbone_path == "org/model" and not (snapshot.folder / "backbone").exists()
    assert "backbone" not in snapshot.manifest["stages"]


def test_a_backbone_that_the_adapter_was_not_tuned_for_is_refused(workspace):
    with pytest.raises(WorkspaceError, match="the adapter was tuned for the backbone .* with hash ffffffffffff…"):
        publish_next(workspace, backbone_hash="f" * 64)


def test_an_adapter_for_other_embeddings_is_refused(workspace):
    with pytest.raises(
        WorkspaceError, match=f"reads embeddings of width {DIM + 1}, those of the stage 'embed' have {DIM}"
    ):
        publish_next(workspace, embedding_dim=DIM + 1)


def test_embeddings_of_other_users_are_refused(tmp_path):
    workspace = make_workspace(tmp_path / "w")
    stage = workspace.stage("embed", {}, force=True)
    Embeddings(torch.randn(3, USERS + 1, DIM), torch.randn(3, ITEMS, DIM)).save(
        workspace.path("embed", "embeddings.safetensors")
    )
    stage.finish({})
    finish_tune(workspace)
    with pytest.raises(WorkspaceError, match=f"'users' has {USERS} rows and 'embed' has {USERS + 1} embeddings"):
        publish(workspace)


@pytest.mark.parametrize(
    ("name", "column", "values", "message"),
    [
        (
            "user_profiles",
            "user",
            [*range(USERS - 1), USERS],
            f"user {USERS} has a profile, but there are {USERS} users",
        ),
        ("users", "user_id", ["same"] * USERS, "the id 'same' occurs twice"),
        ("users", "zero_shot", [True] + [False] * (USERS - 1), "zero-shot ones last"),
        ("users", "user", [*range(1, USERS + 1)], "must count the same users from 0"),
    ],
)
def test_tables_that_do_not_fit_are_refused(workspace, name, column, values, message):
    before = Snapshot.open(workspace).id
    rewrite(workspace, name, lambda table: table.set_column(table.column_names.index(column), column, [values]))
    with pytest.raises(WorkspaceError, match=message):
        publish(workspace)
    assert Snapshot.open(workspace).id == before


def test_an_interaction_with_an_unknown_item_is_refused(workspace):
    row = tables.from_rows("interactions", [{"user": 0, "item": ITEMS, "split": "fold_in"}])
    rewrite(workspace, "interactions", lambda table: pa.concat_tables([table, row]))
    with pytest.raises(WorkspaceError, match="an interaction names a user or item without an embedding"):
        publish(workspace)
