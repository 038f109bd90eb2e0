"""An environment that is registered with RLlib / Tune, by its name: every name that Ray's registry
knows is an ``--env``.

python examples/rllib_env.py  # train on it through the distributed system
python examples/rllib_env.py --preset debug --env-steps 500
"""

import sys

from custom_env import Thermostat
from ray.tune import register_env

from worldloom_dist.launch import main

if __name__ == "__main__":
    register_env("thermostat", lambda env_config: Thermostat(**env_config))
    sys.exit(main(["--env", "rllib:thermostat", *sys.argv[1:]]))
