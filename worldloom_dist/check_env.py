"""``python -m worldloom_dist.check_env ENV``: look an environment over before training on it, then
rehearse a run with it.

Exit status: 0 it can be trained on (there may be advice), 1 it cannot, 2 wrong input.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from worldloom.algorithms.registry import agent_names, agent_spec, make_agent_config
from worldloom.core.exceptions import (
    ConfigurationError,
    MissingDependencyError,
    ModelNotFoundError,
    WorldLoomError,
)
from worldloom.core.fields import Bounds, checked
from worldloom.core.json_text import to_json
from worldloom.core.program import called, interruptible
from worldloom.core.specs import EnvSpec
from worldloom.envs.config import TASKS_SUITE, EnvConfig, EnvLimits
from worldloom.envs.tasks import read_tasks
from worldloom_dist.run.console import stdout_to_stderr

if TYPE_CHECKING:
    from worldloom.envs.check import EnvReport
    from worldloom_dist.run.config import RunConfig

__all__ = ["main"]

WRONG_INPUT = (ConfigurationError, MissingDependencyError, ModelNotFoundError)
FAULTS = "worldloom.envs.faults"
DISCRETE_AGENT = "dreamerv3:ci"
"""Rehearsed with where the launcher's usual agent cannot act."""


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = vars(_parser().parse_args(words))
    options["env"] = options.pop("env_flag") or options["env"]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger(FAULTS).setLevel(logging.CRITICAL)  # the report says what the env did
    settings = {
        f.name: options[f.name]
        for f in dataclasses.fields(EnvConfig)
        if options.get(f.name) is not None
    }
    try:
        wait_s = checked("timeout_s", options["timeout_s"], float, Bounds(above=0, most=10**9))
        limits = EnvLimits(
            step_timeout_s=wait_s,
            reset_timeout_s=wait_s,
            start_timeout_s=wait_s + 60,
            max_failures=1,
        )
        from worldloom.envs.check import check_env, play_unguarded
        from worldloom_dist.run.config import RunConfig

        usual = RunConfig(agent=options["agent"] or RunConfig().agent)
        usual.agent_config()
        with stdout_to_stderr():
            env = EnvConfig(**settings)
            if env.suite == TASKS_SUITE:
                names = ", ".join(task["env"] for task in read_tasks(env.env).values())
                raise ConfigurationError(
                    f"env: check-env looks at one env at a time, and {env.env!r} names several "
                    f"({names}); name one of them"
                )
            report = check_env(env, steps=options["steps"], seed=options["seed"], limits=limits)
            if options["debug"] and not report.is_good:
                play_unguarded(env, options["steps"], options["seed"])
            report.agents = _agents_for(report.spec)
            if report.is_good:
                _rehearse(report, usual, env, options)
    except WorldLoomError as error:
        if options["debug"]:
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, WRONG_INPUT) else 1
    if options["json"]:
        findings = [dataclasses.asdict(finding) for finding in report.findings]
        sys.stdout.write(
            to_json(
                {"spec": report.spec.to_dict(), "facts": report.facts, "findings": findings},
                indent=2,
            )
            + "\n"
        )
    else:
        sys.stdout.write("\n".join(report.lines()) + "\n")
    return 0 if report.is_good else 1


def _agents_for(spec: EnvSpec) -> list[str]:
    """The algorithms that can act in an env, by its spaces."""
    found: dict[str, None] = {}
    for name in agent_names() if spec.obs else ():
        with contextlib.suppress(ConfigurationError):
            agent_spec(make_agent_config(name), spec)
            found[name.partition(":")[0]] = None
    return list(found)


def _rehearse(
    report: EnvReport, usual: RunConfig, env: EnvConfig, options: Mapping[str, Any]
) -> None:
    """Add to a report what a run with an agent would do with the env."""
    from worldloom.envs.factory import probe_env
    from worldloom_dist.run.rehearsal import rehearse

    is_usual = options["agent"] is not None or report.spec.has_continuous_actions_only
    agent = usual.agent if is_usual else DISCRETE_AGENT
    config = dataclasses.replace(
        usual, env=env, agent=agent, envs_per_worker=probe_env(env)[1] or 1
    )
    rehearsal = rehearse(config, options["steps"])
    report.facts["rehearsed with"] = agent
    report.facts.update(rehearsal.facts)
    report.findings += rehearsal.findings


def _parser() -> argparse.ArgumentParser:
    description = (
        "Look an environment over: rules, spaces, seeding, statistics, speed, memory, "
        "and what to change."
    )
    parser = argparse.ArgumentParser(prog=called("check-env"), description=description)
    named = parser.add_mutually_exclusive_group(required=True)
    named.add_argument(
        "env",
        nargs="?",
        help="gym:ID, atari:GAME, dmc:DOMAIN-TASK, mujoco:ID, toy:NAME, rpc:HOST:PORT or "
        "package.module:callable",
    )
    named.add_argument("--env", dest="env_flag", help="the same, as a run takes it")
    parser.add_argument("--steps", type=int, default=1000, help="decisions to make (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of env and actions (default: 0)")
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=60.0,
        help="seconds that a step or reset may take (default: 60)",
    )
    parser.add_argument(
        "--agent",
        help=(
            "algorithm:preset to rehearse a run with (default: the launcher's, or "
            f"{DISCRETE_AGENT} for discrete actions)"
        ),
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of what the env raises"
    )
    hints = typing.get_type_hints(EnvConfig)
    for field in dataclasses.fields(EnvConfig):
        if field.name not in ("env", "tasks"):
            kind: Any = next(
                option for option in typing.get_args(hints[field.name]) if option is not type(None)
            )
            flag = "--env." + field.name.replace("_", "-")
            parser.add_argument(
                flag,
                dest=field.name,
                type=_truth if kind is bool else kind,
                metavar=kind.__name__.upper(),
            )
    return parser


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, got {text!r}")
    return text.lower() == "true"


if __name__ == "__main__":
    sys.exit(main())
