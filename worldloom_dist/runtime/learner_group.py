"""Several learner ranks on Ray: where they run, how they meet, and one rank's view of the others.

driver: placement group of N bundles -> learner-0 .. learner-(N-1), restarted together when one dies
learner-0: opens a store and tells its address <--asked by-- learner-1 .., then all join
every round: any(stop?, no batch?) -> all train on their share, or none does
learner-0 alone: restores and shares the state, publishes, checkpoints, reports counters
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as AtNode
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from worldloom.core.exceptions import ConfigurationError, StateError
from worldloom_dist.interfaces import Learner, learner_client
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.runtime.cluster import CPUS_PER_ROLE
from worldloom_dist.runtime.deadlines import DEADLINES

if TYPE_CHECKING:
    from worldloom_dist.learner.process_group import TorchProcessGroup

__all__ = ["LearnerPlaces", "join_group"]

logger = logging.getLogger(__name__)

LOOPBACK = "127."


def join_group(
    rank: int,
    size: int,
    incarnation: int,
    *,
    device: str,
    announce: Callable[[tuple[str, int]], None],
) -> TorchProcessGroup:
    """Meet the other ranks of this incarnation.

    Args:
        rank, size, incarnation: Which one, of how many, in which incarnation.
        device: Of the agent.
        announce: Rank 0 calls it with the address at which it waits for the others.

    Raises:
        StateError: If rank 0 does not show up in time.
    """
    from worldloom_dist.learner.process_group import TorchProcessGroup, open_store

    if rank == 0:
        host = _own_address()
        _use_loopback(host)
        store = open_store(host, 0, size, is_host=True, timeout_s=DEADLINES.rendezvous_s)
        announce((host, store.port))
    else:
        host, port = _ask_for_address(incarnation)
        _use_loopback(host)
        store = open_store(host, port, size, is_host=False, timeout_s=DEADLINES.rendezvous_s)
    return TorchProcessGroup(store, rank, size, device=device)


def _use_loopback(host: str) -> None:
    """A private cluster's ranks talk over the loopback, whatever this machine's name
    resolves to.
    """
    if host.startswith(LOOPBACK):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _ask_for_address(incarnation: int) -> tuple[str, int]:
    first = learner_client(0).within(patience_s=DEADLINES.rendezvous_s)
    give_up = time.monotonic() + DEADLINES.rendezvous_s
    while time.monotonic() < give_up:
        found = first.call(Learner.rendezvous, incarnation)
        if found is not None:
            host, port = found
            return str(host), int(port)
        time.sleep(0.1)
    raise StateError(f"learner-0 did not open a rendezvous within {DEADLINES.rendezvous_s:.0f} s")


class LearnerPlaces:
    """Where the learner ranks run, and in which incarnation.

    Args:
        config: Of the run.
        folder: Counts the learners' incarnations.
    """

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self._config = config
        self._folder = folder
        self._group: PlacementGroup | None = None
        self._incarnations: dict[int, int] = {}

    def incarnation(self, start: int) -> int:
        """Number of the group's ``start``-th start in the run; the same for every rank."""
        if start not in self._incarnations:
            self._incarnations[start] = self._folder.next_incarnation("learner")
        return self._incarnations[start]

    def options(self, rank: int, alone: dict[str, Any]) -> dict[str, Any]:
        """Options of the actor of one rank.

        Args:
            rank: Which one.
            alone: What a single learner would be started with; several get the same each, in one
                placement group. Its first bundle is where the files are when a single learner would
                be bound to that node.

        Raises:
            ConfigurationError: If the cluster cannot hold all ranks.
        """
        ranks = self._config.learners
        if ranks == 1:
            return {}
        gpus = alone["num_gpus"] if "num_gpus" in alone else _gpus_per_rank(self._config)
        if self._group is None:
            bundle = {
                "CPU": max(alone["num_cpus"], CPUS_PER_ROLE),
                **alone.get("resources", {}),
                **({"GPU": gpus} if gpus else {}),
            }
            first = (
                {**bundle, f"node:{_own_address()}": 0.001}
                if isinstance(alone.get("scheduling_strategy"), AtNode)
                else bundle
            )
            group = placement_group([first, *[bundle] * (ranks - 1)], strategy="PACK")
            if not group.wait(max(DEADLINES.place_learners_s, self._config.placement.wait_s)):
                remove_placement_group(group)
                raise ConfigurationError(
                    f"learners: the cluster has no room for {ranks} ranks; ask for fewer"
                )
            self._group = group
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=rank
        )
        return {
            "num_cpus": max(alone["num_cpus"], CPUS_PER_ROLE),
            "num_gpus": gpus,
            "scheduling_strategy": strategy,
        }


def _own_address() -> str:
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _gpus_per_rank(config: RunConfig) -> int:
    """1 when every rank gets a GPU of its own, 0 when all train on CPUs."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    there = int(resources.get("GPU", 0))
    wanted = config.learner.device
    if wanted == "cpu" or (wanted == "auto" and not there):
        return 0
    if there < config.learners:
        raise ConfigurationError(
            f"learners: {config.learners} ranks need a GPU each, and the cluster has "
            f"{there}; ask for at most {max(there, 1)}, or "
            "say --learner.device cpu"
        )
    return 1
