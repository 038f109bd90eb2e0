"""The machine checks on every node of a cluster, for ``doctor --address``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from worldloom.core.error_text import last_line
from worldloom_dist.run.machine import Finding, check_machine
from worldloom_dist.runtime.cluster import ray_cluster

__all__ = ["inspect_nodes"]

CHECK_WITHIN_S = 120.0
COMPARED = ("python", "ray", "worldloom")


def inspect_nodes(address: str, folder: Path) -> dict[str, list[Finding]]:
    """Findings by node; a node that cannot be asked has one that says so.

    Args:
        address: Of the cluster.
        folder: Where runs are written, on each node.

    Raises:
        ConfigurationError: If no cluster answers there.
    """
    with ray_cluster(address, "doctor"):
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        check = ray.remote(check_machine)
        asked = {}
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            if node["Alive"]:
                pin = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked[name] = check.options(
                    num_cpus=0, scheduling_strategy=pin, max_retries=0
                ).remote(folder)
        found = {}
        for name, reference in asked.items():
            try:
                found[name] = ray.get(reference, timeout=CHECK_WITHIN_S)
            except RayError as error:
                text = last_line(error)
                found[name] = [
                    Finding(
                        "node",
                        "problem",
                        text,
                        "install the same worldloom-dist there: pip install worldloom-dist",
                    )
                ]
    return _compared(found)


def _compared(found: dict[str, list[Finding]]) -> dict[str, list[Finding]]:
    """Point out versions that differ from the first node's: Ray refuses to mix them."""
    if not found:
        return found
    first = {
        f.name: f.detail.split(" ")[0] for f in next(iter(found.values())) if f.name in COMPARED
    }
    for name, findings in found.items():
        for place, finding in enumerate(findings):
            if finding.name in first and finding.detail.split(" ")[0] != first[finding.name]:
                fix = (
                    f"install {finding.name} {first[finding.name]} here, as on {next(iter(found))}"
                )
                findings[place] = replace(
                    finding,
                    level="problem",
                    detail=f"{finding.detail} differs between nodes",
                    fix=fix,
                )
        found[name] = findings
    return found
