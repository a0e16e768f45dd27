"""What a stage asks of a cluster, what a cluster can ever be, and the refusal of what will never fit.

Resources have Ray's names: CPU, GPU, memory (bytes), and accelerator_type:X of which each process takes 0.001. Nothing
here talks to a cluster.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xrec.config import ConfigError

Resources = Mapping[str, float]
GIB = 2**30
ACCELERATOR = "accelerator_type:"
_ACCELERATOR_AMOUNT = 0.001
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Demand:
    """What must be free at one time.

    Attributes:
        name: what is asked for, in messages, such as "explain: an engine".
        bundles: resources of one such thing: each bundle is on one node, two bundles may be on two.
        count: how many of them at least.
        setting: the settings to lower.
    """

    name: str
    bundles: list[dict[str, float]]
    count: int
    setting: str

    def total(self, name: str) -> float:
        """Of one resource, by all of them."""
        return self.count * sum(bundle.get(name, 0.0) for bundle in self.bundles)


@dataclass(frozen=True)
class NodeType:
    """Nodes that an autoscaler may still add.

    Attributes:
        name: as the cluster's settings have it.
        resources: of one node.
        count: how many more there can be.
    """

    name: str
    resources: dict[str, float]
    count: int


@dataclass(frozen=True)
class ClusterShape:
    """What a cluster is and may become.

    Attributes:
        nodes: resources of each living node.
        types: what the autoscaler may add.
        most_added: how many nodes it may add of all types together; None: no limit but the types' own.
        open_ended: an autoscaler adds nodes of which nothing is known here, so that nothing can be refused.
    """

    nodes: list[dict[str, float]] = field(default_factory=list)
    types: list[NodeType] = field(default_factory=list)
    most_added: int | None = None
    open_ended: bool = False

    def most(self, amount: Callable[[Resources], float]) -> float:
        """The largest sum over nodes of an amount that follows from a node's resources."""
        total = sum(amount(node) for node in self.nodes)
        left = self.most_added if self.most_added is not None else sum(kind.count for kind in self.types)
        addable = [(amount(kind.resources), kind.count) for kind in self.types]
        for each, count in sorted(addable, reverse=True):
            added = min(count, left)
            total, left = total + each * added, left - added
        return total

    def kinds(self) -> list[Resources]:
        """Resources of every node that is there, then of one node of each type."""
        return [*self.nodes, *(kind.resources for kind in self.types)]

    def total(self, name: str) -> float:
        """The most of one resource that there can be."""
        return self.most(lambda node: node.get(name, 0.0))

    def largest(self, name: str) -> float:
        """The most of one resource that one node can have."""
        return max((kind.get(name, 0.0) for kind in self.kinds()), default=0.0)

    def accelerators(self) -> list[str]:
        """The accelerator types that there can be."""
        found = {name for kind in self.kinds() for name in kind if name.startswith(ACCELERATOR)}
        return sorted(name.removeprefix(ACCELERATOR) for name in found)


def bundle(
    cpus: float = 0.0, gpus: float = 0.0, memory: float | None = None, accelerator_type: str | None = None
) -> dict[str, float]:
    """Resources of one process, by Ray's names.

    Args:
        memory: GiB.
    """
    amounts = {"CPU": cpus, "GPU": gpus, "memory": int((memory or 0.0) * GIB)}
    if accelerator_type:
        amounts[f"{ACCELERATOR}{accelerator_type}"] = _ACCELERATOR_AMOUNT
    return {name: amount for name, amount in amounts.items() if amount}


def shown(resources: Resources) -> str:
    """Resources for people, such as {CPU: 4, GPU: 1, memory: 16 GiB, accelerator_type: A100}."""
    return "{" + ", ".join(_shown(name, amount) for name, amount in resources.items()) + "}"


def how_many_fit(demand: Demand, shape: ClusterShape) -> int | None:
    """How many of what is demanded the cluster can ever hold, if it held nothing else; None: nobody knows.

    Exact where a thing is one bundle. Where it has several, which are alike, they are counted without regard to how
    many of them a node would have to leave empty.
    """
    if shape.open_ended:
        return None
    if not demand.bundles:
        return demand.count
    each = demand.bundles[0]
    return int(shape.most(lambda node: _fitting(each, node))) // len(demand.bundles)


def refuse_impossible(demands: Sequence[Demand], shape: ClusterShape) -> None:
    """Refuse what Ray would wait for without end.

    Each demand must fit alone, bundle by bundle on nodes; all together must not exceed the sum of what there can be.
    So demands that fit one by one and in sum, but do not pack together on the nodes, are accepted.

    Raises:
        ConfigError: names the setting, what is needed, what there can be at most on a node and in all, and the remedy.
    """
    for demand in demands:
        found = how_many_fit(demand, shape)
        if found is not None and found < demand.count:
            raise ConfigError(f"{_needed(demand)}, but {_why(demand, shape, found)}; {_remedy(demand)}")
    if not shape.open_ended:
        for name in _names(demands):
            needed, most = sum(demand.total(name) for demand in demands), shape.total(name)
            if needed > most + _ROUNDING and not name.startswith(ACCELERATOR):
                parts = "; ".join(_needed(demand) for demand in demands)
                settings = ", or ".join(dict.fromkeys(demand.setting for demand in demands if demand.setting))
                raise ConfigError(
                    f"{parts}: together {_shown(name, needed)}, but the cluster can have {_shown(name, most)} at most; "
                    f"lower {settings}, or give Ray more"
                )


def _fitting(each: Resources, node: Resources) -> int:
    """How many bundles fit on an empty node; a bundle without needs fits without limit, which stands for a lot."""
    counts = [int(node.get(name, 0.0) / amount + _ROUNDING) for name, amount in each.items() if amount]
    return min(counts, default=1_000_000)


def _needed(demand: Demand) -> str:
    parts = f" in {len(demand.bundles)} bundles" if len(demand.bundles) > 1 else ""
    return f"{demand.name} needs {shown(demand.bundles[0])}{parts}" + (f", {demand.count} times" * (demand.count > 1))


def _why(demand: Demand, shape: ClusterShape, found: int) -> str:
    """The first resource of which a node has too little; else how many fit."""
    for name, amount in demand.bundles[0].items():
        largest = shape.largest(name)
        if largest + _ROUNDING >= amount:
            continue
        if name.startswith(ACCELERATOR):
            known = ", ".join(shape.accelerators()) or "none"
            return f"no node has or can get that accelerator (there can be: {known})"
        return (
            f"no node has or can get more than {_shown(name, largest)} (the whole cluster: "
            f"{_shown(name, shape.total(name))})"
        )
    whole = ", ".join(_shown(name, shape.total(name)) for name in demand.bundles[0] if not name.startswith(ACCELERATOR))
    return f"the cluster can hold {found} at most (all its nodes together: {whole})"


def _remedy(demand: Demand) -> str:
    return f"lower {demand.setting}, or give Ray more" if demand.setting else "give Ray more"


def _names(demands: Iterable[Demand]) -> list[str]:
    return list(dict.fromkeys(name for demand in demands for each in demand.bundles for name in each))


def _shown(name: str, amount: float) -> str:
    if name.startswith(ACCELERATOR):
        return f"accelerator_type: {name.removeprefix(ACCELERATOR)}"
    return f"{name}: {amount / GIB:.4g} GiB" if name == "memory" else f"{name}: {amount:g}"
