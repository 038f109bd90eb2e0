"""Record episodes of a continuous-control environment as an .npz; actions are in [-1, 1].

python examples/collect_mujoco.py --env HalfCheetah-v5 --episodes 100      # a random player
python examples/collect_mujoco.py --run runs/quick-0001 --episodes 100  # the policy of a training
run
"""

import argparse
from pathlib import Path

import numpy as np

from worldloom.core.exceptions import WorldLoomError
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec
from worldloom.training.collect import collect_buffer

ENVS = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Pendulum-v1",
)

if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument(
        "--env",
        default="HalfCheetah-v5",
        help="any Gymnasium id with continuous actions, without --run",
    )
    flags.add_argument("--episodes", type=int, default=100)
    flags.add_argument("--output", default="mujoco_data.npz")
    flags.add_argument("--max-steps", type=int, default=1000, help="decisions per episode")
    flags.add_argument(
        "--action-noise",
        type=float,
        help="Gaussian actions of this width around zero instead of uniform ones",
    )
    flags.add_argument("--list-envs", action="store_true")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument(
        "--run",
        type=Path,
        help="let the policy of this run folder play, in the env that it was trained in",
    )
    flags.add_argument("--test", action="store_true", help="two short episodes of Pendulum")
    args = flags.parse_args()
    if args.list_envs:
        print("\n".join(ENVS))
        raise SystemExit
    if args.test:
        args.env = "Pendulum-v1"
        args.episodes = 2
        args.max_steps = 20
    output = Path(args.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)  # before hours of play
        output.touch()
    except OSError as error:
        raise SystemExit(f"error: --output: {error}") from error
    try:
        config = EnvConfig(env=args.env)
        policy = None
        if args.run:
            from worldloom_dist.evaluate import load_policy

            config, policy = load_policy(args.run)
        elif args.action_noise:
            actions = list(env_spec(config).action.values())
            if len(actions) != 1:
                raise SystemExit("error: --action-noise is for envs with one array of actions")
            (action,) = actions
            rng = np.random.default_rng(args.seed)
            policy = lambda obs: rng.normal(0.0, args.action_noise, action.shape).clip(-1, 1)  # noqa: E731
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
