"""What an engine of the stage `explain` takes of a cluster: the options of its actor, and placement groups.

An engine of one worker is its actor, and takes what the actor takes. Several workers get a placement group: one bundle
on one node, where vLLM starts them as the actor's children, or a bundle a worker, where vLLM starts them as Ray actors.
"""

import os
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_jobs.resources import ClusterShape, Demand, actor_options, engine_bundles, how_many_fit
from xrec.config import ExplainCompute


def actor_resources(compute: ExplainCompute) -> dict[str, Any]:
    """What Ray Data is told that an actor takes."""
    own = engine_bundles(compute)
    # Of several bundles the workers take everything; the actor only hands requests on.
    return actor_options(own[0] if len(own) == 1 else {})


def most_engines(compute: ExplainCompute, shape: ClusterShape) -> int:
    """How many engines there can be on the cluster, at most as many as the settings allow."""
    fitting = how_many_fit(Demand("explain: an engine", engine_bundles(compute), 1, ""), shape)
    return compute.actors[1] if fitting is None else min(compute.actors[1], fitting)


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
        group = placement_group(engine_bundles(self.compute), strategy=strategy)
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
