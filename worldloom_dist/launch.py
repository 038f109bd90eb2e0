"""``python -m worldloom_dist.launch``: train. Exit status 0 = completed, or stopped by the user
with a checkpoint; 2 = wrong input; 1 = anything else. Nothing is written or started before the
whole input has been checked.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    ModelNotFoundError,
    WorldLoomError,
)
from worldloom.envs.building import EnvBuildError
from worldloom.envs.thread_check import ThreadCheck
from worldloom_dist.run.cli import parse, read_config
from worldloom_dist.run.closing import closing_lines
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.console import LogFile, Screen
from worldloom_dist.run.folder import RunFolder, choose_folder, claim_folder
from worldloom_dist.run.machine import check_device
from worldloom_dist.run.presets import config_changes, preset_changes
from worldloom_dist.run.signals import StopFlag, stop_on_signals
from worldloom_dist.run.view import read_view
from worldloom_dist.runtime.allocator import keep_freed_memory

if TYPE_CHECKING:
    from worldloom_dist.run.plan import Plan

__all__ = ["main"]

logger = logging.getLogger("worldloom_dist")

DEFAULT_PORT = 9464
PORTS_TRIED = 50
USAGE_ERRORS = (ConfigurationError, MissingDependencyError, ModelNotFoundError)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    wants_traceback = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        config = parse(words)
        plan, folder, is_resumed, port = prepare(config)
    except USAGE_ERRORS as error:
        if wants_traceback:
            raise
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return 2
    except CheckpointError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    is_new = not folder.exists()
    with stop_on_signals() as stop:
        try:
            folder = claim_folder(config, folder)
            if config.runtime == "local":
                keep_freed_memory(is_training=True)
            run(plan, RunFolder(folder), port, stop, is_resumed=is_resumed, words=words)
            return 0
        except EnvBuildError as error:  # no wrong input: it could be built a moment ago
            logger.error("the run failed: %s", error, exc_info=wants_traceback)
            return 1
        except USAGE_ERRORS as error:
            logger.error("error: %s", error)
            if is_new and not is_resumed:  # nothing ran: the next try finds no run there
                shutil.rmtree(folder, ignore_errors=True)
            return 2
        except WorldLoomError as error:
            logger.error("the run failed: %s", error, exc_info=wants_traceback)
            return 1
        except OSError as error:  # a disk that is full or away; what was written before is whole
            if is_new and not (folder / "config.json").is_file():  # there is no run to go on with
                shutil.rmtree(folder, ignore_errors=True)
                logger.error(
                    "the run failed: %s; see that %s can be written, then start it again",
                    error,
                    folder,
                    exc_info=wants_traceback,
                )
                return 1
            logger.error(
                "the run failed: %s; see that %s can be written, then go on with --resume %s",
                error,
                folder,
                shlex.quote(str(folder)),
                exc_info=wants_traceback,
            )
            return 1
        except KeyboardInterrupt:
            logger.error(
                "left at once; the last checkpoint is kept: go on with --resume %s",
                shlex.quote(str(folder)),
            )
            return 1


def prepare(config: RunConfig) -> tuple[Plan, Path, bool, int]:
    """Check the whole input; nothing is written or started.

    Returns:
        What runs, in which folder, whether a run in it goes on, and the port of the metrics.

    Raises:
        ConfigurationError, MissingDependencyError, ModelNotFoundError: If the input is wrong.
        CheckpointError: If the run that should go on has no checkpoint that fits.
    """
    from worldloom_dist.run.builders import check_checkpoints
    from worldloom_dist.run.outcome import check_trains  # after --help, which answers at once
    from worldloom_dist.run.plan import resolve, resolve_again

    folder, is_resumed = choose_folder(config)
    if is_resumed:
        RunFolder(folder).check_readable()
    plan = resolve_again(config, RunFolder(folder)) if is_resumed else resolve(config)
    check_trains(plan)
    if is_resumed:
        check_checkpoints(plan, folder)
    port = choose_port(config)
    check_watching(config)
    # a remote cluster may have what this machine lacks
    if config.learner.device != "auto" and config.address is None:
        check_device("learner.device", config.learner.device)
    check_address(config)
    check_gateways(plan)
    return plan, folder, is_resumed, port


def train(words: Sequence[str]) -> tuple[Path, str]:
    """The run of a command line, in this process and for a caller that goes on afterwards; errors
    are raised. Its lines appear as those of the command do.

    Returns:
        The run folder, and ``completed`` or ``stopped`` (by Ctrl-C, with a checkpoint).

    Raises:
        WorldLoomError: As the command would say it.
    """
    config = parse(words)
    plan, folder, is_resumed, port = prepare(config)
    is_new = not folder.exists()
    root = logging.getLogger()
    before = [*root.handlers]
    with stop_on_signals() as stop:
        folder = claim_folder(config, folder)
        try:
            status = run(plan, RunFolder(folder), port, stop, is_resumed=is_resumed, words=words)
        except USAGE_ERRORS:
            if is_new and not is_resumed:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            for handler in [*root.handlers]:
                if handler not in before:
                    root.removeHandler(handler)
                    handler.close()
            for handler in before:
                if handler not in root.handlers:
                    root.addHandler(handler)
    return folder, status


def run(
    plan: Plan,
    folder: RunFolder,
    port: int,
    stop: StopFlag,
    *,
    is_resumed: bool,
    words: Sequence[str] = (),
) -> str:
    """Open the run folder and hand over to the runtime; returns how the run ended.

    Args:
        plan: What runs.
        folder: Its folder.
        port: Of the metrics endpoint; 0 for none.
        stop: Asks the run to stop.
        is_resumed: True when it goes on.
        words: The command line, for ``command.txt``.
    """
    shown = folder.path
    folder = RunFolder(shown.absolute())  # an env may change the working directory
    settings = (plan.config, plan.env_spec.to_dict(), dataclasses.asdict(plan.agent))  # type: ignore[call-overload]
    changed = config_changes(read_config(folder.path), plan.config) if is_resumed else []
    run_id = folder.open(*settings, words)
    plan = dataclasses.replace(plan, run_id=run_id)
    screen = open_log(folder)
    try:
        announce(plan, shown, port, is_resumed=is_resumed, changed=changed)
        describe = partial(folder.describe, *settings, words) if is_resumed else None
        status = run_plan(plan, folder, port, stop, screen, describe)
        screen.show_last(partial(read_view, folder.path))
    finally:
        screen.close()
    logger.info("%s; everything is in %s", status, shown)
    if status == "completed":
        for line in closing_lines(plan.config, shown, folder):
            logger.info("%s", line)
    else:
        typed = shlex.quote(str(shown))
        logger.info("go on with: python -m worldloom_dist.launch --resume %s", typed)
    return status


def run_plan(
    plan: Plan,
    folder: RunFolder,
    port: int,
    stop: StopFlag,
    screen: Screen,
    describe: Callable[[], object] | None,
) -> str:
    """Let the runtime run it; returns how it ended. ``describe`` is called when a resumed run goes
    on.
    """
    from worldloom_dist.run.loop import Run
    from worldloom_dist.run.report import Report

    config = plan.config
    on_restored = describe or (lambda: None)
    report = Report(plan, folder, folder.read_json("summary.json"))
    if config.runtime == "local":
        from worldloom_dist.lockstep.runtime import LocalRuntime

        local = LocalRuntime(plan, folder, report, port, stop)
        status = Run(plan, folder, report, local, stop, screen.show, on_restored).run()
    else:
        from worldloom_dist.runtime.cluster import ray_cluster

        os.environ.setdefault("OMP_NUM_THREADS", "1")
        with (
            closing(ThreadCheck(plan.env)) as check,
            ray_cluster(config.address, plan.run_id) as watch,
        ):
            stop.listen()
            plan = dataclasses.replace(plan, needs_main_thread=check.result())
            if plan.needs_main_thread:
                why = plan.needs_main_thread
                logger.info(
                    "env      has processes of its own, because it does not work in a thread (%s)",
                    why,
                )
            from worldloom_dist.runtime.driver import RayRuntime

            on_ray = RayRuntime(plan, folder, report, port, watch)
            status = Run(plan, folder, report, on_ray, stop, screen.show, on_restored).run()
    return status


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
    if config.gateway_port is not None:
        ports = range(config.gateway_port, config.gateway_port + config.gateways)
        where = ", ".join(f"{config.gateway.host}:{port}" for port in ports)
        logger.info(
            "gateway  %s (%s)", where, "TLS" if config.gateway.tls_cert else "this machine only"
        )
    if port:
        logger.info("metrics  http://%s:%d/metrics", config.metrics_host, port)
    for flag, why in without_effect(config):
        logger.warning("%s has no effect %s", flag, why)


def without_effect(config: RunConfig) -> list[tuple[str, str]]:
    """Flags that were given and that this run does not use, with the reason."""
    given = [
        (
            "--inference central",
            "with --runtime local, where the policy lives beside its envs",
            config.runtime == "local" and config.inference == "central",
        ),
        (
            "--inference-servers",
            "with --runtime local, where the policy lives beside its envs",
            config.runtime == "local" and config.inference_servers != RunConfig().inference_servers,
        ),
        (
            "--gateways",
            "without --gateway-port",
            config.gateway_port is None and config.gateways != RunConfig().gateways,
        ),
        (
            "--gateway.*",
            "without --gateway-port",
            config.gateway_port is None and config.gateway != RunConfig().gateway,
        ),
        (
            "--train-steps",
            "with an env: the run ends after --env-steps",
            not config.env.is_none and config.train_steps != RunConfig().train_steps,
        ),
    ]
    return [(flag, why) for flag, why, is_idle in given if is_idle]


def choose_port(config: RunConfig) -> int:
    """The port of the metrics endpoint; 0 for none.

    Raises:
        ConfigurationError: If the user named a port that is taken.
    """
    if config.metrics_port == 0:
        return 0
    try:
        socket.getaddrinfo(config.metrics_host, None)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_host: {config.metrics_host!r} is no address of this machine ({error})"
        ) from error
    if config.metrics_port is not None:
        if not _is_free(config.metrics_host, config.metrics_port):
            raise ConfigurationError(
                f"metrics_port: {config.metrics_port} on {config.metrics_host} is in "
                "use; name another one, or leave the flag out "
                "to take the next free one, or 0 to serve no metrics"
            )
        return config.metrics_port
    free = (
        port
        for port in range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED)
        if _is_free(config.metrics_host, port)
    )
    return next(free, 0)


def check_watching(config: RunConfig) -> None:
    """Refuse a secret of the endpoint that is none, and a sink whose package is missing.

    Raises:
        ConfigurationError, MissingDependencyError: With what to do.
    """
    from worldloom_dist.metrics.endpoint import read_secret
    from worldloom_dist.metrics.sinks import check_sinks

    read_secret(config.metrics_auth_file)
    check_sinks(tensorboard=config.tensorboard, wandb=config.wandb)


def check_gateways(plan: Plan) -> None:
    """Refuse gateways that cannot be opened, or would not be safe, before anything is written.

    Raises:
        ConfigurationError: Says why, and what to do.
    """
    config = plan.config
    if config.gateway_port is None:
        return
    from worldloom_dist.gateway.building import access_of
    from worldloom_dist.gateway.contract import check_specs

    access_of(config.gateway).check()
    check_specs(plan.env_spec)
    for port in range(config.gateway_port, config.gateway_port + config.gateways):
        if config.address is None and not _is_free(config.gateway.host, port):
            raise ConfigurationError(
                f"gateway_port: nothing can listen at {config.gateway.host}:{port}; name another "
                "port, and an address of this machine"
            )


def check_address(config: RunConfig) -> None:
    """Refuse an address where nothing listens, before anything is written.

    Raises:
        ConfigurationError: If HOST:PORT does not accept a connection.
    """
    host, colon, port = (config.address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # none, or a word like auto, which Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=3.0).close()
    except OSError as error:
        raise ConfigurationError(
            f"address: nothing answers at {config.address} ({error}); start a cluster there first"
        ) from error


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _shapes(specs: object) -> str:
    return ", ".join(f"{key} {list(spec.shape)} {spec.dtype}" for key, spec in specs.items())  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
