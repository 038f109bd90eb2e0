"""Your own environment in ten lines: any class with Gymnasium's ``reset`` and ``step``, reached as
``module:callable``.

python -m worldloom_dist.check_env custom_env:Thermostat  # from this folder: is it fit to train on?
python -m worldloom_dist.launch --env custom_env:Thermostat  # train on it
"""

import gymnasium
import numpy as np


class Thermostat(gymnasium.Env):
    """Keep a room at 20 degrees while the weather changes; episodes have 60 decisions."""

    observation_space = gymnasium.spaces.Box(-5.0, 5.0, (2,), np.float32)
    # any bounds: agents act in [-1, 1]
    action_space = gymnasium.spaces.Box(0.0, 3.0, (1,), np.float32)
    may_terminate = False
    episode_limit = 60

    def reset(self, *, seed=None, options=None):
        """Begin an episode."""
        super().reset(seed=seed)
        self.room, self.outside, self.t = (
            self.np_random.uniform(10, 25),
            self.np_random.uniform(-5, 15),
            0,
        )
        return self.look(), {}

    def step(self, action):
        """Heat for a while: observation, reward, terminated, truncated, info."""
        self.room += 0.1 * (self.outside - self.room) + float(action[0])
        self.t += 1
        return self.look(), -abs(self.room - 20) / 10, False, self.t == 60, {}

    def look(self):
        """What the thermostat sees: both temperatures, around zero and about one in size."""
        return np.clip(np.array([self.room - 20, self.outside - 20]) / 10, -5, 5).astype(np.float32)
