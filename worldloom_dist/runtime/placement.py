"""Where the roles of a run go on a cluster that it joins, and whether they fit.

    driver's node   hub, coordinator, weight store; also learner and shards, whose files are in the
                    run folder, unless the cluster has nodes for them (custom resources
                    ``worldloom_learner``, ``worldloom_replay``: the folder is shared then)
    a GPU           learner and inference servers, when the cluster has one and the device is not
                    cpu; without one, inference servers are on the driver's node and ask for
                    nothing, so that no worker, which waits for them, is in their way

A cluster that the launcher starts is the user's own machine: there roles share it by threads and
niceness, and ask for next to nothing. The arithmetic is pure; only ``read_nodes`` asks Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.run.config import RunConfig
from worldloom_dist.runtime.cluster import CPUS_PER_ROLE

__all__ = ["Ask", "Node", "Placement", "read_nodes"]

LEARNER_NODES = "worldloom_learner"
REPLAY_NODES = "worldloom_replay"
WORKER_NODES = "worldloom_worker"
OWN_NODES = {"learner": LEARNER_NODES, "shard": REPLAY_NODES, "worker": WORKER_NODES}
TOKEN_SHARE = 0.001
"""How much of a custom resource a role takes: the resource labels a node, it does not count."""
INFERENCE_GPUS = 0.25
EVALUATOR_GPUS = 0.05
SHARD_CPUS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A living node.

    Attributes:
        node_id: Ray's.
        cpus, gpus: As it was started with.
        labels: Its custom resources.
        is_home: True for the driver's.
    """

    node_id: str
    cpus: float
    gpus: float = 0.0
    labels: frozenset[str] = frozenset()
    is_home: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the instances of one role ask for, each.

    Attributes:
        kind, count: Which role, how many.
        cpus, gpus: Of one instance.
        label: Custom resource of the nodes it goes to; None for any.
        is_home: True when it must be on the driver's node.
    """

    kind: str
    count: int
    cpus: float
    gpus: float = 0.0
    label: str | None = None
    is_home: bool = False

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f" + {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.count} {self.kind} x ({each})"


def read_nodes() -> list[Node]:
    """The living nodes of the cluster that this process is connected to, in a fixed order."""
    home = ray.get_runtime_context().get_node_id()
    found = []
    for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"])):  # type: ignore[no-untyped-call]
        if node["Alive"]:
            has: dict[str, float] = node["Resources"]
            labels = frozenset(has) & set(OWN_NODES.values())
            found.append(
                Node(
                    node_id=node["NodeID"],
                    cpus=has.get("CPU", 0.0),
                    gpus=has.get("GPU", 0.0),
                    labels=labels,
                    is_home=node["NodeID"] == home,
                )
            )
    return found


class Placement:
    """The placement of one run.

    Args:
        config: Of the run.
        inference: ``local`` or ``central``.
        nodes: Tells the living nodes.

    Raises:
        ConfigurationError: If the cluster is too small and will not grow; says the arithmetic.
    """

    def __init__(
        self, config: RunConfig, inference: str, nodes: Callable[[], Sequence[Node]] = read_nodes
    ) -> None:
        self._is_joined = config.address is not None
        self._nodes = nodes
        self._shard_nodes: dict[int, str] = {}
        self.asks: dict[str, Ask] = {}
        if not self._is_joined:
            return
        if ":" in config.learner.device:
            raise ConfigurationError(
                f"learner.device: {config.learner.device!r} names a device, but on a "
                "cluster Ray chooses it; say cuda, auto or cpu"
            )
        living = nodes()
        self.asks = {ask.kind: ask for ask in _asks(config, inference, living)}
        problem = _too_small(tuple(self.asks.values()), living)
        if problem and config.placement.wait_s <= 0:
            raise ConfigurationError(problem)

    def options(self, kind: str, index: int) -> dict[str, Any]:
        """Ray's options for one instance of a role, as the cluster is now."""
        if not self._is_joined:
            return {"num_cpus": CPUS_PER_ROLE}
        home = next(node.node_id for node in self._nodes() if node.is_home)
        ask = self.asks.get(kind)
        if ask is None:  # roles of the control plane live and die with the driver
            return {
                "num_cpus": 0,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(home, soft=False),
            }
        options: dict[str, Any] = {"num_cpus": ask.cpus, "num_gpus": ask.gpus}
        if ask.label:
            options["resources"] = {ask.label: TOKEN_SHARE}
        if ask.is_home:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(home, soft=False)
        elif kind == "shard":
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                self._node_of_shard(index), soft=True
            )
        else:
            options["scheduling_strategy"] = "SPREAD"
        return options

    def _node_of_shard(self, index: int) -> str:
        """The node that has its journal as long as that node lives, else the one with the fewest
        shards.
        """
        living = [node.node_id for node in self._nodes() if REPLAY_NODES in node.labels]
        if self._shard_nodes.get(index) not in living:
            taken = [node for other, node in self._shard_nodes.items() if other != index]
            self._shard_nodes[index] = min(
                living or [node.node_id for node in self._nodes()], key=taken.count
            )
        return self._shard_nodes[index]


def _asks(config: RunConfig, inference: str, nodes: Sequence[Node]) -> list[Ask]:
    labels = frozenset[str]().union(*(node.labels for node in nodes))
    servers = config.inference_servers if inference == "central" else 0
    learner_gpus, inference_gpus, evaluator_gpus = _gpus(config, servers, nodes)
    home = next(node for node in nodes if node.is_home)
    learner_label = LEARNER_NODES if LEARNER_NODES in labels else None
    at_home = learner_label is None and home.gpus >= learner_gpus
    replay_label = REPLAY_NODES if REPLAY_NODES in labels else None
    gives = home.cpus > 0  # a head that was started with no CPUs is there for exactly these roles
    asks = [
        Ask(
            kind="learner",
            count=config.learners,
            cpus=1.0 if gives or not at_home else 0.0,
            gpus=learner_gpus,
            label=learner_label,
            is_home=at_home,
        ),
        Ask(
            kind="shard",
            count=config.replay.shards,
            cpus=SHARD_CPUS if gives or replay_label else 0.0,
            label=replay_label,
            is_home=replay_label is None,
        ),
        Ask(
            kind="inference",
            count=servers,
            cpus=float(inference_gpus > 0),
            gpus=inference_gpus,
            is_home=not inference_gpus,
        ),
        Ask(
            kind="evaluator",
            count=int(config.eval_episodes > 0),
            cpus=0.0,
            gpus=evaluator_gpus,
        ),
        Ask(
            kind="worker",
            count=0 if config.env.is_none else config.workers,
            cpus=config.placement.worker_cpus,
            label=WORKER_NODES if WORKER_NODES in labels else None,
        ),
    ]
    return [ask for ask in asks if ask.count]


def _gpus(config: RunConfig, servers: int, nodes: Sequence[Node]) -> tuple[float, float, float]:
    """GPUs of a learner, of an inference server and of the evaluator; with a single one they share
    it. An evaluator for which nothing is left uses its CPU.
    """
    device = config.learner.device
    there = sum(node.gpus for node in nodes)
    own = config.placement
    if device == "cpu" or (device == "auto" and not there):
        return 0.0, 0.0, 0.0
    inference = INFERENCE_GPUS if own.inference_gpus is None else own.inference_gpus
    evaluator = EVALUATOR_GPUS if config.eval_episodes > 0 else 0.0
    shared = inference * servers + evaluator
    learner = 1.0 if there != 1 else max(INFERENCE_GPUS, 1.0 - shared)
    learner = learner if own.learner_gpus is None else own.learner_gpus
    is_room = there - learner * config.learners >= shared - 1e-9
    return learner, inference, evaluator if is_room else 0.0


def _too_small(asks: Sequence[Ask], nodes: Sequence[Node]) -> str:
    """Why the roles do not fit, with the arithmetic and the ways out; empty when they do."""
    cpus = {node.node_id: node.cpus for node in nodes}
    gpus = {node.node_id: node.gpus for node in nodes}
    missing: list[tuple[Ask, int]] = []
    for ask in asks:
        labelled = [node for node in nodes if ask.label is None or ask.label in node.labels]
        room = [node.node_id for node in labelled if node.is_home or not ask.is_home]
        for placed in range(ask.count):
            fit = [
                node
                for node in room
                if cpus[node] >= ask.cpus - 1e-9 and gpus[node] >= ask.gpus - 1e-9
            ]
            if not fit:
                missing.append((ask, placed))
                break
            best = max(fit, key=lambda node: cpus[node])
            cpus[best] -= ask.cpus
            gpus[best] -= ask.gpus
    if not missing:
        return ""
    sum_cpus, sum_gpus = (
        sum(getattr(ask, what) * ask.count for ask in asks) for what in ("cpus", "gpus")
    )
    per_node = " + ".join(f"{node.cpus:g}" for node in nodes)
    ask, placed = missing[0]
    where = (
        " on the driver's node"
        if ask.is_home
        else f" on nodes with {ask.label}"
        if ask.label
        else ""
    )
    needs = ", ".join(map(str, asks))
    asks_gpus = f" and {sum_gpus:g} GPUs" if sum_gpus else ""
    has_gpus = f" and {sum(node.gpus for node in nodes):g} GPUs" if sum_gpus else ""
    ways = (
        "take fewer workers, ask for less with --placement.worker-cpus"
        if ask.kind == "worker"
        else "use --learner.device cpu"
    )
    if ask.kind != "worker" and not ask.gpus:
        ways = "give that node more CPUs"
    return (
        f"the cluster is too small: the run asks for {needs} = {sum_cpus:g} CPUs{asks_gpus}; "
        f"its {len(nodes)} nodes have {sum(node.cpus for node in nodes):g} CPUs "
        f"({per_node}){has_gpus}, with room for {placed} of "
        f"{ask.count} {ask.kind}{where}; {ways}, start more nodes, or let an "
        "autoscaling cluster grow with --placement.wait-s 600"
    )
