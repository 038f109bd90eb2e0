"""The tasks that dm_control lacks: their rewards at states that are set by hand, their sizes, and
that the suite itself stays as it is.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from worldloom.algorithms.tdmpc2.official import MT30_ACTION_DIMS
from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.task_sets import TASK_SETS

pytest.importorskip("dm_control", reason="needs worldloom-dist[dmc]")

OBS_SIZES = (
    *(24, 24, 24, 17, 6, 6, 6, 3, 5, 5, 5, 5, 8, 9, 12, 12, 24, 15, 15),
    *(24, 24, 17, 17, 17, 17, 15, 8, 8, 8, 3),
)
"""Of the 30 tasks, as the authors' code observes them."""
OWN = TASK_SETS["dmc30"][19:]


def tasks() -> Any:
    from worldloom.envs.suites.dmc import _suite

    _suite(needs_pictures=False)
    from worldloom.envs.suites import dmc_tasks

    return dmc_tasks


def heights(**places: float) -> Any:
    """``named.data`` where bodies have these heights."""
    return SimpleNamespace(data=SimpleNamespace(xpos={(k, "z"): v for k, v in places.items()}))


def reward(task: Any, physics: Any) -> float:
    return float(task.get_reward(physics))


@pytest.mark.parametrize("env", OWN)
def test_a_task_gives_the_published_sizes_and_the_same_episode_under_a_seed(env: str) -> None:
    number = TASK_SETS["dmc30"].index(env)
    spec = env_spec(EnvConfig(env=env, action_repeat=2))
    assert sum(array.size for array in spec.obs.values()) == OBS_SIZES[number]
    assert sum(array.size for array in spec.action.values()) == MT30_ACTION_DIMS[number]
    assert (spec.episode_limit, spec.may_terminate) == (500, False)
    rows = []
    for _ in range(2):
        vector = make_env(EnvConfig(env=env, action_repeat=2), num_envs=1, seed=1)
        try:
            vector.reset(5)
            step = vector.step({"action": np.full((1, MT30_ACTION_DIMS[number]), 0.5, "f4")})
            assert 0 <= step.reward[0] <= 2
            rows.append(np.concatenate([step.obs[key].ravel() for key in spec.obs]))
        finally:
            vector.close()
    assert np.array_equal(*rows)


def test_dm_control_itself_stays_as_it_is() -> None:
    module = tasks()
    from dm_control import suite
    from dm_control.suite import cheetah

    assert not set(suite.ALL_TASKS) & set(module.TASKS)
    assert list(cheetah.SUITE) == ["run"]
    assert len(module.TASKS) == len(OWN) == 11


def test_a_mistyped_name_is_led_to_the_nearest_task() -> None:
    with pytest.raises(ConfigurationError, match="did you mean cheetah-run-front"):
        env_spec(EnvConfig(env="dmc:cheetah-run-frnt"))


@pytest.mark.parametrize(
    ("speed", "expected"), [(-1, 1), (-0.5, 3.5 / 6), (0, 1 / 6), (1, 1 / 6), (-8, 1)]
)
def test_the_walker_is_rewarded_for_its_speed_backwards(speed: float, expected: float) -> None:
    stands = SimpleNamespace(
        torso_height=lambda: 1.3, torso_upright=lambda: 1.0, horizontal_velocity=lambda: speed
    )
    assert reward(tasks().WalkerBackwards(1, random=0), stands) == pytest.approx(expected)
    fallen = SimpleNamespace(
        torso_height=lambda: 0.6, torso_upright=lambda: -1.0, horizontal_velocity=lambda: speed
    )
    share = reward(tasks().WalkerBackwards(1, random=0), fallen) / expected
    assert share == pytest.approx(0.75 * 0.1)


@pytest.mark.parametrize(("speed", "expected"), [(-9, 1), (-8, 1), (-4, 0.5), (0, 0), (8, 0)])
def test_the_cheetah_is_rewarded_for_its_speed_backwards(speed: float, expected: float) -> None:
    physics = SimpleNamespace(speed=lambda: speed)
    assert reward(tasks().CheetahBackwards(random=0), physics) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("foot", "torso", "speed", "expected"),
    [
        (1.2, 1.2, 6, 1),
        (1.2, 1.2, 0, 1 / 6),
        (1.2, 1.2, 3, 3.5 / 6),
        (0.6, 1.2, 6, (3 * 0.1 + 2) / 5),
        (1.2, 0.6, 6, (3 + 2 * 0.1) / 5),
    ],
)
def test_the_cheetah_on_one_foot_has_the_other_in_the_air(
    foot: float, torso: float, speed: float, expected: float
) -> None:
    module = tasks()
    named = heights(torso=torso, bfoot=foot, ffoot=-9)
    physics = SimpleNamespace(named=named, speed=lambda: speed)
    # on the front foot: the back one is up
    front = module.TASKS["cheetah", "run_front"](0).task
    assert reward(front, physics) == pytest.approx(expected)
    other = SimpleNamespace(named=heights(torso=torso, bfoot=-9, ffoot=foot), speed=lambda: speed)
    back = module.TASKS["cheetah", "run_back"](0).task
    assert reward(back, other) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("torso", "feet", "speed", "expected"),
    [
        (1.2, (1.2, 1.2), 0, 1),
        (1.2, (1.2, 1.2), 0.5, 1),
        (1.2, (1.2, 1.2), 0.75, 5.5 / 6),
        (1.2, (1.2, 1.2), -1, 5 / 6),
        (1.2, (1.2, 0), 1, (5 + 5 * 0.1) / 12),
    ],
)
def test_the_cheetah_jumps_where_it_is(
    torso: float, feet: tuple[float, float], speed: float, expected: float
) -> None:
    named = heights(torso=torso, bfoot=feet[0], ffoot=feet[1])
    physics = SimpleNamespace(named=named, speed=lambda: speed)
    assert reward(tasks().CheetahJump(random=0), physics) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("height", "speed", "expected"),
    [(0.7, -1, 1), (0.7, -0.5, 0.5), (0.7, 0, 0), (0.7, 2, 0), (0.5, -1, 0)],
)
def test_the_hopper_is_rewarded_for_its_speed_backwards(
    height: float, speed: float, expected: float
) -> None:
    physics = SimpleNamespace(height=lambda: height, speed=lambda: speed)
    assert reward(tasks().HopperBackwards(random=0), physics) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("distance", "speed", "expected"),
    [(0.5, 6, 1), (0.5, 0, 1 / 3), (0.25, 3, 0.5), (0, 6, 2 / 3)],
)
def test_the_ball_spins_far_from_the_cup_and_fast(
    distance: float, speed: float, expected: float
) -> None:
    data = SimpleNamespace(qvel={"ball_x": np.array(speed * 0.6), "ball_z": np.array(speed * -0.8)})
    physics = SimpleNamespace(
        named=SimpleNamespace(data=data),
        in_target=lambda: 0.0,
        ball_to_target=lambda: np.array([0, distance]),
    )
    task = tasks().CupSpin(random=0)
    assert reward(task, physics) == pytest.approx(expected)
    physics.in_target = lambda: 1.0
    assert reward(task, physics) == 0


def test_the_ball_begins_in_the_cup_nine_times_of_ten() -> None:
    env = tasks().TASKS["ball_in_cup", "spin"](3)
    inside = []
    for _ in range(60):
        env.reset()
        inside.append(env.physics.in_target())
        assert env.physics.data.ncon == 0
    assert 46 <= sum(inside) < 60


@pytest.mark.parametrize(
    ("speed", "expected"), [(9, 1), (-9, 1), (4.5, 0.5), (-6.75, 0.75), (0, 0)]
)
def test_the_pendulum_spins_either_way(speed: float, expected: float) -> None:
    physics = SimpleNamespace(angular_velocity=lambda: np.array([speed], float))
    assert reward(tasks().PendulumSpin(random=0), physics) == pytest.approx(expected)


def test_the_reacher_has_three_links_and_both_targets() -> None:
    module = tasks()
    sizes = []
    for name in ("three_easy", "three_hard"):
        env = module.TASKS["reacher", name](0)
        env.reset()
        physics = env.physics
        physics.named.data.qpos[:] = 0
        physics.forward()
        sizes.append(physics.named.model.geom_size["target", 0])
        places = [physics.named.data.xpos[body, "x"] for body in ("arm1", "hand", "finger")]
        assert places == pytest.approx([0.09, 0.18, 0.27])
        limits = np.rad2deg(physics.model.jnt_range[physics.model.jnt_limited == 1])
        assert limits == pytest.approx(np.array([[-80, 80], [-80, 80]]))
        assert physics.model.nu == 3
        assert physics.named.model.geom_size["hand", 1] == pytest.approx(0.05)
    assert sizes == [0.05, 0.015]
