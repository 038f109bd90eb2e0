"""The ``worldloom`` command: look at presets and saved models, measure them, draw what they
imagine.

``worldloom imagine --model FOLDER --data FILE.npz``; ``worldloom --help`` lists the rest. Training
has a Python API (``worldloom.training``) and, with actors, ``python -m worldloom_dist.launch``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from worldloom.core.exceptions import CheckpointError, ConfigurationError, WorldLoomError
from worldloom.core.fields import NOT_NEGATIVE, Bounds, checked
from worldloom.core.files import expanded, write_json
from worldloom.core.json_text import to_json

__all__ = ["main"]

TEST_HORIZON = 4


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 2 wrong input (also unreadable files),
    1 anything else.
    """
    options = _parser().parse_args(words)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
    except WorldLoomError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigurationError | CheckpointError | ValueError) else 1
    except OSError as error:
        sys.stderr.write(
            f"error: {error.filename or 'output'}: cannot be written ({error.strerror or error})\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="worldloom", description="Latent world models behind one interface."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    models = commands.add_parser("models", help="list the presets")
    models.set_defaults(run=_models)
    info = commands.add_parser("info", help="settings of a preset or a saved model, as JSON")
    info.add_argument("model", help="a preset, an alias, or the folder of a saved model")
    info.set_defaults(run=_info)
    evaluate = commands.add_parser("evaluate", help="errors of a model on sequences, as JSON")
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
    from worldloom.factory import MODEL_CATALOG

    width = max(map(len, MODEL_CATALOG))
    for name, entry in MODEL_CATALOG.items():
        _say(f"{name:<{width}}  {entry['params'] / 1e6:7.1f} M  {entry['description']}")


def _info(options: argparse.Namespace) -> None:
    from worldloom.factory import get_config

    _say(json.dumps(get_config(options.model).to_dict(), indent=2))


def _evaluate(options: argparse.Namespace) -> None:
    report = _report(options, *_model_and_data(options))
    _say(to_json(report.to_dict(), indent=2))


def _imagine(options: argparse.Namespace) -> None:
    from worldloom.evaluation import plot_open_loop, plot_predictions, visualize_imagination

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
