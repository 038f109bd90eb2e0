"""Train a tdmpc2 world model on MuJoCo data that collect_mujoco.py recorded.

python examples/collect_mujoco.py --env HalfCheetah-v5 --episodes 100
python examples/train_tdmpc2_mujoco.py --data mujoco_data.npz --steps 100000
"""

import offline

FIELDS = {"latent_dim": int, "hidden_dim": int, "gamma": float}

if __name__ == "__main__":
    flags = offline.parser(
        __doc__,
        size="5m",
        batch_size=256,
        seq_len=10,
        lr=1e-4,
        output_dir="./outputs/tdmpc2_mujoco",
        data="mujoco_data.npz",
    )
    for name, kind in FIELDS.items():
        flags.add_argument("--" + name.replace("_", "-"), type=kind, help="setting of the model")
    args = flags.parse_args()
    settings = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    offline.run("tdmpc2", args, obs_shape=(17,), action_dim=6, **settings)
