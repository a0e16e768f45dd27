"""Where `embed` keeps the state of a training that goes on: one file a worker and table, readable at any number.

`checkpoints/latest.json` is written last and names the state that counts: its epoch, who had which rows, and all that
is not a table. Tables lie in `checkpoints/epoch_<n>/<worker>/<table>.safetensors`, the worker's users before its items.
"""

from itertools import pairwise

import torch
from safetensors import safe_open
from safetensors.torch import save

from xrec.graph.partition import Ranges
from xrec.graph.state import TrainingState
from xrec.workspace import Workspace, WorkspaceError

CHECKPOINTS = "checkpoints"
_LATEST = "latest.json"
_TABLE = "table"


def save_part(workspace: Workspace, state: TrainingState, rank: int) -> None:
    """Write one worker's tables of a state; it counts once every worker has done so and one has called `commit`."""
    for name, tensor in state.tensors.items():
        # One table at a time, because each is held twice while it is written.
        workspace.write_bytes(save({_TABLE: tensor.cpu().contiguous()}), "embed", *_table_path(state.epoch, rank, name))


def commit(workspace: Workspace, state: TrainingState, ranges: Ranges) -> None:
    """Make a state that all workers have written the one to go on from, and remove the one before."""
    scalars = {name: value for name, value in vars(state).items() if name != "tensors"}
    facts = {"state": scalars, "tables": sorted(state.tensors), "users": ranges.users, "items": ranges.items}
    workspace.write_json(facts, "embed", CHECKPOINTS, _LATEST)
    current = _folder(state.epoch)
    folders = {file.split("/")[0] for file in workspace.files("embed", CHECKPOINTS) if file.startswith("epoch_")}
    for folder in folders - {current}:
        workspace.remove("embed", CHECKPOINTS, folder)


def latest_epoch(workspace: Workspace) -> int:
    """The epoch that a run would go on with; 0 where there is nothing to go on from."""
    if not workspace.exists("embed", CHECKPOINTS, _LATEST):
        return 0
    return int(workspace.read_json("embed", CHECKPOINTS, _LATEST)["state"]["epoch"])


def load_part(workspace: Workspace, ranges: Ranges, rank: int) -> TrainingState | None:
    """The last state's rows of one worker, whoever wrote them; None where there is no state.

    Args:
        ranges: the present cuts, which may be others than those of the run that wrote.
        rank: the worker that reads.

    Raises:
        WorkspaceError: the state is of another graph.
    """
    if not workspace.exists("embed", CHECKPOINTS, _LATEST):
        return None
    facts = workspace.read_json("embed", CHECKPOINTS, _LATEST)
    written = Ranges(tuple(facts["users"]), tuple(facts["items"]))
    if (written.users[-1], written.items[-1]) != (ranges.users[-1], ranges.items[-1]):
        raise WorkspaceError(
            f"{workspace.path('embed', CHECKPOINTS)} holds a state of {written.users[-1]} users and "
            f"{written.items[-1]} items, the graph has {ranges.users[-1]} and {ranges.items[-1]}; run the stage with "
            "--force to start anew"
        )
    epoch = facts["state"]["epoch"]
    tensors = {name: _load_table(workspace, epoch, name, written, ranges, rank) for name in facts["tables"]}
    return TrainingState(**facts["state"], tensors=tensors)


def _load_table(
    workspace: Workspace, epoch: int, name: str, written: Ranges, ranges: Ranges, rank: int
) -> torch.Tensor:
    sides: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for writer, (users, items) in enumerate(zip(pairwise(written.users), pairwise(written.items), strict=True)):
        wanted = [_overlap(bounds, own) for bounds, own in zip((users, items), ranges.of(rank), strict=True)]
        if all(low >= high for low, high in wanted):
            continue
        with workspace.local("embed", *_table_path(epoch, writer, name)) as path, safe_open(path, "pt") as file:
            rows = file.get_slice(_TABLE)
            if not rows.get_shape():  # Adam's step is no table: everybody's is the same
                return file.get_tensor(_TABLE)
            for side, (low, high), first in zip(sides, wanted, (0, users[1] - users[0]), strict=True):
                if low < high:
                    side.append(rows[first + low : first + high])
    return torch.cat([*sides[0], *sides[1]])


def _overlap(written: tuple[int, int], own: slice) -> tuple[int, int]:
    """The own rows among a writer's, counted from its first."""
    return max(written[0], own.start) - written[0], min(written[1], own.stop) - written[0]


def _folder(epoch: int) -> str:
    return f"epoch_{epoch:08d}"


def _table_path(epoch: int, rank: int, name: str) -> tuple[str, ...]:
    return CHECKPOINTS, _folder(epoch), str(rank), f"{name}.safetensors"
