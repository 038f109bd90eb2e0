"""``python -m worldloom_dist.launch``: train. Exit status 0 = completed, or stopped by the user
with a checkpoint; 2 = wrong input; 1 = anything else. Nothing is written or started before the
whole input has been checked.
"""

from __future__ import annotations

import dataclasses
import logging
import os
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
    TrainingError,
    WorldLoomError,
)
from worldloom.core.program import interruptible
from worldloom.envs.building import EnvBuildError
from worldloom.envs.thread_check import ThreadCheck
from worldloom_dist.run.announcing import announce, log_handlers_of_one_run, open_log
from worldloom_dist.run.checks import (
    check_address,
    check_gateways,
    check_watching,
    choose_port,
    with_usable_hosts,
)
from worldloom_dist.run.claim import Claim, choose_folder, claim_folder
from worldloom_dist.run.cli import parse, read_config
from worldloom_dist.run.closing import closing_lines, resume_command
from worldloom_dist.run.config import RunConfig
from worldloom_dist.run.folder import RunFolder
from worldloom_dist.run.machine import check_device
from worldloom_dist.run.precision import choose_precision, keep_precision
from worldloom_dist.run.presets import config_changes
from worldloom_dist.run.signals import EXIT_AGAIN, StopFlag, stop_on_signals
from worldloom_dist.run.view import read_view
from worldloom_dist.runtime.allocator import keep_freed_memory
from worldloom_dist.seeds import run_seeds, split_words

if TYPE_CHECKING:
    from worldloom_dist.run.console import Screen
    from worldloom_dist.run.plan import Plan

__all__ = ["main"]

logger = logging.getLogger("worldloom_dist")

USAGE_ERRORS = (ConfigurationError, MissingDependencyError, ModelNotFoundError)


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    wants_traceback = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        words, sweep = split_words(words)
        if "seeds" in sweep:
            return run_seeds(words, sweep)
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
    claim = Claim(folder)
    with log_handlers_of_one_run(), stop_on_signals() as stop:
        try:
            claim = claim_folder(config, folder, is_resumed=is_resumed)
            if config.runtime == "local":
                keep_freed_memory(is_training=True)
            end = run(plan, claim, port, stop, is_resumed=is_resumed, words=words)
            return EXIT_AGAIN if end == "stopped" and stop.asks_again else 0
        except (WorldLoomError, OSError, KeyboardInterrupt) as error:
            return _say_failure(error, claim, with_traceback=wants_traceback)


def _say_failure(error: BaseException, claim: Claim, *, with_traceback: bool) -> int:
    """One sentence on why a run ended; returns the exit status. The folder of a run that never
    began is deleted where the input is to blame, or nothing could be written.
    """
    if isinstance(error, KeyboardInterrupt):
        logger.error(
            "left at once; the last checkpoint is kept; go on with: %s", resume_command(claim.shown)
        )
        return 1
    if isinstance(error, OSError) and not isinstance(error, WorldLoomError):
        # a disk that is full or away; what was written before is whole
        is_run = (claim.path / "config.json").is_file()
        if not is_run:
            claim.discard()
        logger.error(
            "the run failed: %s; see that %s can be written, then %s",
            error,
            claim.shown,
            f"go on with: {resume_command(claim.shown)}" if is_run else "start it again",
            exc_info=with_traceback,
        )
        return 1
    # an env that cannot be built is no wrong input: it could be a moment ago
    if isinstance(error, USAGE_ERRORS) and not isinstance(error, EnvBuildError):
        logger.error("error: %s", error)
        claim.discard()
        return 2
    logger.error("the run failed: %s", error, exc_info=with_traceback)
    return 1


def prepare(config: RunConfig) -> tuple[Plan, Path, bool, int]:
    """Check the whole input; nothing is written or started.

    Returns:
        What runs, in which folder, whether a run in it goes on, and the port of the metrics.

    Raises:
        ConfigurationError, MissingDependencyError, ModelNotFoundError: If the input is wrong.
        CheckpointError: If the run that should go on has no checkpoint that fits.
    """
    from worldloom_dist.run.builders import check_checkpoints, check_new_store
    from worldloom_dist.run.drawing import drawable
    from worldloom_dist.run.initial_agent import check_initial
    from worldloom_dist.run.outcome import check_trains  # after --help, which answers at once
    from worldloom_dist.run.plan import resolve, resolve_again

    folder, is_resumed = choose_folder(config)
    precision_line = ""
    initial_lines: tuple[str, ...] = ()
    if is_resumed:
        RunFolder(folder).check_readable()
        config = keep_precision(config, read_config(folder))
    else:
        config, precision_line = choose_precision(config)
    config = with_usable_hosts(drawable(config))
    plan = resolve_again(config, RunFolder(folder)) if is_resumed else resolve(config)
    check_trains(plan)
    if is_resumed:
        check_checkpoints(plan, folder)
    else:
        check_new_store(plan, folder)
        initial_lines = check_initial(plan)
    port = choose_port(config)
    check_watching(config)
    # a remote cluster may have what this machine lacks
    if config.learner.device != "auto" and config.address is None:
        check_device("learner.device", config.learner.device)
    check_address(config)
    check_gateways(plan)
    plan = dataclasses.replace(plan, precision_line=precision_line, initial_lines=initial_lines)
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
    with log_handlers_of_one_run(), stop_on_signals() as stop:
        claim = claim_folder(config, folder, is_resumed=is_resumed)
        try:
            status = run(plan, claim, port, stop, is_resumed=is_resumed, words=words)
        except USAGE_ERRORS as error:
            if not isinstance(error, EnvBuildError):
                claim.discard()
            raise
    return claim.path, status


def run(
    plan: Plan,
    claim: Claim,
    port: int,
    stop: StopFlag,
    *,
    is_resumed: bool,
    words: Sequence[str] = (),
) -> str:
    """Open the run folder and hand over to the runtime; returns how the run ended.

    Args:
        plan: What runs.
        claim: On its folder.
        port: Of the metrics endpoint; 0 for none.
        stop: Asks the run to stop.
        is_resumed: True when it goes on.
        words: The command line, for ``command.txt``.

    Raises:
        WorldLoomError: If it fails; from the moment at which the run is known to work wrong input
            is not to blame, and what says so becomes a ``TrainingError``.
    """
    shown = claim.shown
    folder = RunFolder(claim.path)
    settings = (plan.config, plan.env_spec.to_dict(), dataclasses.asdict(plan.agent))  # type: ignore[call-overload]
    changed = config_changes(read_config(folder.path), plan.config) if is_resumed else []
    started_in = Path.cwd()
    folder.hold()
    claim.is_held = True
    run_id = folder.open(*settings, words, started_in)
    plan = dataclasses.replace(plan, run_id=run_id)
    screen = open_log(folder)
    try:
        announce(plan, shown, port, is_resumed=is_resumed, changed=changed)

        def note_begun() -> None:
            """The run is known to work with its settings."""
            claim.has_begun = True
            if is_resumed:
                folder.describe(*settings, words, started_in)

        status = run_plan(plan, folder, port, stop, screen, note_begun)
        screen.show_last(partial(read_view, folder.path))
    except USAGE_ERRORS as error:
        if claim.is_run and not isinstance(error, EnvBuildError):
            raise TrainingError(str(error)) from error
        raise
    finally:
        screen.close()
        folder.release()
    logger.info("%s; everything is in %s", status, shown)
    if status == "completed":
        for line in closing_lines(plan.config, shown, folder):
            logger.info("%s", line)
    else:
        logger.info("go on    %s", resume_command(shown))
    return status


def run_plan(
    plan: Plan,
    folder: RunFolder,
    port: int,
    stop: StopFlag,
    screen: Screen,
    on_restored: Callable[[], object],
) -> str:
    """Let the runtime run it; returns how it ended. ``on_restored`` is called when the run is known
    to work.
    """
    from worldloom_dist.run.loop import Run
    from worldloom_dist.run.report import Report

    config = plan.config
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


if __name__ == "__main__":
    sys.exit(main())
