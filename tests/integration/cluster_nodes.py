"""Several Ray nodes on this machine, told what to do by lines on stdin: ``add NAME CPUS`` and
``remove NAME``; one answer each.

A process of its own, because the variables that Ray reads at import are the test process's too.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType

SETTINGS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 4000,
}
SETTINGS["health_check_failure_threshold"] = 3
STORE_BYTES = 100 * 2**20


class Nodes:
    """A handle on that process. Use as a context."""

    def __init__(self, environment: dict[str, str], cpus: int) -> None:
        command = [sys.executable, __file__, str(cpus)]
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Nodes:
        self.address = self._answer()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def add(self, name: str, cpus: int) -> str:
        """Start a node; returns its id."""
        return self._tell(f"add {name} {cpus}")

    def remove(self, name: str) -> None:
        """Kill a node as a power cut does."""
        self._tell(f"remove {name}")

    def _tell(self, line: str) -> str:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        for line in self._process.stdout:
            if line.startswith("> "):
                return line[2:].strip()
        raise AssertionError("the cluster's process ended")


def main() -> None:
    """Serve until stdin is closed."""
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": int(sys.argv[1]),
        "include_dashboard": False,
        "object_store_memory": STORE_BYTES,
    }
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": SETTINGS})
    nodes = {}
    print("> " + cluster.address, flush=True)
    for line in sys.stdin:
        what, name, *cpus = line.split()
        if what == "add":
            nodes[name] = cluster.add_node(num_cpus=int(cpus[0]), object_store_memory=STORE_BYTES)
        else:
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        print("> " + (nodes[name].node_id if name in nodes else "gone"), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
