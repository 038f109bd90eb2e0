"""How a private cluster is stopped."""

import pytest
from ray._private import worker

from worldloom_dist.runtime import cluster


class Node:
    def __init__(self) -> None:
        self.kills: list[tuple[bool, bool]] = []

    def kill_all_processes(self, check_alive: bool = True, allow_graceful: bool = False) -> None:
        self.kills.append((check_alive, allow_graceful))


def test_servers_that_block_sigterm_are_killed_without_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    monkeypatch.setattr(worker, "_global_node", node)
    cluster._spare_grace()
    node.kill_all_processes(check_alive=False, allow_graceful=True)
    assert node.kills == [(False, False)]


def test_a_ray_without_that_node_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_global_node", None)
    cluster._spare_grace()
