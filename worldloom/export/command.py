"""``worldloom export RUN``: a trained policy as a file for other runtimes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from worldloom.core.exceptions import ConfigurationError
from worldloom.core.files import expanded, inside
from worldloom.hub.fetching import is_address

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of ``worldloom``."""
    parser = commands.add_parser(
        "export", help="a trained policy as ONNX, torch.export or safetensors: export RUN"
    )
    parser.add_argument("run_dir", metavar="RUN", help="a run, a checkpoint, or a saved agent")
    parser.add_argument(
        "--format",
        default="onnx",
        help="onnx, torch (torch.export), or safetensors: weights alone (default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--output", default=None, help="a folder (default: policy in the run folder)"
    )
    parser.add_argument(
        "--planner",
        action="store_true",
        help="tdmpc2: search as in training; without it the policy prior acts",
    )
    parser.add_argument(
        "--samples", type=int, default=None, help="action sequences of --planner (default: its own)"
    )
    parser.add_argument(
        "--precision",
        default="float32",
        help="float32; of onnx also bf16 (weights) or int8, where it decides as the agent does",
    )
    parser.add_argument(
        "--decisions",
        type=int,
        default=1000,
        help="decisions of the agent that are made again and compared (default: %(default)s)",
    )
    parser.add_argument(
        "--observations",
        default="env",
        help="env plays in the run's env; random draws from its space (default: %(default)s)",
    )
    parser.add_argument(
        "--trust-env",
        action="store_true",
        help="run env code of a folder that was made elsewhere, without being asked",
    )
    parser.add_argument(
        "--task", default=None, help="of an agent of several tasks: in which one the policy acts"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is compared (default: 0)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Export, and say what was written.

    Raises:
        WorldLoomError: As :func:`worldloom.export.export_policy`.
    """
    from worldloom.envs.consent import with_consent
    from worldloom.export.exporting import export_policy

    found = with_consent(
        lambda trust_env: export_policy(
            options.run_dir,
            _folder(options),
            format=options.format,
            planner=options.planner,
            samples=options.samples,
            precision=options.precision,
            decisions=options.decisions,
            observations=options.observations,
            seed=options.seed,
            task=options.task,
            trust_env=trust_env,
        ),
        trust_env=options.trust_env,
    )
    lines = [] if found.parity is None else found.parity.lines()
    if found.leaves_search_out:
        lines.append(
            "policy: the agent's policy prior, without the search that evaluations make; --planner "
            "exports that too"
        )
    lines.append(f"{found.folder}: {', '.join(found.files)}")
    sys.stdout.write("\n".join(lines) + "\n")


def _folder(options: argparse.Namespace) -> Path:
    if options.output is not None:
        return expanded(options.output, "--output")
    is_far = is_address(options.run_dir)
    place = Path() if is_far else expanded(options.run_dir, "RUN")
    if is_far or (place.exists() and not (place / "config.json").exists()):
        raise ConfigurationError(
            f"output: {options.run_dir} is no run folder, in which the policy could lie; name a "
            "folder with -o FOLDER"
        )
    return inside(place, "policy")
