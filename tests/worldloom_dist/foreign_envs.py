"""Envs that do to their process what libraries and students do; each works, so a run with it must
too.
"""

import asyncio
import logging
import os
import signal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces


class Ordinary(gymnasium.Env):
    """Three numbers in, two out, episodes of 20 steps."""

    observation_space = spaces.Box(-10, 10, (3,))
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action):
        self.steps += 1
        return self._obs(), float(-abs(action[0])), False, self.steps >= 20, {}

    def _obs(self):
        return np.array([self.steps / 20, 0.5, -0.5], np.float32)


class MovesInInit(Ordinary):
    def __init__(self):
        os.chdir(os.environ["ELSEWHERE"])


class MovesInReset(Ordinary):
    def reset(self, **options):
        os.chdir(os.environ["ELSEWHERE"])
        return super().reset(**options)


class Careless(Ordinary):
    """Turns off gradients, logging and Ctrl-C; sends the run the signal that it no longer handles
    after 100 steps.
    """

    stops_after = 10**9
    total = 0

    def reset(self, **options):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return super().reset(**options)

    def step(self, action):
        torch.set_grad_enabled(False)
        logging.disable()
        Careless.total += 1
        if Careless.total == Careless.stops_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


class NeedsMainThread(Ordinary):
    """Handles a signal, and asks for its thread's event loop, as some robot and simulator drivers
    do.
    """

    def __init__(self):
        former = signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGTERM, former)
        self.loop = asyncio.new_event_loop()

    def close(self):
        self.loop.close()


class Deadly(Ordinary):
    """Ends its process, as a simulator that crashes does."""

    def step(self, action):
        os._exit(3)


class FourValues(Ordinary):
    """Steps as envs of the old gym did."""

    def step(self, action):
        obs, reward, _, done, info = super().step(action)
        return obs, reward, done, info
