"""What the connected cluster is and may become: its living nodes, and those that its autoscaler may add.

Ray's control service knows the node types of some autoscalers alone, and that of `ray up` keeps them in a file on the
head, whose path is in its command line. Of an autoscaler elsewhere (KubeRay's) nothing is known but that it is there;
then nothing is refused beforehand, and `waiting.py` says what the autoscaler says.
"""

from typing import Any

import psutil
import ray
import yaml
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.demands import ClusterShape, NodeType

_HEAD = "node:__internal_head__"
_OPTION = "--autoscaling-config="
_SECONDS_FOR_THE_HEAD = 60
# An autoscaler's "no limit" of nodes, as one number.
_MANY = 1_000_000


def cluster_shape() -> ClusterShape:
    """The connected cluster, seen now."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node["Resources"] for node in alive]
    reported = _reported_types()
    if reported:
        return ClusterShape(nodes, _remaining(reported, alive))
    here, settings = monitor_settings(ray.get_runtime_context().gcs_address)
    if not here:
        here, settings = _settings_of_head(alive)
    if settings is not None:
        return shape_of(settings, alive)
    return ClusterShape(nodes, open_ended=not here and _has_autoscaler())


def shape_of(settings: dict[str, Any], alive: list[dict[str, Any]]) -> ClusterShape:
    """The shape by an autoscaler's settings (a prepared cluster.yaml) and the living nodes, as of `ray.nodes()`."""
    types = {
        name: NodeType(name, kind.get("resources") or {}, kind.get("max_workers", settings.get("max_workers", 0)))
        for name, kind in settings["available_node_types"].items()
        if name != settings.get("head_node_type")
    }
    workers = sum(_HEAD not in node["Resources"] for node in alive)
    return ClusterShape(
        [node["Resources"] for node in alive],
        _remaining(list(types.values()), alive),
        max(0, settings.get("max_workers", 0) - workers),
        # Resources that the settings leave to the provider are known to it alone.
        any(not kind.resources for kind in types.values() if kind.count),
    )


def monitor_settings(gcs_address: str) -> tuple[bool, dict[str, Any] | None]:
    """Whether the cluster's monitor runs on this machine, and its autoscaler's settings if it has an autoscaler."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if f"--gcs-address={gcs_address}" not in command or not any(part.endswith("monitor.py") for part in command):
            continue
        if any(part.endswith("log_monitor.py") for part in command):
            continue
        file = next((part.removeprefix(_OPTION) for part in command if part.startswith(_OPTION)), None)
        if file is None:
            return True, None
        with open(file, encoding="utf-8") as stream:
            return True, yaml.safe_load(stream)
    return False, None


def _settings_of_head(alive: list[dict[str, Any]]) -> tuple[bool, dict[str, Any] | None]:
    """`monitor_settings`, as the head's machine sees it."""
    head = next((node["NodeID"] for node in alive if _HEAD in node["Resources"]), None)
    if head is None or head == ray.get_runtime_context().get_node_id():
        return False, None
    strategy: Any = NodeAffinitySchedulingStrategy(head, soft=False)
    look = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(monitor_settings)
    try:
        return ray.get(look.remote(ray.get_runtime_context().gcs_address), timeout=_SECONDS_FOR_THE_HEAD)
    except GetTimeoutError:
        return False, None


def _reported_types() -> list[NodeType]:
    """The node types that an autoscaler has told the control service; those of open-source Ray tell none."""
    # Ray has no public way to ask.
    from ray._private.state import state

    config = state.get_cluster_config()
    return [
        NodeType(kind.name, dict(kind.resources), kind.max_count if kind.max_count >= 0 else _MANY)
        for kind in (config.node_group_configs if config else ())
    ]


def _remaining(types: list[NodeType], alive: list[dict[str, Any]]) -> list[NodeType]:
    """The types with what is left of their counts."""
    present = [_type_of(node, types) for node in alive if _HEAD not in node["Resources"]]
    return [NodeType(kind.name, kind.resources, max(0, kind.count - present.count(kind.name))) for kind in types]


def _type_of(node: dict[str, Any], types: list[NodeType]) -> str | None:
    """The type that a node says it is of, else the first with its CPUs and GPUs."""
    labelled = node.get("Labels", {}).get("ray.io/node-group")
    if labelled is not None:
        return labelled
    own = node["Resources"]
    same = (k.name for k in types if all(k.resources.get(n, 0) == own.get(n, 0) for n in ("CPU", "GPU")))
    return next(same, None)


def _has_autoscaler() -> bool:
    """Whether something has told the control service what it thinks of the cluster's demands."""
    from ray_jobs.waiting import autoscaling_state

    return autoscaling_state().autoscaler_state_version > 0
