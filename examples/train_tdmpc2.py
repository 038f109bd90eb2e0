"""Train a TD-MPC2 world model offline.

python examples/train_tdmpc2.py --test
python examples/train_tdmpc2.py --data trajectories.npz --steps 100000
"""

import offline

if __name__ == "__main__":
    flags = offline.parser(
        __doc__, size="5m", batch_size=256, seq_len=10, lr=1e-4, output_dir="./outputs/tdmpc2"
    )
    flags.add_argument("--obs-dim", type=int, default=39, help="with --test")
    flags.add_argument("--action-dim", type=int, default=6, help="with --test")
    args = flags.parse_args()
    offline.run("tdmpc2", args, obs_shape=(args.obs_dim,), action_dim=args.action_dim)
