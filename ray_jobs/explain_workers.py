"""What Ray Data runs on its workers for the stage `explain`: the actor that explains, and the writer of its rows.

They stand apart from `explain.py` so that a worker that only writes imports no model code. Ray's side alone: the work
is `xrec.explainer.explain.Explainer`'s.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink

from xrec import tables
from xrec.config import ExplainConfig
from xrec.workspace import Workspace

# The column by which Ray Data knows a row again; not part of the table that is written.
ID = "id"


class ExplainActor:
    """An `Explainer` as Ray Data's actors run it: loaded once, mapped over batches of requests.

    Args:
        workspace: with the stages preprocess, embed and tune finished.
        config: generation settings.
        device: `cpu` or `cuda`.
        threads: CPU threads.
    """

    def __init__(self, workspace: Workspace, config: ExplainConfig, device: str, threads: int):
        import torch

        from xrec.explainer.explain import Explainer

        torch.set_num_threads(threads)
        self.explainer = Explainer.from_workspace(workspace, config, device)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        requests = {name: batch[name] for name in ("user", "item", "signal")}
        rows = tables.validate("predictions", pa.table(self.explainer(requests)))
        return rows.append_column(ID, pa.array(batch[ID], pa.string()))


class PredictionFiles(BlockBasedFileDatasink):
    """Writes each block as one file of the table `predictions`; the id has served its purpose by then."""

    def write_block_to_file(self, block: BlockAccessor, file: pa.NativeFile) -> None:
        table = block.to_arrow().drop_columns([ID])
        pq.write_table(tables.validate("predictions", table), file, compression="zstd")
