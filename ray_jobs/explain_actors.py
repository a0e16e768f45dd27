"""Explanations written by Ray Data actors: each holds an engine, blocks of requests go in, files of rows come out.

A vLLM engine's actor works on several blocks at once, so that its running batch never drains between them. The pool
grows while blocks wait, and shrinks as they end. What an explanation is, is `xrec.explainer`'s business; what an engine
takes of the cluster is that of `explain_placement.py`.
"""

import math
from asyncio import get_running_loop
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError

from ray_jobs.block_pool import run_blocks
from ray_jobs.explain_placement import (
    PlacementGroups,
    actor_resources,
    most_engines,
    remove_own_placement_group,
    threads,
)
from ray_jobs.resources import cluster_shape
from ray_jobs.runtime import innermost_cause, logs_of_workers
from xrec.blocks import part_name
from xrec.config import ExplainConfig
from xrec.explainer import requests
from xrec.explainer.engine_choice import vllm_arguments
from xrec.workspace import Workspace, WorkspaceError

_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}


class ExplainActor:
    """An `Explainer` as Ray Data's actors run it: blocks of requests in, files of predictions out.

    Args:
        workspace: with the stages preprocess, embed and tune finished.
        config: generation settings; the engine is named.
        vectors: the file of adapted vectors, as parts of its path in the workspace.
    """

    def __init__(self, workspace: Workspace, config: ExplainConfig, vectors: Sequence[str]):
        import torch

        from xrec.explainer.explain import Explainer
        from xrec.explainer.vectors import MappedVectors, shared_copy

        torch.set_num_threads(threads(config.compute))
        self.workspace, self.vectors = workspace, vectors
        self.in_group = config.compute.workers_per_engine > 1
        mapped = MappedVectors(shared_copy(workspace, vectors))
        device = "cuda" if config.compute.gpus_per_actor else "cpu"
        self.explainer = Explainer.from_workspace(workspace, config, device, mapped)
        self.pool = ThreadPoolExecutor(blocks_at_once(config))

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Explain one block; returns what became of it, as a row of lists of one."""
        result = await get_running_loop().run_in_executor(self.pool, self._write, int(batch["block"][0]))
        return {name: [value] for name, value in result.items()}

    def _write(self, block: int) -> dict[str, Any]:
        asked = requests.read_block(self.workspace, block)
        columns = {name: asked[name].to_numpy(zero_copy_only=False) for name in requests.KEY}
        rows = pa.table(self.explainer(columns))
        self.workspace.write_table(rows, requests.STAGE, requests.TABLE, part=part_name(block))
        return requests.block_result(block, rows) | {"actor": ray.get_runtime_context().get_actor_id()}

    def __del__(self) -> None:
        # Ray Data drops its actors' objects when they leave; after a kill, vLLM's processes end with their parent.
        from xrec.explainer.vectors import remove_shared_copy

        if hasattr(self, "explainer"):
            self.explainer.close()
            remove_shared_copy(self.workspace, self.vectors)
            if self.in_group:
                remove_own_placement_group()


def write_blocks(
    workspace: Workspace, config: ExplainConfig, vectors: Sequence[str], blocks: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Have the blocks explained; yields what became of each as it ends.

    Args:
        workspace: where the requests and the vectors are written.
        config: generation settings; the engine is named.
        vectors: the file of adapted vectors, as parts of its path in the workspace.
        blocks: those without a result.

    Yields:
        `requests.block_result`, of every block, and the id of its actor.

    Raises:
        WorkspaceError: an engine does not start.
    """
    compute = config.compute
    most = min(most_engines(compute, cluster_shape()), len(blocks))
    least, at_once = min(compute.actors[0], most), blocks_at_once(config)
    groups = PlacementGroups(compute)
    try:
        yield from run_blocks(
            ExplainActor,
            (workspace, config, vectors),
            [{"block": block} for block in blocks],
            (least, most),
            at_once,
            groups.actor_options if compute.workers_per_engine > 1 else None,
            **actor_resources(compute),
            **_environment(config),
        )
    except RayError as error:
        raise WorkspaceError(
            f"explain: an actor failed: {innermost_cause(error)}. What is written is kept: mend the cause and run the "
            f"same command again{logs_of_workers()}"
        ) from error
    finally:
        groups.remove()


def blocks_at_once(config: ExplainConfig) -> int:
    """Blocks that an actor works on together: enough to fill vLLM's running batch while the last rows of one end.

    With `rows_per_block` it bounds what a kill makes an actor explain again. Other engines do one batch after the
    other.
    """
    if config.engine != "vllm":
        return 1
    return math.ceil(vllm_arguments(config.compute)["max_num_seqs"] / config.compute.rows_per_block) + 1


def _environment(config: ExplainConfig) -> dict[str, Any]:
    """Environment variables of the engine's processes, as Ray takes them."""
    compute = config.compute
    if config.engine == "hf":
        return {}
    if config.engine != "vllm":
        return {"runtime_env": {"env_vars": compute.engine_environment}} if compute.engine_environment else {}
    own = {} if compute.gpus_per_actor else {"OMP_NUM_THREADS": f"{_threads_per_worker(config)}"}
    return {"runtime_env": {"env_vars": _ENVIRONMENT | own | compute.engine_environment}}


def _threads_per_worker(config: ExplainConfig) -> int:
    return max(1, threads(config.compute) // config.compute.workers_per_engine)
