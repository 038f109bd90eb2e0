import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from worldloom.core.exceptions import ConfigurationError, EnvFailureError, StateError
from worldloom.envs.config import EnvConfig
from worldloom.envs.gym_vector import GymVectorAdapter
from worldloom.envs.toy import CountingEnv

MODES = list(AutoresetMode)


class EarlierEnv(CountingEnv):
    LENGTHS = (CountingEnv.LENGTHS[0] - 2, *CountingEnv.LENGTHS[1:])


def adapter(
    mode: AutoresetMode, kinds: tuple[type[CountingEnv], ...] = (CountingEnv,) * 2, **settings: int
) -> GymVectorAdapter:
    env = SyncVectorEnv(kinds, autoreset_mode=mode)
    return GymVectorAdapter(
        env, EnvConfig(env="my.module:make", **settings).resolved(), len(kinds), 0
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_every_autoreset_mode_gives_the_same_rows(mode: AutoresetMode) -> None:
    env = adapter(mode)
    rows = [
        env.reset(),
        *(env.step({"action": np.full((2, 2), number, np.float32) / 100}) for number in range(40)),
    ]
    for index in range(2):
        seen = [
            (*row.obs["obs"][index, :2].tolist(), float(row.reward[index]))
            for row in rows
            if row.live[index]
        ]
        expected = [(e, s, s) for e in range(12) for s in range(CountingEnv.LENGTHS[e % 5] + 1)]
        assert seen == expected[: len(seen)]
        assert len(seen) >= 30
        ends = [row.is_last[index] for row in rows if row.live[index]]
        assert ends == [s == CountingEnv.LENGTHS[e % 5] for e, s, _ in expected[: len(seen)]]


@pytest.mark.parametrize("mode", MODES)
def test_no_env_takes_an_action_that_was_chosen_for_another_row(mode: AutoresetMode) -> None:
    """Envs that end at different times: each observes the action that was given for its own last
    live row.
    """
    env = adapter(mode, (CountingEnv, EarlierEnv))
    first = env.reset()
    env.step({"action": np.zeros((2, 2), np.float32)})
    chosen = first.obs["obs"][:, 0] * 0
    waiting = np.zeros(2, bool)
    for number in range(30):
        action = np.full((2, 2), (number + 1) / 64, np.float32)
        row = env.step({"action": action})
        chosen = np.where(waiting, chosen, action[:, 0])
        for index in np.flatnonzero(row.live & ~row.is_first):
            assert row.obs["obs"][index, 2] == chosen[index]
        waiting = ~row.live


def test_seeding_restarts_the_count() -> None:
    env = adapter(AutoresetMode.NEXT_STEP)
    env.reset()
    for _ in range(9):
        env.step({"action": np.zeros((2, 2), np.float32)})
    assert env.reset(seed=3).obs["obs"].tolist() == [[0, 0, 0]] * 2


def test_number_of_envs_and_outer_wrappers_are_refused() -> None:
    env: VectorEnv = SyncVectorEnv([CountingEnv for _ in range(2)])
    with pytest.raises(ConfigurationError, match="holds 2 envs and 3 were asked for"):
        GymVectorAdapter(env, EnvConfig(env="my.module:make").resolved(), 3, 0)
    with pytest.raises(
        ConfigurationError, match=r"env.action_repeat, env.time_limit cannot be applied"
    ):
        adapter(AutoresetMode.NEXT_STEP, action_repeat=2, time_limit=7)


def test_final_observation_must_be_given_when_envs_reset_in_the_same_step() -> None:
    class Forgetful(SyncVectorEnv):
        def step(self, actions: np.ndarray) -> tuple:
            obs, reward, terminated, truncated, _ = super().step(actions)
            return obs, reward, terminated, truncated, {}

    inner = Forgetful([CountingEnv for _ in range(1)], autoreset_mode=AutoresetMode.SAME_STEP)
    env = GymVectorAdapter(inner, EnvConfig(env="my.module:make").resolved(), 1, 0)
    env.reset()
    for _ in range(4):
        env.step({"action": np.zeros((1, 2), np.float32)})
    with pytest.raises(EnvFailureError, match="gives no infos"):
        env.step({"action": np.zeros((1, 2), np.float32)})


def test_vector_env_cannot_be_resumed_exactly() -> None:
    env = adapter(AutoresetMode.NEXT_STEP)
    assert env.state() is None
    with pytest.raises(StateError, match="cannot be resumed exactly"):
        env.set_state([])
    assert env.drain_faults() == []
    env.close()
