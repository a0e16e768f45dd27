"""What an engine of the stage `explain` takes of a cluster: resources, placement groups, and what is refused.

An engine of one worker is its actor, and takes what the actor takes. Several workers get a placement group: one bundle
on one node, where vLLM starts them as the actor's children, or a bundle a worker, where vLLM starts them as Ray actors.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from xrec.config import ExplainCompute
from xrec.workspace import WorkspaceError

Resources = Mapping[str, float]


def bundles(compute: ExplainCompute) -> list[dict[str, float]]:
    """Logical resources of one engine: of its one bundle, or of each worker's."""
    workers = compute.workers_per_engine if compute.placement == "PACK" else 1
    cpus = compute.cpus_per_actor if compute.workers_per_engine == 1 else max(1.0, compute.cpus_per_actor)
    bundle = {"CPU": cpus / workers, "GPU": compute.gpus_per_actor / workers}
    return [{name: amount for name, amount in bundle.items() if amount}] * workers


def actor_resources(compute: ExplainCompute) -> dict[str, Any]:
    """What Ray Data is told that an actor takes."""
    own = bundles(compute)
    # Of several bundles the workers take everything; the actor only hands requests on.
    first: Resources = own[0] if len(own) == 1 else {}
    return {"num_cpus": first.get("CPU", 0), "num_gpus": first.get("GPU") or None}


def cpus_needed(compute: ExplainCompute) -> int:
    """Logical CPUs without which the batch would wait for ever."""
    return math.ceil(compute.actors[0] * _total(compute, "CPU"))


def engines_that_fit(compute: ExplainCompute, cluster: Resources, nodes: Sequence[Resources]) -> int:
    """How many engines there can be, after refusing what Ray would wait for without end.

    Args:
        compute: the settings.
        cluster: what the cluster has, or may grow to.
        nodes: what each node has; empty where the cluster may grow by nodes of other sizes.

    Raises:
        WorkspaceError: the least number of engines does not fit.
    """
    least, own = compute.actors[0], bundles(compute)
    for name in ("CPU", "GPU"):
        needed, has = least * _total(compute, name), cluster.get(name, 0.0)
        if has + 1e-6 < needed:
            raise WorkspaceError(
                f"explain needs {name} {needed:g} ({least} actors), but Ray has {has:g}; lower explain.compute.actors "
                "or cpus_per_actor / gpus_per_actor, or give Ray more"
            )
        if nodes and all(node.get(name, 0.0) + 1e-6 < own[0].get(name, 0.0) for node in nodes):
            raise WorkspaceError(
                f"explain needs a node with {name} {own[0][name]:g} for an engine, but no node of the cluster has so "
                "much; lower explain.compute.cpus_per_actor or the workers of an engine, or set "
                "explain.compute.placement to PACK, which spreads them over nodes (GPUs only)"
            )
    fitting = [int(cluster[name] / total + 1e-6) for name in ("CPU", "GPU") if (total := _total(compute, name))]
    return min([compute.actors[1], *fitting])


def node_sizes() -> list[Resources]:
    """What each node of the connected cluster has; empty where an autoscaler may bring nodes of other sizes."""
    from ray._private.state import state

    if state.get_max_resources_from_cluster_config():
        return []
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def threads(compute: ExplainCompute) -> int:
    """CPU threads of an actor, or of all workers of its engine together."""
    return compute.threads or max(1, (os.cpu_count() or 1) // compute.actors[1])


class PlacementGroups:
    """Makes a placement group for each actor that Ray Data starts.

    Args:
        compute: whose engines have several workers.
    """

    def __init__(self, compute: ExplainCompute):
        self.compute = compute
        self.made: list[PlacementGroup] = []

    def actor_options(self) -> dict[str, Any]:
        """What Ray Data adds to the options of one new actor."""
        strategy = "PACK" if self.compute.placement == "PACK" else "STRICT_PACK"
        group = placement_group(bundles(self.compute), strategy=strategy)
        self.made.append(group)
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        }

    def remove(self) -> None:
        """Give back what is reserved; a group that is gone already stays so."""
        for group in self.made:
            remove_placement_group(group)


def remove_own_placement_group() -> None:
    """Give back the group of the actor that calls this as it leaves, since the pool may shrink long before the end."""
    own = ray.util.get_current_placement_group()
    if own is not None:
        remove_placement_group(own)


def _total(compute: ExplainCompute, name: str) -> float:
    return sum(bundle.get(name, 0.0) for bundle in bundles(compute))
