"""Train a dreamerv3 world model on MuJoCo data that collect_mujoco.py recorded.

python examples/collect_mujoco.py --env HalfCheetah-v5 --episodes 100
python examples/train_dreamer_mujoco.py --data mujoco_data.npz --steps 100000
"""

import offline

FIELDS = {"deter_dim": int, "hidden_dim": int}

if __name__ == "__main__":
    flags = offline.parser(
        __doc__,
        size="size12m",
        batch_size=16,
        seq_len=50,
        lr=3e-4,
        output_dir="./outputs/dreamer_mujoco",
        data="mujoco_data.npz",
    )
    for name, kind in FIELDS.items():
        flags.add_argument("--" + name.replace("_", "-"), type=kind, help="setting of the model")
    args = flags.parse_args()
    settings = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}
    offline.run("dreamerv3", args, obs_shape=(17,), action_dim=6, **settings)
