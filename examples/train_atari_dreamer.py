"""Train DreamerV3 on Atari images that collect_atari.py recorded, and draw what it imagines.

python examples/collect_atari.py --env Breakout --episodes 100
python examples/train_atari_dreamer.py --data atari_data.npz --steps 100000
"""

from pathlib import Path

import offline

from worldloom.evaluation import visualize_imagination

if __name__ == "__main__":
    flags = offline.parser(
        __doc__,
        size="size12m",
        batch_size=16,
        seq_len=50,
        lr=3e-4,
        output_dir="./outputs/atari",
        data="atari_data.npz",
    )
    flags.set_defaults(steps=10_000)
    flags.add_argument("--deter-dim", type=int, help="size of the recurrent state")
    flags.add_argument("--hidden-dim", type=int, help="width of the MLPs")
    flags.add_argument("--cnn-depth", type=int, help="channel base of the convolutions")
    args = flags.parse_args()
    names = ("deter_dim", "hidden_dim", "cnn_depth")
    sizes = {name: getattr(args, name) for name in names if getattr(args, name)}
    model, buffer = offline.run("dreamerv3", args, obs_shape=(3, 64, 64), action_dim=4, **sizes)
    horizon = min(15, args.seq_len - 5)
    picture = visualize_imagination(
        model, buffer, Path(args.output_dir) / "imagination_rollout.png", horizon=horizon
    )
    print(f"drew {picture}")
