"""What a run says before it begins, and where its lines go."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from worldloom.core.loopback import address_text
from worldloom_dist.run.checks import without_effect
from worldloom_dist.run.console import LogFile, Screen
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.presets import preset_changes
from worldloom_dist.run.standby import describe_standby
from worldloom_dist.run.tasks import task_lines

if TYPE_CHECKING:
    from worldloom_dist.run.plan import Plan

__all__ = ["announce", "log_handlers_of_one_run", "open_log"]

logger = logging.getLogger("worldloom_dist")


@contextlib.contextmanager
def log_handlers_of_one_run() -> Iterator[None]:
    """Handlers that a run adds or takes off are as before when it is over: a program may start
    several.
    """
    root = logging.getLogger()
    before = [*root.handlers]
    try:
        yield
    finally:
        for handler in [*root.handlers]:
            if handler not in before:
                root.removeHandler(handler)
                handler.close()
        for handler in before:
            if handler not in root.handlers:
                root.addHandler(handler)


def open_log(folder: RunFolder) -> Screen:
    """Life events to the terminal and to ``console.log``.

    A handler that an environment's package left on the terminal (dm_control does, through absl) is
    taken off, or each line would come twice.
    """
    root = logging.getLogger()
    for handler in [*root.handlers]:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (
            sys.stdout,
            sys.stderr,
        ):
            root.removeHandler(handler)
    form = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    screen = Screen(sys.stdout)
    for handler in (screen, LogFile(folder.path / "console.log")):
        handler.setFormatter(form)
        root.addHandler(handler)
    logging.getLogger("worldloom").setLevel(logging.INFO)
    logging.getLogger("worldloom_dist").setLevel(logging.INFO)
    return screen


def announce(
    plan: Plan, folder: Path, port: int, *, is_resumed: bool, changed: Sequence[str] = ()
) -> None:
    """Say what runs before it does, and what is otherwise than before a resume."""
    from worldloom_dist.run.pace import prefill_share

    config = plan.config
    spec = plan.spec
    env = plan.env_spec
    logger.info("run      %s%s", folder, " (resumed)" if is_resumed else "")
    if changed:
        logger.info("changed  %s", "; ".join(changed))
    logger.info(
        "preset   %s%s",
        config.preset,
        ", changed: " + "; ".join(changes) if (changes := preset_changes(config)) else "",
    )
    for line in task_lines(plan):
        logger.info("%s", line)
    logger.info("env      %s: obs %s, action %s", env.name, _shapes(env.obs), _shapes(env.action))
    logger.info(
        "agent    %s: train ratio %g (%g updates per agent step), prefill %d agent "
        "steps (%s of the run), then %d updates at once",
        plan.agent.name,
        spec.train_ratio,
        spec.train_ratio / spec.sampling.trained_positions,
        spec.prefill_agent_steps,
        f"{prefill_share(plan):.0%}",
        spec.pretrain_updates,
    )
    if config.offline_steps:
        logger.info("offline  %s updates before the first env step", f"{config.offline_steps:,}")
    if plan.precision_line:
        logger.info("products %s", plan.precision_line)
    for line in plan.initial_lines:
        logger.info("init     %s", line)
    logger.info(
        "workers  %d x %d envs, seed %d, runtime %s",
        plan.num_workers,
        config.envs_per_worker,
        config.seed,
        config.runtime,
    )
    logger.info(
        "replay   %s; %d shards, durability %s",
        plan.budget.describe() if plan.budget else "",
        config.replay.shards,
        config.replay.durability,
    )
    if config.runtime == "ray":
        logger.info("standby  %s", describe_standby(plan.standby))
    if config.gateway_port is not None:
        ports = range(config.gateway_port, config.gateway_port + config.gateways)
        where = ", ".join(address_text(config.gateway.host, port) for port in ports)
        logger.info(
            "gateway  %s (%s)", where, "TLS" if config.gateway.tls_cert else "this machine only"
        )
    if port:
        where = address_text(config.metrics_host, port)
        logger.info("page     http://%s/ (this run live; its metrics at /metrics)", where)
    elif config.metrics_port is None:
        logger.warning(
            "page     none, and no metrics: nothing can listen at %s here", config.metrics_host
        )
    for flag, why in without_effect(config):
        logger.warning("%s has no effect %s", flag, why)


def _shapes(specs: object) -> str:
    return ", ".join(f"{key} {list(spec.shape)} {spec.dtype}" for key, spec in specs.items())  # type: ignore[attr-defined]
