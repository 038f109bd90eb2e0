"""Train a DreamerV3 world model offline.

python examples/train_dreamer.py --test  # a minute's trial on random data
python examples/train_dreamer.py --data trajectories.npz --steps 100000
"""

import offline

if __name__ == "__main__":
    flags = offline.parser(
        __doc__, size="size12m", batch_size=16, seq_len=50, lr=3e-4, output_dir="./outputs/dreamer"
    )
    offline.run("dreamerv3", flags.parse_args(), obs_shape=(3, 64, 64), action_dim=4)
