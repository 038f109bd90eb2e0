import itertools
import logging
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.envs.building import EnvBuildError
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.suites import dmc
from worldloom.envs.suites.crafter import CrafterEnv
from worldloom.envs.suites.rendering import set_up_headless
from worldloom.envs.toy import TOYS, CountingEnv, PixelToyEnv, PointEnv
from worldloom.envs.vector import EnvStep, sample_actions
from worldloom.envs.wrappers import EnvAdapter, RawEnv


def adapted(env: gymnasium.Env, **settings: object) -> EnvAdapter:
    return EnvAdapter(RawEnv(env), EnvConfig(env="my.module:make", **settings).resolved())  # type: ignore[arg-type]


class FilmEnv(gymnasium.Env):
    """Shows its step number as a flat RGB image."""

    observation_space = gymnasium.spaces.Box(0, 255, (80, 48, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    number = 0

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number = 10
        return self.frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.number += 10
        return self.frame(), 1.0, self.number == 60, False, {}

    def frame(self) -> np.ndarray:
        return np.full((80, 48, 3), (self.number, 0, 100), np.uint8)


def test_images_are_resized_then_grey_then_stacked_oldest_first() -> None:
    pytest.importorskip("PIL", reason="needs worldloom-dist[atari]")
    env = adapted(FilmEnv(), image_size=32, grayscale=True, frame_stack=3)
    assert env.spec.obs["obs"].shape == (32, 32, 3)
    grey = [
        int(np.float32(number) * np.float32(0.299) + np.float32(11.4))
        for number in (10, 20, 30, 40)
    ]
    first = env.reset()["obs"]
    assert first[5, 5].tolist() == [grey[0]] * 3
    for _ in range(3):
        last, *_ = env.step({"action": np.int32(0)})
    assert last["obs"][31, 0].tolist() == grey[1:]
    assert env.reset()["obs"][0, 0].tolist() == [grey[0]] * 3


def test_action_repeat_sums_rewards_and_stops_at_the_end_of_the_episode() -> None:
    env = adapted(FilmEnv(), action_repeat=3)
    env.reset()
    assert env.step({"action": np.int32(0)})[1:] == (3.0, False, False)
    obs, reward, terminated, truncated = env.step({"action": np.int32(0)})
    assert (obs["obs"][0, 0, 0], reward, terminated, truncated) == (60, 2.0, True, False)


def test_time_limit_truncates_unless_the_episode_terminates_there() -> None:
    env = adapted(FilmEnv(), time_limit=2)
    env.reset()
    assert [env.step({"action": np.int32(0)})[2:] for _ in range(2)] == [
        (False, False),
        (False, True),
    ]
    same = adapted(FilmEnv(), time_limit=5)
    same.reset()
    assert [same.step({"action": np.int32(0)})[2:] for _ in range(5)][-1] == (True, False)


def test_image_settings_without_an_image_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"env.grayscale and env.frame_stack need images"):
        adapted(CountingEnv(), grayscale=True, frame_stack=4)

    with pytest.raises(
        ConfigurationError,
        match=r"env.image_size needs images, and 'my.module:make' observes none; leave it out",
    ):
        adapted(CountingEnv(), image_size=64)
    with pytest.raises(
        ConfigurationError, match=r"env.image_size needs images, .*; add env.pixels or leave it out"
    ):
        env_spec(EnvConfig(env="gym:Pendulum-v1", image_size=64))


def test_time_limit_above_the_envs_own_is_refused() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"env.time_limit must be <= 40, .* 'toy:point' sets itself, got 500; leave it out",
    ):
        env_spec(EnvConfig(env="toy:point", time_limit=500))
    with pytest.raises(ConfigurationError, match=r"env.time_limit must be <= 14, .* got 15"):
        env_spec(EnvConfig(env="worldloom.envs.toy:PointEnv", time_limit=15, action_repeat=3))
    assert env_spec(EnvConfig(env="toy:point", time_limit=40)).episode_limit == 40
    assert env_spec(EnvConfig(env="gym:Pendulum-v1", time_limit=500)).episode_limit == 500


def test_mujoco_renders_without_a_screen_and_says_how(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with caplog.at_level(logging.WARNING):
        set_up_headless()
    chosen = os.environ["MUJOCO_GL"]
    assert chosen in ("egl", "osmesa")
    assert chosen in caplog.text
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    set_up_headless()
    assert os.environ["MUJOCO_GL"] == "glfw"


@pytest.mark.parametrize(
    "error",
    [ImportError("Cannot initialize a headless EGL display."), AttributeError("EGLDeviceEXT")],
)
def test_dm_control_without_a_renderer_gives_states_and_says_what_pictures_lack(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    pytest.importorskip("dm_control", reason="needs worldloom-dist[dmc]")
    real = dmc.importlib.import_module

    def imported(name: str) -> Any:
        if name == "dm_control.suite" and "MUJOCO_GL" in os.environ:
            raise error
        return real(name)

    monkeypatch.setattr(dmc.importlib, "import_module", imported)
    monkeypatch.setenv("MUJOCO_GL", "")
    assert env_spec(EnvConfig(env="dmc:cup-catch")).obs["position"].shape == (4,)
    assert not os.environ.get("MUJOCO_GL")
    with pytest.raises(EnvBuildError, match=f"cannot be built: .*{error.args[0]}"):
        env_spec(EnvConfig(env="dmc:cup-catch", pixels=True))
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(EnvBuildError, match=str(error.args[0])):
        env_spec(EnvConfig(env="dmc:cup-catch"))


class Drop(gymnasium.Env):
    """Named like an env that never ends; this one does."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))
    episode_limit = 30

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, True, False, {}


class Endless(Drop):
    may_terminate = False


def test_only_gymnasiums_own_ids_are_known_not_to_terminate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", gymnasium.envs.registration.registry)
    gymnasium.register("PendulumDrop-v0", entry_point=Drop)
    gymnasium.register("Walk-v0", entry_point=Endless)
    assert not env_spec(EnvConfig(env="gym:Pendulum-v1")).may_terminate
    drop = env_spec(EnvConfig(env="gym:PendulumDrop-v0"))
    assert (drop.may_terminate, drop.episode_limit) == (True, 30)
    assert not env_spec(EnvConfig(env="gym:Walk-v0")).may_terminate


@pytest.mark.parametrize("name", sorted(TOYS))
def test_toys_keep_gymnasiums_rules(name: str) -> None:
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on bounds and render modes
        check_env(TOYS[name](), skip_render_check=True)


def test_point_is_solved_by_going_straight_to_the_goal() -> None:
    env = PointEnv()
    returns = []
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        total = 0.0
        truncated = False
        while not truncated:
            obs, reward, _, truncated, _ = env.step(np.clip(10 * obs[2:], -1, 1))
            total += reward
        returns.append(total)
    assert 29 < np.mean(returns) < 35


def play_pixels(choose: Callable[[np.ndarray, int], int], episodes: int) -> list[float]:
    """Returns of episodes in which ``choose(image, step)`` acts."""
    env = PixelToyEnv()
    returns = []
    for seed in range(episodes):
        image, _ = env.reset(seed=seed)
        total = 0.0
        truncated = False
        step = 0
        while not truncated:
            image, reward, _, truncated, _ = env.step(choose(image, step))
            total = total + reward
            step = step + 1
        returns.append(total)
    return returns


def shortest_way(image: np.ndarray, _: int) -> int:
    """Read the three cells off the image; the first step of the shortest way to red that keeps off
    blue.
    """
    env = PixelToyEnv
    side = PixelToyEnv.SIDE * PixelToyEnv.CELL
    board = image[env.MARGIN : env.MARGIN + side, env.MARGIN : env.MARGIN + side].reshape(
        env.SIDE, env.CELL, env.SIDE, env.CELL, 3
    )
    middles = board[:, env.CELL // 2, :, env.CELL // 2]
    corners = board[:, 0, :, 0]
    me = tuple(np.argwhere((middles == env.COLOURS[0]).all(-1))[0].tolist())
    red, blue = (
        tuple(np.argwhere((corners == colour).all(-1))[0].tolist()) for colour in env.COLOURS[1:]
    )
    reached = {me: 0}  # cell -> the first move of the way there
    for cell in (queue := [me]):
        for action, (down, right) in enumerate(env.MOVES):
            after = (cell[0] + down, cell[1] + right)
            if after not in reached and after != blue and min(after) >= 0 and max(after) < env.SIDE:
                reached[after] = reached[cell] or action
                queue.append(after)
    return reached[red]


def test_pixel_toy_is_solved_by_sight() -> None:
    assert 16 < np.mean(play_pixels(shortest_way, 20)) < 18.5


@pytest.mark.parametrize(
    "plan",
    [[0], [1], [2, 2, 1, 1], [4, 2, 3, 1], [4, 4, 2, 3, 3, 2, 4, 4, 1, 3, 3, 1], [1, 3, 2, 4, 0]],
)
def test_pixel_toy_pays_nothing_to_those_who_do_not_look(plan: list[int]) -> None:
    assert abs(np.mean(play_pixels(lambda _, step: plan[step % len(plan)], 60))) < 1.5


def test_half_cheetah_goes_by_its_short_name() -> None:
    pytest.importorskip("mujoco", reason="needs worldloom-dist[mujoco]")
    pytest.importorskip("imageio", reason="needs worldloom-dist[mujoco]")
    spec = env_spec(EnvConfig(env="mujoco:half-cheetah"))
    assert (
        spec.obs["obs"].shape,
        spec.action["action"].shape,
        spec.episode_limit,
        spec.may_terminate,
    ) == (
        (17,),
        (6,),
        1000,
        False,
    )


def test_dm_control_has_its_own_names_and_never_terminates() -> None:
    pytest.importorskip("dm_control", reason="needs worldloom-dist[dmc]")
    config = EnvConfig(env="dmc:cup-catch", action_repeat=2)
    env = make_env(config, seed=3)
    assert {key: spec.shape for key, spec in env.spec.obs.items()} == {
        "position": (4,),
        "velocity": (4,),
    }
    assert (env.spec.episode_limit, env.spec.may_terminate) == (500, False)
    rows = [env.reset(), *(env.step({"action": np.zeros((1, 2), np.float32)}) for _ in range(501))]
    assert [index for index, row in enumerate(rows) if row.truncated[0]] == [500]
    assert [index for index, row in enumerate(rows) if row.is_first[0]] == [0, 501]
    twin = make_env(config, seed=3).reset().obs["position"]
    assert np.array_equal(twin, rows[0].obs["position"])
    assert not np.array_equal(make_env(config, seed=4).reset().obs["position"], twin)
    with pytest.raises(ConfigurationError, match=r"env.time_limit must be <= 1000, .* got 5000"):
        env_spec(EnvConfig(env="dmc:cup-catch", time_limit=5000))
    with pytest.raises(ConfigurationError, match=r"env.image_size needs images"):
        env_spec(EnvConfig(env="dmc:cup-catch", image_size=84))
    with pytest.raises(ConfigurationError, match="did you mean walker-walk"):
        make_env(EnvConfig(env="dmc:walkr-walk"), seed=0)


@pytest.mark.parametrize("task", ["lqr-lqr-2-1", "pendulum-swingup"])
def test_equal_seeds_give_equal_rows_in_tasks_that_draw_their_model_too(task: str) -> None:
    pytest.importorskip("dm_control", reason="needs worldloom-dist[dmc]")

    def play(seed: int) -> np.ndarray:
        env = make_env(EnvConfig(env=f"dmc:{task}"), seed=seed)
        rows = [
            env.reset(),
            *(env.step({"action": np.ones((1, 1), np.float32)}) for _ in range(15)),
        ]
        env.close()
        return np.concatenate([row.obs["velocity"] for row in rows])

    first = play(3)
    assert np.array_equal(first, play(3))
    assert not np.array_equal(first, play(4))


def test_atari_has_the_settings_of_dreamerv3() -> None:
    pytest.importorskip("ale_py", reason="needs worldloom-dist[atari]")
    env = make_env(EnvConfig(env="atari:pong"), seed=0)
    assert (env.spec.obs["obs"].shape, env.spec.action["action"].num_classes) == (
        (96, 96, 1),
        (18,),
    )
    assert (env.spec.episode_limit, env.spec.action_repeat) == (27_000, 4)
    small = env_spec(
        EnvConfig(env="atari:pong", image_size=64, grayscale=False, full_actions=False)
    )
    assert (small.obs["obs"].shape, small.action["action"].num_classes) == ((64, 64, 3), (6,))
    with pytest.raises(ConfigurationError, match="did you mean pong"):
        make_env(EnvConfig(env="atari:pongg"), seed=0)


@pytest.mark.parametrize(("grayscale", "channels"), [(True, 2), (False, 6)])
def test_ales_own_vector_env_keeps_the_row_contract(grayscale: bool, channels: int) -> None:
    pytest.importorskip("ale_py", reason="needs worldloom-dist[atari]")
    config = EnvConfig(
        env="atari:pong",
        ale_vector=True,
        time_limit=20,
        grayscale=grayscale,
        frame_stack=2,
        image_size=40,
    )

    def play(seed: int) -> list[EnvStep]:
        env = make_env(config, num_envs=2, seed=seed, processes=True)
        rngs = [np.random.default_rng(i) for i in range(2)]
        assert (env.spec.obs["obs"].shape, env.spec.action_repeat, env.spec.episode_limit) == (
            (40, 40, channels),
            4,
            20,
        )
        return [env.reset(), *(env.step(sample_actions(env.spec, rngs)) for _ in range(45))]

    rows = play(0)
    again = play(0)
    other = play(1)
    assert all(np.array_equal(a.obs["obs"], b.obs["obs"]) for a, b in zip(rows, again, strict=True))
    assert not all(
        np.array_equal(a.obs["obs"], b.obs["obs"]) for a, b in zip(rows, other, strict=True)
    )
    assert sum(row.truncated.sum() for row in rows) >= 4
    for before, row in itertools.pairwise(rows):
        assert np.array_equal(row.is_first, before.is_last)
        assert not row.reward[row.is_first].any()


def test_atari_is_reproducible_and_ends_with_the_game() -> None:
    pytest.importorskip("ale_py", reason="needs worldloom-dist[atari]")

    def play(seed: int) -> list[tuple[float, bool, int]]:
        env = make_env(EnvConfig(env="atari:pong", image_size=32, action_repeat=16), seed=seed)
        rng = np.random.default_rng(0)
        env.reset()
        rows = [env.step({"action": rng.integers(0, 18, 1).astype(np.int32)}) for _ in range(70)]
        return [
            (float(row.reward[0]), bool(row.terminated[0]), int(row.obs["obs"].sum()))
            for row in rows
        ]

    first = play(0)
    assert first == play(0)
    assert first != play(1)
    assert -21 <= sum(reward for reward, *_ in first) <= -2


def test_crafter_plays_the_same_for_the_same_seed() -> None:
    pytest.importorskip("crafter", reason="needs crafter: pip install 'worldloom-dist[crafter]'")
    config = EnvConfig(env="crafter:reward")
    spec = env_spec(config)
    assert spec.obs["obs"].shape == (64, 64, 3)
    assert spec.action["action"].num_classes == (17,)
    env = make_env(config, num_envs=1, seed=3, renders=True)
    again = make_env(config, num_envs=1, seed=3)
    try:
        rows = [env.reset(), again.reset()]
        for step in range(30):
            action = {"action": np.full(1, step % 17, np.int32)}
            assert np.array_equal(rows[0].obs["obs"], rows[1].obs["obs"]), step
            rows = [env.step(action), again.step(action)]
    finally:
        env.close()
        again.close()


def test_crafter_says_what_is_missing_and_which_tasks_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigurationError, match="did you mean reward"):
        make_env(EnvConfig(env="crafter:rewards"), num_envs=1, seed=0)
    with pytest.raises(ConfigurationError, match=r"env\.pixels is for"):
        EnvConfig(env="crafter:reward", pixels=True)
    monkeypatch.setitem(sys.modules, "crafter", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'worldloom-dist\[crafter\]'"):
        make_env(EnvConfig(env="crafter:reward"), num_envs=1, seed=0)


class Dying:
    """Crafter's own interface: four values, and a discount of 0 at death."""

    def __init__(self, size: tuple[int, int], reward: bool, seed: int) -> None:
        self.action_space = types.SimpleNamespace(n=17)
        self._image = np.zeros((*size, 3), np.uint8)
        self.seed = seed

    def reset(self) -> np.ndarray:
        return self._image

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        facts = {"achievements": {}, "inventory": {}, "discount": float(action != 1)}
        return self._image, 0.5, action > 0, facts


def test_death_terminates_and_the_time_limit_truncates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crafter", types.SimpleNamespace(Env=Dying))
    game = CrafterEnv(64, has_reward=True)
    game.reset(seed=2**40 + 7)
    assert [game.step(action)[1:4] for action in (0, 1, 2)] == [
        (0.5, False, False),
        (0.5, True, False),
        (0.5, False, True),
    ]


def test_the_control_suite_leaves_logging_alone():
    """Absl, which it imports, adds a handler to the root logger: every line would be said twice."""
    pytest.importorskip("dm_control", reason="needs worldloom-dist[dmc]")
    code = (
        "from worldloom.envs.config import EnvConfig; from worldloom.envs.factory import make_env"
    )
    code += "; make_env(EnvConfig(env='dmc:cartpole-swingup'), seed=0).close()"
    code += "; import logging; assert not logging.root.handlers, logging.root.handlers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "root logger" not in done.stderr
