"""Make the pictures of a demo: train DreamerV3 on a game of squares, and draw what it foresees
beside what came.

python scripts/create_demo_gif.py  # some minutes on a CPU; writes assets/*.gif and *.png
python scripts/create_demo_gif.py --test --skip-gifs   # seconds, and the pictures mean nothing
"""

import argparse
from pathlib import Path

from worldloom import create_world_model
from worldloom.core.exceptions import WorldLoomError
from worldloom.envs.config import EnvConfig
from worldloom.evaluation import evaluate_world_model, plot_open_loop, visualize_imagination
from worldloom.training import train
from worldloom.training.collect import collect_buffer

SIZES = {
    "deter_dim": 256,
    "hidden_dim": 128,
    "stoch_discrete": 16,
    "stoch_classes": 16,
    "cnn_depth": 8,
}
"""Between the presets ci and size12m: learns the game in minutes on a CPU."""


def make(args):
    """Record, train, draw; returns the files made."""
    folder = Path(args.output)
    buffer = collect_buffer(EnvConfig(env="toy:pixel"), args.episodes, max_steps=60, seed=args.seed)
    sizes = {} if args.test else SIZES
    model = create_world_model(
        "dreamerv3:ci", obs_shape=buffer.obs_shape, action_dim=buffer.action_dim, **sizes
    )
    fields = (
        {"batch_size": 2, "sequence_length": 8, "eval_batches": 1}
        if args.test
        else {"batch_size": 8, "sequence_length": 24}
    )
    train(
        model,
        buffer,
        total_steps=args.steps,
        learning_rate=4e-4,
        output_dir=str(folder / "training"),
        **fields,
    )
    view = {"horizon": 4 if args.test else 15, "warm_up": 3}
    endings = [".png"] if args.skip_gifs else [".png", ".gif"]
    made = [
        visualize_imagination(model, buffer, folder / f"imagination{ending}", **view)
        for ending in endings
    ]
    report = evaluate_world_model(model, buffer, **view, batch_size=4, held_out=(10, True))
    return [*made, plot_open_loop(report, folder / "open_loop.png")]


if __name__ == "__main__":
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--output", default="assets", help="folder of the pictures")
    flags.add_argument("--skip-gifs", action="store_true", help="draw still pictures only")
    flags.add_argument("--episodes", type=int, default=100)
    flags.add_argument("--steps", type=int, default=1500, help="updates")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument(
        "--test", action="store_true", help="the smallest size, for trying the script"
    )
    args = flags.parse_args()
    if args.test:
        args.episodes = 11
        args.steps = 1
    try:
        made = make(args)
    except WorldLoomError as error:
        raise SystemExit(f"error: {error}") from error
    print("made " + ", ".join(str(path) for path in made))
