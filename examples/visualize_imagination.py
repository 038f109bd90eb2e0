"""Draw what a world model imagines beside what came, and measure it.

python examples/visualize_imagination.py --model ./outputs/dreamer/model --data trajectories.npz --all
"""

import argparse
import json
from pathlib import Path

from worldloom import create_world_model
from worldloom.core.exceptions import WorldLoomError
from worldloom.evaluation import evaluate_world_model, plot_open_loop, plot_predictions, visualize_imagination
from worldloom.training import ReplayBuffer
from worldloom.training.data import create_random_buffer

if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--model", default="dreamerv3:ci", help="a saved model, or a preset")
    flags.add_argument("--data", default="random", help="an .npz of episodes, or random")
    flags.add_argument("--horizon", type=int, default=20)
    flags.add_argument("--output-dir", default="./outputs/imagination")
    flags.add_argument("--all", action="store_true", help="also a GIF, the prediction plots and the numbers")
    flags.add_argument("--test", action="store_true", help="a tiny model, random data, four steps")
    args = flags.parse_args()
    horizon, folder = 4 if args.test else args.horizon, Path(args.output_dir)
    try:
        model = create_world_model(args.model)
        shape, width = model.config.obs_shape, model.config.action_dim
        random = args.data == "random"
        buffer = create_random_buffer(400, shape, width, 5, horizon + 10, seed=0) if random else ReplayBuffer.load(args.data)
        made = [visualize_imagination(model, buffer, folder / "imagination.png", horizon=horizon)]
        if args.all or args.test:
            made.append(visualize_imagination(model, buffer, folder / "imagination.gif", horizon=horizon))
            report = evaluate_world_model(model, buffer, horizon=horizon, batch_size=2 if args.test else 16)
            made += [plot_predictions(report, folder / "predictions.png"), plot_open_loop(report, folder / "open_loop.png")]
            (folder / "report.json").write_text(json.dumps(report.to_dict(), indent=2))
    except WorldLoomError as error:
        raise SystemExit(f"error: {error}") from error
    print("drew " + ", ".join(str(path) for path in made))
