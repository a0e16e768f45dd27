"""What a stage waits for: the actors, workers and tasks that no node has room for yet, said on stderr.

It is Ray's control service that is asked, which knows without a dashboard what is pending, what is free, and what an
autoscaler (v2) is doing about it. It does not say whose a pending request is: one of the same shape counts as ours.
"""

import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import _raylet
from ray.core.generated import autoscaler_pb2
from ray.exceptions import RpcError

from ray_jobs.demands import Demand, Resources, shown

# An actor that has room needs moments to start, which is no waiting.
_SECONDS_BEFORE = 3.0
_SECONDS_BETWEEN = 10.0
_MOST_SECONDS_BETWEEN = 160.0
_TIMEOUT_SECONDS = 10
# These classes are generated or compiled, so that type checkers cannot see them.
_messages: Any = autoscaler_pb2
_clients: Any = _raylet


@contextmanager
def waiting(demands: Sequence[Demand]) -> Iterator[None]:
    """Say on stderr, while the block runs, what of the demands is pending: at first, then every 10 seconds or more.

    Where nothing changes, the pauses between lines grow. Silent once nothing is pending.
    """
    ended, address = threading.Event(), ray.get_runtime_context().gcs_address
    watcher = threading.Thread(target=_watch, args=(list(demands), address, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def cluster_status(address: str) -> Any:
    """What the control service at an address knows of demands, nodes and its autoscaler: a `GetClusterStatusReply`."""
    reply = _messages.GetClusterStatusReply()
    reply.ParseFromString(_clients.GcsClient(address).get_cluster_status(timeout_s=_TIMEOUT_SECONDS))
    return reply


def autoscaling_state() -> Any:
    """What the connected cluster's autoscaler (v2) has told, an `AutoscalingState`; empty where there is none."""
    return cluster_status(ray.get_runtime_context().gcs_address).autoscaling_state


def report(demands: Sequence[Demand], status: Any) -> str | None:
    """What of the demands is pending, in one line; None: nothing is."""
    state = status.cluster_resource_state
    single = [(one.request, one.count) for one in state.pending_resource_requests]
    groups = [(one, 1) for group in state.pending_gang_resource_requests for one in _of_group(group)]
    pending = _counted(demands, [*single, *groups])
    if not pending:
        return None
    parts = [
        f"{name.partition(':')[0]}: waiting for {count} x {shown(dict(key))}" for (name, key), count in pending.items()
    ]
    names = dict.fromkeys(name for _, key in pending for name, _ in key)
    nodes = [node for node in state.node_states if node.status != _messages.NodeStatus.DEAD]
    free = {name: sum(node.available_resources.get(name, 0.0) for node in nodes) for name in names}
    cluster = f"free in the cluster's {len(nodes)} node{'s' * (len(nodes) != 1)}: {shown(free)}"
    return "; ".join([*parts, cluster, *_of_autoscaler(demands, status.autoscaling_state)])


def _watch(demands: list[Demand], address: str, ended: threading.Event) -> None:
    pause, said = _SECONDS_BETWEEN, None
    if ended.wait(_SECONDS_BEFORE):
        return
    while True:
        try:
            line = report(demands, cluster_status(address))
        except RpcError:  # the head is away: what fails with it says so
            line = None
        if line:
            print(line, file=sys.stderr, flush=True)
        pause = min(2 * pause, _MOST_SECONDS_BETWEEN) if line and line == said else _SECONDS_BETWEEN
        said = line
        if ended.wait(pause):
            return


def _of_group(group: Any) -> Iterable[Any]:
    """The bundles of a placement group, in the newer shape of the message or the older one."""
    if group.bundle_selectors:
        return group.bundle_selectors[0].resource_requests
    return group.requests


def _counted(demands: Sequence[Demand], requests: Iterable[tuple[Any, int]]) -> Counter:
    """(demand's name, bundle) -> how many requests of its shape there are."""
    shapes = {_key(bundle): demand.name for demand in demands for bundle in demand.bundles}
    counts: Counter = Counter()
    for request, count in requests:
        key = _key(request.resources_bundle)
        if key in shapes:
            counts[shapes[key], key] += count
    return counts


def _key(bundle: Resources) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((name, float(amount)) for name, amount in bundle.items() if amount))


def _of_autoscaler(demands: Sequence[Demand], state: Any) -> Iterator[str]:
    starting: Counter = Counter()
    for request in state.pending_instance_requests:
        starting[request.ray_node_type_name] += request.count
    starting.update(instance.ray_node_type_name for instance in state.pending_instances)
    for name, count in starting.items():
        yield f"autoscaler: {count} node{'s' * (count > 1)} {name} starting"
    for failed in state.failed_instance_requests:
        yield f"autoscaler: {failed.count} of {failed.ray_node_type_name} did not start ({failed.reason})"
    if _counted(demands, [(one, 1) for one in state.infeasible_resource_requests]):
        yield "autoscaler: no node that it may add has room for it"
