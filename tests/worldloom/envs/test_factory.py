import subprocess
import sys

import numpy as np
import pytest

from worldloom.core.exceptions import ConfigurationError, MissingDependencyError
from worldloom.core.specs import ArraySpec
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import env_spec, make_env
from worldloom.envs.vector import sample_actions


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("gym:Pendulm-v1", "did you mean Pendulum-v1"),
        ("toy:cuonting", "did you mean counting"),
        ("atri:pong", "did you mean atari"),
        ("no_such_package.envs:make", "no module 'no_such_package.envs'"),
        ("worldloom.envs.toy:Pont", "did you mean PointEnv"),
        ("worldloom.envs.toy:TOYS", "must be callable"),
        ("builtins:dict", "without reset, step"),
        ("none", "offline training"),
    ],
)
def test_unknown_env_is_answered_in_one_sentence(env: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_env(EnvConfig(env=env), seed=0)


def test_missing_package_is_answered_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium.envs.mujoco.half_cheetah_v5", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'worldloom-dist\[mujoco\]'"):
        make_env(EnvConfig(env="mujoco:half-cheetah"), seed=0)


def test_number_of_envs_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="num_envs must be >= 1, got 0"):
        make_env(EnvConfig(env="toy:point"), num_envs=0, seed=0)


def test_spec_says_what_the_env_gives_and_takes() -> None:
    spec = env_spec(EnvConfig(env="gym:Pendulum-v1"))
    assert spec.obs == {"obs": ArraySpec((3,))}
    assert spec.action == {"action": ArraySpec((1,))}
    assert (spec.episode_limit, spec.may_terminate, spec.action_repeat) == (200, False, 1)
    assert (
        EnvConfig.from_settings(spec.name, spec.settings)
        == EnvConfig(env="gym:Pendulum-v1").resolved()
    )


def test_action_repeat_shortens_the_episode_and_is_counted() -> None:
    config = EnvConfig(env="gym:Pendulum-v1", action_repeat=3)
    assert env_spec(config).episode_limit == 67
    env = make_env(config, seed=0)
    assert env.reset().is_first.all()
    lengths = [
        step
        for step in range(1, 70)
        if env.step({"action": np.zeros((1, 1), np.float32)}).truncated[0]
    ]
    assert lengths == [67]


def test_time_limit_replaces_the_limit_of_the_id() -> None:
    env = make_env(EnvConfig(env="gym:Pendulum-v1", time_limit=250), seed=0)
    assert env.spec.episode_limit == 250
    env.reset()
    ends = [
        step
        for step in range(1, 252)
        if env.step({"action": np.zeros((1, 1), np.float32)}).is_last[0]
    ]
    assert ends == [250]


def test_equal_seeds_give_equal_rows_and_envs_differ_from_each_other() -> None:
    def rows(seed: int) -> list[np.ndarray]:
        env = make_env(EnvConfig(env="gym:Pendulum-v1"), num_envs=2, seed=seed)
        rngs = [np.random.default_rng(i) for i in range(2)]
        return [
            env.reset().obs["obs"],
            *(env.step(sample_actions(env.spec, rngs)).obs["obs"] for _ in range(20)),
        ]

    first = rows(1)
    again = rows(1)
    other = rows(2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0][0], first[0][1])


def test_making_a_gym_env_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "from worldloom.envs.config import EnvConfig\n"
        "assert 'gymnasium' not in sys.modules\n"
        "from worldloom.envs.factory import make_env\n"
        "make_env(EnvConfig(env='gym:Pendulum-v1'), seed=0).reset()\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
