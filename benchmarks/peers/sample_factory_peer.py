"""How many decisions per second Sample Factory's sampler makes: what ``benchmarks/sampling.py``
compares with.

    python -m venv DIR && DIR/bin/pip install sample-factory==2.1.1 torch==2.13.0 ale-py==0.12.1
    "gymnasium[mujoco]<1"
    DIR/bin/python benchmarks/peers/sample_factory_peer.py pong --workers 2 --envs 8 --seconds 20  #
    prints one line of JSON

Its own ``SyncSamplingAPI``: rollout workers in processes of their own with two splits of envs each,
one inference process on the CPU, trajectories of 32 steps that are copied out of the shared buffers
and dropped. It has no sampler without a policy, so the encoder ignores what it sees and gives a
constant, which makes actions random and inference nearly free. Pong is ALE itself: four frames per
decision, maximum of the last two, 64x64 RGB as DreamerV3 and we shrink images (Pillow, bilinear);
``pong_area`` lets OpenCV average areas, which takes 60 us less of some 400. HalfCheetah is
Gymnasium's with its five substeps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np
import torch
from sample_factory.algo.sampling.simplified_sampling_api import SyncSamplingAPI
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.env_info import obtain_env_info_in_a_separate_process
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.model.encoder import Encoder

SKIP = 4
SIDE = 64
WARM_S = 5.0
WINDOWS = 5
SPLITS = 2
ROLLOUT = 32
PACKAGES = ("sample-factory", "torch", "gymnasium", "ale-py", "mujoco")


class Pong(gymnasium.Env):
    """Pong on ALE.

    Args:
        by_area: How images shrink: OpenCV averages areas, or Pillow interpolates.
    """

    render_mode = None

    def __init__(self, by_area: bool) -> None:
        import ale_py
        from ale_py import roms

        self._by_area = by_area
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(roms.get_rom_path("pong"))
        self._actions = self._ale.getMinimalActionSet()
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))
        self.observation_space = gymnasium.spaces.Box(0, 255, (3, SIDE, SIDE), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a game."""
        self._ale.reset_game()
        return self._image(self._ale.getScreenRGB()), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Four frames."""
        reward = 0.0
        frames = []
        for frame in range(SKIP):
            reward += self._ale.act(self._actions[int(action)])
            if frame >= SKIP - 2:
                frames.append(self._ale.getScreenRGB())
        return self._image(np.maximum(*frames)), reward, self._ale.game_over(), False, {}

    def _image(self, screen: np.ndarray) -> np.ndarray:
        if self._by_area:
            import cv2

            image = cv2.resize(screen, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        else:
            from PIL import Image

            image = np.asarray(
                Image.fromarray(screen).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            )
        return np.ascontiguousarray(image.transpose(2, 0, 1))


class Blind(Encoder):
    """An encoder that ignores what it is given."""

    def __init__(self, cfg: Any, _: Any) -> None:
        super().__init__(cfg)

    def get_out_size(self) -> int:
        """Width of the constant."""
        return 8

    def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(len(obs["obs"]), 8)


def make(name: str, *_: Any, **__: Any) -> gymnasium.Env:
    """An env by its name here."""
    return (
        gymnasium.make("HalfCheetah-v4")
        if name == "half_cheetah"
        else Pong(by_area=name == "pong_area")
    )


def measure(name: str, workers: int, envs: int, seconds: float, folder: str) -> dict[str, Any]:
    """Sample for so long."""
    register_env(name, make)
    global_model_factory().register_encoder_factory(Blind)
    words = [
        f"--env={name}",
        "--experiment=bench",
        f"--train_dir={folder}",
        "--device=cpu",
        "--serial_mode=False",
        "--async_rl=True",
    ]
    words += [
        f"--num_workers={workers}",
        f"--num_envs_per_worker={envs}",
        f"--worker_num_splits={SPLITS}",
        f"--rollout={ROLLOUT}",
    ]
    words += [
        "--use_rnn=False",
        "--normalize_input=False",
        "--normalize_returns=False",
        "--decorrelate_envs_on_one_worker=False",
    ]
    words += [
        "--decorrelate_experience_max_seconds=0",
        "--policy_workers_per_policy=1",
        "--batch_size=512",
    ]
    parser, _ = parse_sf_args(argv=words)
    config = parse_full_cfg(parser, argv=words)
    sampler = SyncSamplingAPI(config, obtain_env_info_in_a_separate_process(config))
    sampler.start()

    def rows_within(limit_s: float) -> float:
        """Decisions per second."""
        rows = 0
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            trajectories = sampler.get_trajectories_sync()
            rows += 0 if trajectories is None else trajectories["rewards"].numel()
        return rows / (time.monotonic() - began)

    rows_within(WARM_S)
    rates = [rows_within(seconds / WINDOWS) for _ in range(WINDOWS)]
    sampler.stop()
    return {
        "env": name,
        "workers": workers,
        "envs_per_worker": envs,
        "rows_per_s": round(statistics.median(rates), 1),
        "rows_per_s_in_windows": [round(rate, 1) for rate in rates],
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("env", choices=["pong", "pong_area", "half_cheetah"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--envs", type=int, default=8, help="per worker")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps(
                measure(options.env, options.workers, options.envs, options.seconds, folder)
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
