"""Groups of processes that train one LightGCN together, without Ray: for the tests of `xrec.graph.distributed`."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.ports import free_port
from xrec.graph.distributed import PartitionedTrainer
from xrec.graph.partition import Share, make_shares
from xrec.graph.state import TrainingState
from xrec.graph.training import run_epochs

STEP_SETTINGS = ("dim", "layers", "batch_size", "learning_rate", "weight_decay", "seed")


def run_group(workers: int, cases: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """What each worker ends with in each case, `result[case][rank]`; one group for all, as starting one takes seconds.

    A case has `train`, `val` (in the order of training), `users`, `items`, the settings of `train_lightgcn`,
    `stop_after` (epochs after which it is interrupted) and `resume` (a case before it that was interrupted).
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(cases, folder / "cases.pt")
    mp.spawn(_worker, args=(workers, free_port(), str(folder)), nprocs=workers)
    return [
        [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(workers)]
        for case in range(len(cases))
    ]


def _worker(rank: int, workers: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    for number, case in enumerate(torch.load(f"{folder}/cases.pt", weights_only=True)):
        torch.save(_run(case, rank, workers), f"{folder}/{number}-{rank}.pt")
    dist.destroy_process_group()


def _run(case: dict[str, Any], rank: int, workers: int) -> dict[str, Any]:
    graph = [case[name] for name in ("train", "val", "users", "items")]
    share = Share.from_bytes(next(make_shares(*graph, workers, only=rank)).to_bytes())
    trainer = PartitionedTrainer(share, **{name: case[name] for name in STEP_SETTINGS}, device="cpu")
    saved: list[TrainingState] = []

    def keep(state: TrainingState) -> None:
        tensors = {name: value.clone() for name, value in state.tensors.items()}
        saved.append(TrainingState(**{**vars(state), "tensors": tensors, "history": list(state.history)}))

    state = run_epochs(
        trainer,
        share.val,
        TrainingState(**case["resume"]) if case.get("resume") else None,
        max_epochs=case["max_epochs"],
        patience=case.get("patience", 10),
        evaluate_every=case.get("evaluate_every", 1),
        on_checkpoint=keep,
        checkpoint_seconds=0.0,
    )
    return {
        "layers": torch.stack([rows.clone() for rows in trainer.layers_of_best(state)]),
        "history": state.history,
        "best": (state.best_epoch, state.best_recall),
        "saved": [vars(one) for one in saved],
        "ranges": (list(share.ranges.users), list(share.ranges.items)),
        "halo": len(share.halo),
    }
