"""Record Atari episodes of a random player as an .npz: obs (channels first), actions_onehot as
actions, rewards, dones.

python examples/collect_atari.py --env Breakout --episodes 100       # a random player
python examples/collect_atari.py --run runs/atari-0001 --episodes 10  # the policy of a training run
"""

import argparse
from pathlib import Path

from worldloom.core.exceptions import WorldLoomError
from worldloom.envs.config import EnvConfig
from worldloom.training.collect import collect_buffer

if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--env", default="Breakout", help="name of the game, without --run")
    flags.add_argument("--episodes", type=int, default=100)
    flags.add_argument("--output", default="atari_data.npz")
    flags.add_argument("--no-preprocess", action="store_true", help="keep the full 210x160 screen")
    flags.add_argument("--size", type=int, default=64, help="height and width of the images")
    flags.add_argument("--max-steps", type=int, default=5000, help="decisions per episode")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument(
        "--run",
        type=Path,
        help="let the policy of this run folder play, in the env that it was trained in",
    )
    flags.add_argument("--test", action="store_true", help="two short episodes")
    args = flags.parse_args()
    if args.test:
        args.episodes = 2
        args.max_steps = 20
    size = {} if args.no_preprocess else {"image_size": args.size}
    output = Path(args.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)  # before hours of play
        output.touch()
    except OSError as error:
        raise SystemExit(f"error: --output: {error}") from error
    try:
        config = EnvConfig(
            env=f"atari:{args.env.lower()}", grayscale=False, full_actions=False, **size
        )
        policy = None
        if args.run:
            from worldloom_dist.evaluate import load_policy

            config, policy = load_policy(args.run)
        buffer = collect_buffer(
            config, args.episodes, policy=policy, max_steps=args.max_steps, seed=args.seed
        )
        buffer.save(args.output)
    except (WorldLoomError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(
        f"{buffer.num_episodes} episodes, {len(buffer)} transitions of "
        f"{buffer.obs_shape} in {args.output}"
    )
