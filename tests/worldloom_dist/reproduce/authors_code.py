"""A checkout with the outline of the TD-MPC2 authors' code, and next to nothing in it: what the
adapter reads, patches and restores.
"""

from pathlib import Path

FILES = {
    "config.yaml": "task: none\nsteps: 100\nbatch_size: 256\nvmin: -10\nvmax: +10\nnum_bins: 101\n"
    "eval_freq: 20_000\neval_episodes: 10\nlr: 3e-4\nobs: state\nsave_video: true\n",
    "common/__init__.py": "MODEL_SIZE = {1: {'mlp_dim': 384}, 5: {'mlp_dim': 512}}\n",
    "common/buffer.py": """
import torch


class Buffer:
    def __init__(self, cfg):
        self.device = torch.device('cuda:0')
        self.episodes = []

    def add(self, episode):
        assert torch.cuda.mem_get_info() == (0, 0)
        self.episodes.append(episode)
        return len(self.episodes)
""",
    "envs/__init__.py": """
import random
from types import SimpleNamespace

import numpy as np


class Inner:
    def __init__(self, seed):
        self.task = SimpleNamespace(random=np.random.RandomState(seed))


class Space:
    def __init__(self):
        self.np_random = np.random.default_rng(3)


class Env:
    def __init__(self, seed):
        self.env = Inner(seed)
        self.action_space = Space()
        self.t = 0

    def reset(self):
        self.t = 0
        return self.env.task.random.rand()

    def step(self, action):
        self.t += 1
        reward = float(self.env.task.random.rand() + random.random())
        return reward, reward, self.t == 5, {}


def make_env(cfg):
    cfg.seed_steps = 1000
    assert cfg.get('task') == 'cup-catch'
    return Env(cfg.seed)
""",
    "tdmpc2.py": """
import torch


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('value', torch.ones(1))


class TDMPC2:
    def __init__(self, cfg):
        self.device = torch.device('cuda:0')
        assert cfg.mlp_dim == 384
        self.model = torch.nn.Linear(1, 1)
        self.scale = Scale()
        self.optim = torch.optim.Adam(self.model.parameters(), lr=cfg.lr, capturable=True)
        self.pi_optim = torch.optim.Adam(self.model.parameters(), lr=cfg.lr, capturable=True)
""",
    "trainer/__init__.py": "",
    "trainer/online_trainer.py": """
import time

import torch


class OnlineTrainer:
    def __init__(self, cfg, env, agent, buffer, logger):
        self.cfg, self.env, self.agent = cfg, env, agent
        self.buffer, self.logger = buffer, logger
        self._step = 0
        self._ep_idx = 0

    def eval(self):
        for _ in range(self.cfg.eval_episodes):
            self.env.reset()
            done = False
            while not done:
                _, _, done, _ = self.env.step(None)
        return {'episode_reward': 0.0}

    def train(self):
        done, wants_eval = True, False
        while self._step <= self.cfg.steps:
            wants_eval = wants_eval or self._step % self.cfg.eval_freq == 0
            if done:
                if wants_eval:
                    self.logger.log({**self.eval(), 'step': self._step}, 'eval')
                    wants_eval = False
                if self._step > 0:
                    total = torch.cat(self._tds[1:]).sum()
                    self.logger.log({'episode_reward': total, 'step': self._step}, 'train')
                    self._ep_idx = self.buffer.add(torch.cat(self._tds))
                self.env.reset()
                self._tds = [torch.zeros(1)]
            _, reward, done, _ = self.env.step(None)
            self._tds.append(torch.tensor([reward]))
            loss = self.agent.model(torch.rand(1, 1)).sum()
            loss.backward()
            self.agent.optim.step()
            self._step += 1
            time.sleep(self.cfg.get('slow', 0.0))
        self.logger.finish(self.agent)
""",
}


def make_checkout(folder: Path) -> Path:
    """Write the files; returns the checkout."""
    for name, text in FILES.items():
        path = folder / "tdmpc2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
