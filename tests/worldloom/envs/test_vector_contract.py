"""Vector envs of every kind: the seeds they take, and when they reset what ended."""

import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from worldloom.core.exceptions import ConfigurationError, EnvFailureError
from worldloom.envs import contract
from worldloom.envs.config import EnvConfig
from worldloom.envs.gym_vector import GymVectorAdapter
from worldloom.envs.toy import CountingEnv
from worldloom.envs.vector import EnvStep

ACTION = {"action": np.zeros((2, 1), np.float32)}


def adapted(env: VectorEnv) -> GymVectorAdapter:
    return GymVectorAdapter(env, EnvConfig(env="my.module:make").resolved(), env.num_envs, 0)


@pytest.fixture(autouse=True)
def _say_everything() -> None:
    contract.say_once.cache_clear()


class Own(VectorEnv):
    """Two envs of 3 and 5 steps, observing (episode, step); resets as ``mode`` does and says
    ``said``.
    """

    def __init__(
        self, mode: AutoresetMode, said: Any = None, *, key: str = "final_obs", reward: float = 1.0
    ) -> None:
        self.num_envs = 2
        self.mode = mode
        self.key = key
        self.reward = reward
        self.metadata = {} if said is None else {"autoreset_mode": said}
        self.single_observation_space = spaces.Box(0, 99, (2,))
        self.single_action_space = spaces.Box(-1, 1, (1,))
        self.observation_space = batch_space(self.single_observation_space, 2)
        self.action_space = batch_space(self.single_action_space, 2)
        self.seeds: list[Any] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        if options is not None:
            self.begin(options["reset_mask"])
        else:
            self.obs = np.zeros((2, 2), np.float32)
            self.ended = np.zeros(2, bool)
        return self.obs.copy(), {}

    def begin(self, mask: np.ndarray) -> None:
        self.obs[mask] = np.stack([self.obs[mask, 0] + 1, np.zeros(mask.sum())], 1)

    def step(self, actions: Any) -> Any:
        first = self.ended if self.mode is AutoresetMode.NEXT_STEP else np.zeros(2, bool)
        self.obs[~first, 1] += 1
        self.begin(first)
        self.ended = (self.obs[:, 1] >= [3, 5]) & ~first
        infos = {}
        end = self.ended
        reward = np.where(first, 0.0, self.reward)
        if self.mode is AutoresetMode.SAME_STEP and end.any():
            final = np.full(2, None, object)
            for index in np.flatnonzero(end):
                final[index] = self.obs[index].copy()
            infos = self.infos(final, end.copy())
            self.begin(end)
        return self.obs, reward, end.copy(), np.zeros(2, bool), infos  # one canvas for all steps

    def infos(self, final: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        return {self.key: final, f"_{self.key}": mask}


def played(env: GymVectorAdapter, steps: int = 24) -> list[list[tuple[float, ...]]]:
    """Per env the rows: (episode, step, reward, is_first, is_last)."""
    rows: list[EnvStep] = [env.reset(), *(env.step(ACTION) for _ in range(steps))]
    return [
        [
            (
                *row.obs["obs"][i].tolist(),
                float(row.reward[i]),
                bool(row.is_first[i]),
                bool(row.is_last[i]),
            )
            for row in rows
            if row.live[i]
        ]
        for i in range(2)
    ]


def assert_right(rows: list[list[tuple[float, ...]]]) -> None:
    for index, length in enumerate((3, 5)):
        right = [
            (e, s, float(s > 0), s == 0, s == length) for e in range(30) for s in range(length + 1)
        ]
        assert rows[index] == right[: len(rows[index])]
        assert len(rows[index]) > 12


MODES = list(AutoresetMode)


@pytest.mark.parametrize("mode", MODES)
def test_mode_may_be_said_as_enum_name_or_value(mode: AutoresetMode) -> None:
    for said in (mode, mode.name, mode.value, mode.name.lower(), f"AutoresetMode.{mode.name}"):
        assert_right(played(adapted(Own(mode, said))))


@pytest.mark.parametrize("key", ["final_obs", "final_observation"])
def test_env_that_says_nothing_is_believed_what_it_does(key: str) -> None:
    assert_right(played(adapted(Own(AutoresetMode.SAME_STEP, key=key))))


def test_env_that_neither_says_nor_shows_its_mode_is_told_what_it_is_taken_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert_right(played(adapted(Own(AutoresetMode.NEXT_STEP))))
    assert (
        caplog.text.count(
            "does not say when it resets, and is taken for NEXT_STEP; set "
            "metadata['autoreset_mode']"
        )
        == 1
    )


@pytest.mark.parametrize("said", ["often", 3, "", ["NEXT_STEP"]])
def test_mode_that_does_not_exist_is_refused(said: Any) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"which is no such mode; set metadata\['autoreset_mode'\] to AutoresetMode.NEXT_STEP",
    ):
        adapted(Own(AutoresetMode.NEXT_STEP, said))


@pytest.mark.parametrize("said", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_mode_that_the_env_contradicts_is_refused(said: AutoresetMode) -> None:
    with pytest.raises(
        EnvFailureError,
        match=rf"says that its autoreset mode is {said.name}, and gives infos\['final_obs'\]",
    ):
        played(adapted(Own(AutoresetMode.SAME_STEP, said)))


class Silent(Own):
    """Resets in the same step and keeps the final observation to itself."""

    def infos(self, final: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        return {}


def test_reward_where_a_reset_should_be_is_never_dropped() -> None:
    with pytest.raises(
        EnvFailureError,
        match=r"env 0 ended, and its next row has reward 1, .* where a NEXT_STEP env resets",
    ):
        played(adapted(Silent(AutoresetMode.SAME_STEP)))
    with pytest.raises(EnvFailureError, match="env 0 ended, and its next row has reward 1"):
        played(adapted(Own(AutoresetMode.DISABLED)))


class Infos(Own):
    def __init__(self, infos: Any) -> None:
        super().__init__(AutoresetMode.SAME_STEP)
        self._given = infos

    def infos(self, final: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        given: dict[str, Any] = self._given(final, mask)
        return given


@pytest.mark.parametrize(
    "infos",
    [
        lambda final, mask: {"final_obs": np.full(2, None, object), "final_info": {}},
        lambda final, mask: {"final_obs": final, "_final_obs": ~mask, "final_info": {}},
        lambda final, mask: {"final_info": {}},
    ],
    ids=["none", "masked", "only-infos"],
)
def test_end_without_its_final_observation_is_refused(infos: Any) -> None:
    with pytest.raises(
        EnvFailureError, match=r"gives no infos\['final_obs'\] for env 0, which ended"
    ):
        played(adapted(Infos(infos)))


def test_final_observations_may_be_a_plain_array_or_a_list() -> None:
    assert_right(
        played(
            adapted(
                Infos(lambda final, mask: {"final_obs": [None if f is None else f for f in final]})
            )
        )
    )

    def stacked(final, mask):
        return {"final_obs": np.stack([np.zeros(2) if f is None else f for f in final])}

    assert_right(played(adapted(Infos(stacked))))


def test_reset_that_disturbs_the_other_envs_is_refused() -> None:
    class Careless(Own):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            return super().reset(seed=seed, options=options and {"reset_mask": np.ones(2, bool)})

    with pytest.raises(
        EnvFailureError, match="changed the observation of an env that the mask leaves out"
    ):
        played(adapted(Careless(AutoresetMode.DISABLED, "DISABLED")))


class OneSeed(Own):
    """As Gymnasium's docs show: one number for all, which its generator takes."""

    def __init__(self, draw: int = 2) -> None:
        super().__init__(AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP)
        self.draw = draw

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        VectorEnv.reset(self, seed=seed)
        super().reset(seed=seed)
        self.obs[:, 1] = -self.np_random.uniform(1, 9, self.draw)
        return self.obs.copy(), {}


def first_rows(env: GymVectorAdapter, seed: int) -> list[float]:
    numbers: list[float] = env.reset(seed).obs["obs"][:, 1].tolist()
    return numbers


def test_env_that_takes_one_seed_gets_one() -> None:
    env = adapted(OneSeed())
    one = first_rows(env, 3)
    assert one[0] != one[1], "distinct"
    assert first_rows(adapted(OneSeed()), 3) == one, "reproducible"
    assert first_rows(env, 4) != one
    assert first_rows(env, 3) == one


def test_envs_that_start_alike_from_one_seed_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first_rows(adapted(OneSeed()), 3)
        assert caplog.text == ""
        one, two = first_rows(adapted(OneSeed(draw=1)), 3)
    assert one == two
    assert "starts all its envs alike; draw the start of each from self.np_random" in caplog.text


def test_env_that_takes_a_list_gets_distinct_seeds() -> None:
    class Many(Own):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            if isinstance(seed, int):
                raise TypeError("'int' object is not iterable")
            return super().reset(seed=seed)

    class SaysInt(Many):
        def reset(self, *, seed: "int | None" = None, options: Any = None) -> Any:
            return super().reset(seed=seed)

    for kind in (Many, SaysInt):
        env = kind(AutoresetMode.NEXT_STEP, "NEXT_STEP")
        adapted(env).reset(3)
        assert len(set(env.seeds[-1])) == 2


def test_env_that_takes_no_seed_at_all_is_refused() -> None:
    class Fussy(Own):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            raise AssertionError(f"no {type(seed).__name__} please")

    class Broken(Own):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            raise AttributeError("no simulator")

    class Seedless(Own):
        def reset(self) -> Any:  # type: ignore[override]
            return super().reset()

    with pytest.raises(
        EnvFailureError,
        match=r"takes neither a number nor a list of one per env .AssertionError: no list please",
    ):
        adapted(Fussy(AutoresetMode.NEXT_STEP)).reset(3)
    with pytest.raises(EnvFailureError, match="reset raised AttributeError: no simulator"):
        adapted(Broken(AutoresetMode.NEXT_STEP)).reset(3)
    with pytest.raises(ConfigurationError, match=r"reset\(\) takes no seed"):
        adapted(Seedless(AutoresetMode.NEXT_STEP))


def test_gymnasiums_own_vector_env_can_be_seeded() -> None:
    def rows() -> list[Any]:
        env = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
        adapter = adapted(env)
        action = {"action": np.zeros(4, np.int32)}
        return [
            adapter.reset(7).obs["obs"].tolist(),
            *(adapter.step(action).obs["obs"].tolist() for _ in range(20)),
        ]

    one = rows()
    assert one == rows()
    assert len({tuple(start) for start in one[0]}) == 4


NUMBERS = {
    "reward of env 1": (1, np.array([0.0, np.nan]), "reward nan of env 1"),
    "huge": (1, np.array([1e40, 0.0]), "reward 1e[+]40 of env 0 .* is not finite in float32"),
    "text": (1, np.array(["1", "2"]), "reward .* is of dtype <U1; give real numbers"),
    "none": (1, np.array([None, None]), "reward .* is of dtype object"),
    "complex": (1, np.array([1j, 1]), "reward .* is of dtype complex128"),
    "flag": (2, np.array([0.5, 0.0]), "terminated .* give True or False for every env"),
    "flag-text": (3, np.array(["no", "no"]), "truncated .* give True or False"),
    "obs": (
        0,
        np.array([[0, 0], [0, np.inf]]),
        r"observation 'obs' holds inf at .1, 1., which is not finite",
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_none_are_refused(name: str) -> None:
    place, value, text = NUMBERS[name]

    class Odd(Own):
        def step(self, actions: Any) -> Any:
            answer = list(super().step(actions))
            answer[place] = value
            return tuple(answer)

    env = adapted(Odd(AutoresetMode.NEXT_STEP))
    env.reset()
    with pytest.raises(EnvFailureError, match=text):
        env.step(ACTION)


def test_what_the_env_raises_is_one_sentence_that_names_it() -> None:
    class Raising(Own):
        def step(self, actions: Any) -> Any:
            raise KeyError("gone\nand more")

    class Leaving(Own):
        def step(self, actions: Any) -> Any:
            raise SystemExit(3)

    for kind, text in (
        (Raising, "vector env 'my.module:make': step raised KeyError"),
        (Leaving, r"called sys.exit\(3\)"),
    ):
        env = adapted(kind(AutoresetMode.NEXT_STEP))
        env.reset()
        with pytest.raises(EnvFailureError, match=text) as caught:
            env.step(ACTION)
        assert "\n" not in str(caught.value)


def test_four_values_of_a_vector_env_are_named() -> None:
    class Four(Own):
        def step(self, actions: Any) -> Any:
            obs, reward, end, _, infos = super().step(actions)
            return obs, reward, end, infos

    env = adapted(Four(AutoresetMode.NEXT_STEP))
    env.reset()
    with pytest.raises(EnvFailureError, match="step returned four values"):
        env.step(ACTION)


def test_actions_that_are_changed_in_place_are_nobody_elses() -> None:
    class Scales(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            result = super().step(actions)
            actions *= 7
            return result

    for mode in MODES:
        env = GymVectorAdapter(
            Scales([CountingEnv, CountingEnv], autoreset_mode=mode),
            EnvConfig(env="my.module:make").resolved(),
            2,
            0,
        )
        env.reset()
        action = {"action": np.full((2, 2), 0.5, np.float32)}
        for _ in range(20):
            row = env.step(action)
            moved = row.live & ~row.is_first
            assert (row.obs["obs"][moved, 2] == 0.5).all()
        assert (action["action"] == 0.5).all()


def test_vector_env_may_draw_each_of_its_envs() -> None:
    class Drawing(Own):
        def render(self) -> Any:
            return tuple(np.full((4, 4, 3), index, np.uint8) for index in range(2))

    env = adapted(Drawing(AutoresetMode.NEXT_STEP))
    assert env.render(1).max() == 1
    with pytest.raises(EnvFailureError, match="render raised NotImplementedError"):
        adapted(Own(AutoresetMode.NEXT_STEP)).render(0)
