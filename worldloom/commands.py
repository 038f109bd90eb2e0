"""The ``worldloom`` command: train, evaluate and watch agents, export and share them; look at
presets and saved models, measure them, draw what they imagine.

What trains and watches is ``worldloom_dist``: ``worldloom train`` is ``python -m
worldloom_dist.launch``, and so on, with the same flags. ``worldloom --help`` lists all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from worldloom import __version__
from worldloom.completion import SHELLS, completions
from worldloom.core.exceptions import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    WorldLoomError,
    nearest,
)
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.files import expanded, write_json
from worldloom.core.json_text import to_json
from worldloom.core.program import interruptible
from worldloom.distributed import distributed
from worldloom.export import command as export_command
from worldloom.hub import command as hub_command

__all__ = ["main"]

TEST_HORIZON = 4
KINDS = ("agents", "envs", "sinks")
"""Of ``worldloom list``; see :data:`worldloom.catalogue.LISTS`."""
RUN_COMMANDS = {
    "train": ("launch", "train an agent; without any flag the quick demo"),
    "evaluate": ("evaluate", "play episodes with a run's checkpoint: evaluate RUN"),
    "enjoy": ("enjoy", "watch a run's agent play, in a window or as a video"),
    "plot": ("plot", "curves of runs, as a picture or a table"),
    "report": ("report", "a run's page as one HTML file, with its numbers and films inside"),
    "status": ("status", "what a run does, or how it ended"),
    "runs": ("runs", "a table of the runs below a folder, with filters"),
    "doctor": ("doctor", "is this machine, or a cluster, ready?"),
    "check-env": ("check_env", "look an environment over before training in it"),
    "data": ("replay.__main__", "rows into and out of a run: data import|export|verify"),
    "serve": ("serve", "answer programs anywhere with a trained policy, over gRPC"),
    "reproduce": ("reproduce", "a published result by name, beside its published numbers"),
    "submit": ("submit", "train on a cluster, as a job of Ray or Slurm"),
}
"""Command -> its module below ``worldloom_dist``, and its help."""
MODEL_FLAGS = ("--model", "--data", "--horizon", "--seed", "--test")
"""Flags of ``evaluate`` that measure a world model instead of playing."""
WRONG_INPUT = (ConfigurationError, CheckpointError, MissingDependencyError, ValueError)


@interruptible
def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 wrong input (also unreadable files),
    1 anything else.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words:
        _parser().print_help()
        return 0
    find_modules_here()
    if words[:1] == ["__complete"]:
        sys.stdout.writelines(f"{name}\n" for name in completions(words[1:], _names()))
        return 0
    if words and words[0] in RUN_COMMANDS and not _is_about_a_model(words):
        return _of_run(words[0], words[1:])
    if not words[0].startswith("-") and words[0] not in _names():
        sys.stderr.write(
            f"error: {words[0]}: no such command{nearest(words[0], _names())} "
            "(worldloom --help lists all)\n"
        )
        return 2
    options = _parser().parse_args(words)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except WorldLoomError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, WRONG_INPUT) else 1
    return 0


def find_modules_here() -> None:
    """Let ``--env my_env:Room`` be found in the folder where the command is typed: ``python -m``
    looks there, a console script does not.
    """
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def _is_about_a_model(words: Sequence[str]) -> bool:
    """``evaluate --model M`` measures a world model, as it did before there were runs."""
    given = {word.partition("=")[0] for word in words[1:]}
    return words[0] == "evaluate" and bool(given & set(MODEL_FLAGS))


def _of_run(command: str, words: Sequence[str]) -> int:
    try:
        module = distributed(RUN_COMMANDS[command][0], f"worldloom {command}")
    except MissingDependencyError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    status: int = module.main(words)
    return status


def _names() -> list[str]:
    return [*RUN_COMMANDS, "export", "push", "models", "list", "info", "imagine", "completion"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worldloom", description="World models and agents: train, watch, measure, use."
    )
    parser.add_argument("--version", action="version", version=f"worldloom {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, text) in RUN_COMMANDS.items():
        if name != "evaluate":
            commands.add_parser(name, help=text)
    export_command.add_parser(commands)
    hub_command.add_parser(commands)
    completion = commands.add_parser("completion", help="lines that a shell completes words with")
    completion.add_argument("shell", choices=list(SHELLS), help="source <(worldloom completion X)")
    completion.set_defaults(run=lambda options: sys.stdout.write(SHELLS[options.shell]))
    models = commands.add_parser("models", help="list the presets of world models and agents")
    models.set_defaults(run=_models)
    catalogue = commands.add_parser(
        "list", help="agents, env suites and sinks, ours and those of installed packages"
    )
    catalogue.add_argument("kind", nargs="?", choices=KINDS, help="one of them (default: all)")
    catalogue.set_defaults(run=_list)
    info = commands.add_parser("info", help="settings of a preset or a saved model, as JSON")
    info.add_argument("model", help="a preset, an alias, or the folder of a saved model")
    info.set_defaults(run=_info)
    evaluate = commands.add_parser(
        "evaluate",
        help=f"{RUN_COMMANDS['evaluate'][1]}; or errors of a world model: evaluate --model M",
    )
    evaluate.set_defaults(run=_evaluate)
    imagine = commands.add_parser("imagine", help="draw what a model imagines beside what came")
    imagine.add_argument(
        "--output-dir",
        default="./outputs/imagination",
        help="where pictures go (default: %(default)s)",
    )
    imagine.add_argument(
        "--all", action="store_true", help="also a GIF, the prediction plots and the numbers"
    )
    imagine.set_defaults(run=_imagine)
    for command in (evaluate, imagine):
        command.add_argument(
            "--model",
            default="dreamerv3:ci",
            help="a saved model, or a preset (default: %(default)s)",
        )
        command.add_argument(
            "--data", default="random", help="an .npz of episodes, or random (default: %(default)s)"
        )
        command.add_argument(
            "--horizon", type=int, default=20, help="steps to imagine (default: %(default)s)"
        )
        command.add_argument(
            "--seed", type=int, default=0, help="of the draws (default: %(default)s)"
        )
        command.add_argument(
            "--test",
            action="store_true",
            help=f"a quick trial: {TEST_HORIZON} steps, everything drawn",
        )
    return parser


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _models(options: argparse.Namespace) -> None:
    from worldloom.catalogue import model_lines

    _say("\n".join(model_lines()))


def _list(options: argparse.Namespace) -> None:
    from worldloom.catalogue import list_lines

    _say("\n".join(list_lines(options.kind)))


def _info(options: argparse.Namespace) -> None:
    from worldloom.factory import get_config

    _say(json.dumps(get_config(options.model).to_dict(), indent=2))


def _evaluate(options: argparse.Namespace) -> None:
    report = _report(options, *_model_and_data(options))
    _say(to_json(report.to_dict(), indent=2))


def _imagine(options: argparse.Namespace) -> None:
    from worldloom.evaluation import plot_open_loop, plot_predictions, visualize_imagination
    from worldloom.evaluation.plots import check_plots
    from worldloom.evaluation.visualize import check_picture

    check_picture("imagination.png")
    if options.all or options.test:
        check_plots()
    (model, buffer), folder = _model_and_data(options), expanded(options.output_dir, "--output-dir")
    view = {"horizon": _horizon(options), "seed": options.seed}
    made = [visualize_imagination(model, buffer, folder / "imagination.png", **view)]
    if options.all or options.test:
        made.append(visualize_imagination(model, buffer, folder / "imagination.gif", **view))
        report = _report(options, model, buffer)
        made += [
            plot_predictions(report, folder / "predictions.png"),
            plot_open_loop(report, folder / "open_loop.png"),
        ]
        write_json(folder / "report.json", report.to_dict())
    _say("drew " + ", ".join(str(path) for path in made))


def _horizon(options: argparse.Namespace) -> int:
    return (
        TEST_HORIZON if options.test else int(checked("--horizon", options.horizon, int, Bounds(1)))
    )


def _model_and_data(options: argparse.Namespace) -> tuple[Any, Any]:
    from worldloom.factory import create_world_model
    from worldloom.training.data import ReplayBuffer, create_random_buffer

    checked("--seed", options.seed, int, NOT_NEGATIVE)
    if options.data == "random":
        model = create_world_model(options.model)
        shape = model.config.obs_shape
        width = model.config.action_dim
        return model, create_random_buffer(
            400, shape, width, 5, _horizon(options) + 10, seed=options.seed
        )
    buffer = ReplayBuffer.load(options.data)
    return create_world_model(
        options.model, obs_shape=buffer.obs_shape, action_dim=buffer.action_dim
    ), buffer


def _report(options: argparse.Namespace, model: Any, buffer: Any) -> Any:
    from worldloom.evaluation import evaluate_world_model

    count = 2 if options.test else 16
    return evaluate_world_model(
        model, buffer, horizon=_horizon(options), batch_size=count, seed=options.seed
    )
