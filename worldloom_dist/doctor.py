"""``python -m worldloom_dist.doctor``: is this machine, or a whole cluster, ready to train? Prints
the command for each finding.

Exit status: 0 ready (there may be notes), 1 there are problems, 2 no cluster answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.json_text import to_json
from worldloom.core.program import called, interruptible
from worldloom_dist.run.machine import Finding, check_machine

__all__ = ["lines", "main"]


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=called("doctor"),
        description="Is this machine, or a whole cluster, ready to train?",
    )
    parser.add_argument(
        "--address", default=None, help="look at every node of this Ray cluster too"
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=Path("runs"),
        help="where runs will be written (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse_args(words)
    found = {"this machine": check_machine(options.run_dir)}
    if options.address is not None:
        from worldloom_dist.run.checks import check_address
        from worldloom_dist.run.config import RunConfig
        from worldloom_dist.runtime.nodes import inspect_nodes

        try:
            check_address(RunConfig(address=options.address))
            found |= inspect_nodes(options.address, options.run_dir.absolute())
        except ConfigurationError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
    if options.json:
        plain = {
            name: [dataclasses.asdict(finding) for finding in findings]
            for name, findings in found.items()
        }
        sys.stdout.write(to_json(plain, indent=2) + "\n")
    else:
        for name, findings in found.items():
            sys.stdout.write("\n".join([name, *lines(findings)]) + "\n")
    return (
        1
        if any(finding.level == "problem" for findings in found.values() for finding in findings)
        else 0
    )


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings as text: what was found, and below it what to do."""
    width = max((len(finding.name) for finding in findings), default=0)
    shown = []
    for finding in findings:
        shown.append(f"  {finding.level.ljust(7)}  {finding.name.ljust(width)}  {finding.detail}")
        if finding.fix:
            shown.append(f"  {' ' * 7}  {' ' * width}  -> {finding.fix}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
