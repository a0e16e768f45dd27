"""States of `embed` written by some workers and read by others, against slices of the whole tables."""

import pytest
import torch

from ray_jobs.embed_checkpoint import commit, latest_epoch, load_part, save_part
from xrec.graph.partition import Ranges
from xrec.graph.state import TrainingState
from xrec.workspace import Workspace, WorkspaceError

USERS, ITEMS = 11, 7
CUTS = {
    1: Ranges((0, 11), (0, 7)),
    2: Ranges((0, 4, 11), (0, 5, 7)),
    3: Ranges((0, 0, 6, 11), (0, 3, 3, 7)),
}


def whole_tables():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(USERS + ITEMS, 4, generator=generator) for name in ("embedding", "best", "exp_avg")}


def rows(table, ranges, rank):
    users, items = ranges.of(rank)
    return torch.cat([table[:USERS][users], table[USERS:][items]])


def write(workspace, ranges, epoch=3):
    tables, state = whole_tables(), None
    for rank in range(ranges.workers):
        tensors = {name: rows(table, ranges, rank) for name, table in tables.items()} | {"step": torch.tensor(42.0)}
        state = TrainingState(epoch, 1, 0.25, 2, [{"epoch": 0, "loss": 0.5}], tensors)
        save_part(workspace, state, rank)
    commit(workspace, state, ranges)


@pytest.mark.parametrize("writers", CUTS)
@pytest.mark.parametrize("readers", CUTS)
def test_any_number_reads_what_any_number_wrote(tmp_path, writers, readers):
    workspace = Workspace(tmp_path)
    assert load_part(workspace, CUTS[readers], 0) is None and latest_epoch(workspace) == 0
    write(workspace, CUTS[writers])
    for rank in range(readers):
        state = load_part(workspace, CUTS[readers], rank)
        assert state is not None
        assert (state.epoch, state.stale, state.best_recall, state.best_epoch) == (3, 1, 0.25, 2)
        assert state.history == [{"epoch": 0, "loss": 0.5}] and float(state.tensors.pop("step")) == 42
        for name, table in whole_tables().items():
            assert torch.equal(state.tensors.pop(name), rows(table, CUTS[readers], rank))
        assert not state.tensors
    assert latest_epoch(workspace) == 3


def test_works_on_an_object_store():
    workspace = Workspace("memory://embed-checkpoint")
    write(workspace, CUTS[2])
    state = load_part(workspace, CUTS[1], 0)
    assert state is not None and torch.equal(state.tensors["best"], whole_tables()["best"])
    workspace.fs.rm(workspace.root, recursive=True)


def test_a_state_that_not_all_have_written_does_not_count(tmp_path):
    workspace = Workspace(tmp_path)
    write(workspace, CUTS[2])
    save_part(workspace, TrainingState(epoch=4, tensors={"embedding": torch.zeros(9, 4)}), 0)
    assert latest_epoch(workspace) == 3
    state = load_part(workspace, CUTS[2], 0)
    assert state is not None and torch.equal(state.tensors["best"], rows(whole_tables()["best"], CUTS[2], 0))


def test_only_the_last_state_is_kept(tmp_path):
    workspace = Workspace(tmp_path)
    for epoch in (3, 5):
        write(workspace, CUTS[2], epoch)
    folders = {file.split("/")[0] for file in workspace.files("embed", "checkpoints")}
    assert folders == {"latest.json", "epoch_00000005"}


def test_refuses_the_state_of_another_graph(tmp_path):
    workspace = Workspace(tmp_path)
    write(workspace, CUTS[2])
    with pytest.raises(WorkspaceError, match=r"a state of 11 users and 7 items, the graph has 12 and 7.*--force"):
        load_part(workspace, Ranges((0, 12), (0, 7)), 0)
