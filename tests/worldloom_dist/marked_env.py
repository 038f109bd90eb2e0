"""An env with one reward and one picture that occur nowhere else, see ``tests.row_path``."""

import gymnasium
import numpy as np
from gymnasium import spaces

from tests.row_path import MARKED_PIXEL, MARKED_REWARD, MARKED_STEP


class Marked(gymnasium.Env):
    """Episodes of 12 steps."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (64, 64, 3), np.uint8),
            "state": spaces.Box(0, 12, (2,), np.float64),
        }
    )
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        reward = MARKED_REWARD if self.steps == MARKED_STEP else 0.5
        return self._obs(), reward, False, self.steps >= 12, {}

    def _obs(self):
        camera = np.full((64, 64, 3), MARKED_PIXEL, np.uint8)
        return {"camera": camera, "state": np.full(2, float(self.steps))}
