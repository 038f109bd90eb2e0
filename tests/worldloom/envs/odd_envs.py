"""Envs that spell Gymnasium's contract in every way that people do, right and wrong, reached as
``odd_envs:NAME``.

``GOOD`` train, ``REFUSED`` and ``BROKEN`` get the sentence that is given beside them: before a run,
or in its course.
"""

import pickle
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 20


class Base(gymnasium.Env):
    """Observes how far its episode is; the reward is the size of the first action."""

    observation_space: Any = spaces.Box(-10, 10, (3,), np.float32)
    action_space: Any = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.look(), float(self.t), False, self.t >= LENGTH, {}

    def look(self) -> Any:
        return np.array([self.t / LENGTH, 0.5, -0.5], np.float32)


def answering(**parts: Any) -> type[Base]:
    """An env that puts other things into what ``step`` returns, each made from the right one."""

    class Answering(Base):
        def step(self, action: Any) -> Any:
            answer = dict(
                zip(
                    ("obs", "reward", "terminated", "truncated", "info"),
                    super().step(action),
                    strict=True,
                )
            )
            return tuple(
                parts[name](value) if name in parts else value for name, value in answer.items()
            )

    return Answering


def observing(space: Any, look: Any) -> type[Base]:
    """An env with another observation, ``look(t)`` for the step's number ``t``."""

    class Observing(Base):
        observation_space = space

        def look(self) -> Any:
            return look(self.t)

    return Observing


def acting(space: Any) -> type[Base]:
    """An env with another action space, which takes nothing else."""

    class Acting(Base):
        action_space = space

        def step(self, action: Any) -> Any:
            if not space.contains(action):
                raise ValueError(f"{action!r} is not in {space}")
            return super().step(action)

    return Acting


class NoSeed(Base):
    def reset(self) -> Any:  # type: ignore[override]
        self.t = 0
        return self.look(), {}


class InnerNoSeed(gymnasium.Wrapper):
    def __init__(self) -> None:
        super().__init__(NoSeed())


class NeedsMore(Base):
    def reset(self, level: int, *, seed: int | None = None) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class NeedsOptions(Base):
    def reset(self, seed: int | None, options: Any) -> Any:  # type: ignore[override]
        return super().reset(seed=seed)


class NoInfo(Base):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class FourTuple(Base):
    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, truncated, info


class SpecDict(Base):
    spec: Any = {"name": "mine"}  # noqa: RUF012


class OddAttributes(Base):
    """Names that we use too, for something else."""

    episode_limit = "twenty"
    spec = "mine"

    def may_terminate(self):
        return 1


class Unclosable:
    """No ``gymnasium.Env`` at all, and nothing to close."""

    observation_space = Base.observation_space
    action_space = Base.action_space

    def reset(self, seed: int | None = None) -> Any:
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return np.zeros(3, np.float32), 1, False, self.t >= LENGTH, None


class RaisingSpace(Base):
    @property
    def observation_space(self) -> Any:  # type: ignore[override]
        raise RuntimeError("not connected")


class HalfVector(gymnasium.vector.VectorEnv):
    """Forgets the spaces of a single env."""

    num_envs = 2
    observation_space = Base.observation_space
    action_space = Base.action_space


class Mission(spaces.Space):
    pass


class ForeignBox:
    """Stands in for the Box of the old gym."""

    shape = (3,)
    dtype = np.dtype(np.float32)


class InPlace(Base):
    def step(self, action: Any) -> Any:
        action *= 2
        obs, _, *rest = super().step(action)
        return obs, float(np.abs(action).max()), *rest


class OneStep(Base):
    def step(self, action: Any) -> Any:
        obs, reward, *_ = super().step(action)
        return obs, reward, True, False, {}


class Endless(Base):
    def step(self, action: Any) -> Any:
        obs, *_ = super().step(action)
        return obs, 1.0, False, False, {}


IMAGE = spaces.Box(0, 255, (48, 40, 3), np.uint8)
Picture = observing(IMAGE, lambda t: np.full((48, 40, 3), t, np.uint8))


def stacked() -> gymnasium.Env:
    return gymnasium.wrappers.FrameStackObservation(Picture(), 4)


def cartpoles(num_envs: int = 4) -> Any:
    """Gymnasium's own vector env, which takes one seed."""
    return gymnasium.make_vec(
        "CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point"
    )


class Lying(gymnasium.vector.SyncVectorEnv):
    """Resets in the same step and says that it does in the next one."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(
            [Base for _ in range(num_envs)], autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
        )
        self.metadata = {
            **self.metadata,
            "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
        }


SIGHTS = spaces.Dict(
    {
        "bits": spaces.MultiBinary(3),
        "class": spaces.Discrete(30, start=-3),
        "classes": spaces.MultiDiscrete([30, 40]),
        "double": spaces.Box(-1, 99, (2,), np.float64),
        "first": spaces.Box(0, 255, (3, 48, 40), np.uint8),
        "grey": spaces.Box(0, 255, (33, 34), np.uint8),
        "half": spaces.Box(0, 99, (1, 2), np.float16),
        "inner": spaces.Dict(
            {"pair": spaces.Tuple([spaces.Box(0, 99, ()), spaces.Box(0, 99, (2,), np.int64)])}
        ),
        "none": spaces.Box(0, 1, (0,)),
        "picture": IMAGE,
        "stack": spaces.Box(0, 255, (2, 40, 48, 3), np.uint8),
    }
)


def everything(action: Any) -> type[Base]:
    """An env that spells all that it can in an unusual way; every number that it shows is the
    step's.
    """

    class Everything(acting(action)):  # type: ignore[misc]
        observation_space = SIGHTS

        def look(self) -> Any:
            t = self.t
            canvas = self.__dict__.setdefault("canvas", np.zeros((48, 40, 3), np.uint8))
            canvas[:] = t
            return {
                "bits": np.full(3, t % 2, bool),
                "class": t - 3,
                "classes": np.array([t, t], np.int8),
                "double": [t, t],
                "first": np.full((3, 48, 40), t, np.int16),
                "grey": np.full((33, 34), t, np.uint8),
                "half": np.full((1, 2), t, np.float16),
                "inner": {"pair": (float(t), np.full(2, t))},
                "none": np.zeros(0),
                "picture": canvas,
                "stack": np.full((2, 40, 48, 3), t, np.uint8),
            }

        def step(self, native: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(native)
            return [obs, np.array([reward]), np.array(terminated), int(truncated), info]

    return Everything


MOVES = spaces.Dict(
    {
        "angle": spaces.Box(-2, 5, ()),
        "far": spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,)),
        "fine": spaces.Box(-0.1, 0.7, (1,), np.float16),
        "gear": spaces.Tuple(
            [spaces.Box(-3, 9, (2,), np.int8), spaces.Box(-1, 1, (2, 2), np.float64)]
        ),
        "none": spaces.Box(-1, 1, (0,)),
    }
)
CHOICES = spaces.Dict(
    {
        **MOVES.spaces,
        "bits": spaces.MultiBinary(2),
        "many": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[-1, 0], [7, 2]]),
        "one": spaces.Discrete(1),
        "pick": spaces.Discrete(3, start=-7),
    }
)

GOOD: dict[str, Any] = {
    "plain": Base,
    "reward-array": answering(reward=lambda r: np.array([r])),
    "reward-scalar-array": answering(reward=lambda r: np.array(r)),
    "reward-int": answering(reward=int),
    "reward-bool": answering(reward=bool),
    "reward-float16": answering(reward=np.float16),
    "ends-numpy": answering(terminated=np.bool_, truncated=np.array),
    "ends-int": answering(terminated=int, truncated=int),
    "answer-list": type(
        "AnswerList", (Base,), {"step": lambda self, action: list(Base.step(self, action))}
    ),
    "info-none": answering(info=lambda _: None),
    "needs-options": NeedsOptions,
    "spec-dict": SpecDict,
    "odd-attributes": OddAttributes,
    "unclosable": Unclosable,
    "in-place": InPlace,
    "obs-float64": observing(spaces.Box(-1, 1, (2,), np.float64), lambda t: np.full(2, t / 50)),
    "obs-list": observing(spaces.Box(-1, 1, (2,)), lambda t: [t / 50, 0.0]),
    "obs-int": observing(spaces.Box(0, 99, (2,), np.int64), lambda t: np.full(2, t)),
    "obs-bool": observing(spaces.MultiBinary(3), lambda t: np.array([1, 0, t % 2], bool)),
    "obs-scalar": observing(spaces.Box(0, 99, ()), lambda t: float(t)),
    "obs-discrete": observing(spaces.Discrete(30, start=-3), lambda t: t - 3),
    "obs-one-class": observing(spaces.Discrete(1), lambda t: 0),
    "obs-nested": observing(
        spaces.Dict(
            {
                "a": spaces.Tuple([spaces.Discrete(40), spaces.Box(0, 99, (2, 2))]),
                "b": spaces.Box(0, 1, (0,)),
            }
        ),
        lambda t: {"a": (t, np.full((2, 2), t)), "b": np.zeros(0)},
    ),
    "obs-image": Picture,
    "obs-channel-first": observing(
        spaces.Box(0, 255, (1, 48, 48), np.uint8), lambda t: np.full((1, 48, 48), t, np.uint8)
    ),
    "obs-stacked": stacked,
    "obs-float-image": observing(
        spaces.Box(0, 1, (8, 8, 3)), lambda t: np.full((8, 8, 3), t / 50, np.float32)
    ),
    "act-scalar": acting(spaces.Box(-2, 2, ())),
    "act-matrix": acting(spaces.Box(-2, 3, (2, 2), np.float64)),
    "act-int-box": acting(spaces.Box(-3, 9, (2,), np.int8)),
    "act-int64": acting(spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64)),
    "act-float16": acting(spaces.Box(-0.1, 0.7, (2,), np.float16)),
    "act-unbounded": acting(spaces.Box(-np.inf, np.inf, (2,))),
    "act-far-bounds": acting(spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,))),
    "act-half-open": acting(spaces.Box(0, np.inf, (2,))),
    "act-fixed": acting(spaces.Box(np.float32([-1, 3]), np.float32([1, 3]))),
    "act-part-empty": acting(
        spaces.Dict({"go": spaces.Box(-1, 1, (2,)), "none": spaces.Box(-1, 1, (0,))})
    ),
    "act-one-class": acting(spaces.Discrete(1)),
    "act-start": acting(spaces.Discrete(3, start=-7)),
    "act-multi": acting(spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[-1, 0], [7, 2]])),
    "act-bits": acting(spaces.MultiBinary((2, 2))),
    "act-nested": acting(
        spaces.Dict(
            {
                "hand": spaces.Tuple(
                    [spaces.Discrete(2, start=5), spaces.Box(0, 8, (2,), np.int32)]
                ),
                "leg": spaces.Box(0, 9, ()),
            }
        )
    ),
}
"""Name -> env that both trains and passes the check."""

REFUSED: dict[str, tuple[Any, str]] = {
    "no-seed": (NoSeed, "reset() takes no seed"),
    "needs-more": (NeedsMore, "reset() needs level"),
    "foreign-obs": (observing(ForeignBox(), lambda t: 0), "none of Gymnasium's"),
    "foreign-action": (
        type("ForeignAction", (Base,), {"action_space": ForeignBox()}),
        "shimmy.GymV26CompatibilityV0",
    ),
    "mission": (
        observing(spaces.Dict({"mission": Mission(), "x": IMAGE}), lambda t: 0),
        "observation 'mission'",
    ),
    "text": (
        observing(spaces.Dict({"a": spaces.Dict({"b": spaces.Text(4)})}), lambda t: 0),
        "observation 'a/b'",
    ),
    "same-key": (
        observing(
            spaces.Dict(
                {"a/b": spaces.Box(0, 1, (4,)), "a": spaces.Dict({"b": spaces.Box(0, 1, (2,))})}
            ),
            lambda t: 0,
        ),
        "'a/b' would be made twice",
    ),
    "nothing-to-see": (observing(spaces.Box(0, 1, (0,)), lambda t: np.zeros(0)), "holds no array"),
    "nothing-to-do": (acting(spaces.Box(-1, 1, (0,))), "leaves nothing to choose"),
    "stuck": (acting(spaces.Box(5, np.inf, (1,))), "every action becomes 5"),
    "raising-space": (RaisingSpace, "cannot be built: RuntimeError: not connected"),
    "half-vector": (
        HalfVector,
        "without single_observation_space, single_action_space; it must return a Gymnasium env",
    ),
    "no-space": (
        observing(None, lambda t: 0),
        "has a space of class builtins.NoneType, which is none of Gymnasium's",
    ),
    "too-many": (acting(spaces.Discrete(2**40)), "is one of 1099511627776 classes"),
}
"""Name -> env that no run starts with, and what is said."""

BROKEN: dict[str, tuple[Any, str]] = {
    "inner-no-seed": (InnerNoSeed, "reset() takes no seed"),
    "no-info": (NoInfo, "write 'return observation, {}'"),
    "wrapped-four-tuple": (
        lambda: gymnasium.wrappers.TimeLimit(FourTuple(), 50),
        "step returned four values",
    ),
    "wrapped-no-info": (
        lambda: gymnasium.wrappers.RecordEpisodeStatistics(NoInfo()),
        "write 'return observation, {}'",
    ),
    "four-tuple": (FourTuple, "step returned four values"),
    "reward-none": (answering(reward=lambda _: None), "reward is None"),
    "reward-vector": (
        answering(reward=lambda r: np.array([r, r])),
        "reward is an array of shape (2,)",
    ),
    "reward-text": (answering(reward=str), "reward is '1.0' (str)"),
    "reward-complex": (answering(reward=complex), "reward is (1+0j) (complex)"),
    "reward-nan": (answering(reward=lambda _: float("nan")), "reward nan is not finite"),
    "reward-huge": (answering(reward=lambda _: 1e40), "reward 1e+40 is not finite in float32"),
    "reward-long": (answering(reward=lambda _: 10**400), "is not finite in float32"),
    "terminated-text": (answering(terminated=lambda _: "no"), "terminated is 'no' (str)"),
    "terminated-none": (answering(terminated=lambda _: None), "terminated is None"),
    "truncated-two": (answering(truncated=lambda _: 2), "truncated is 2 (int)"),
    "truncated-vector": (
        answering(truncated=lambda end: np.array([end, end])),
        "truncated is an array of shape (2,)",
    ),
    "obs-none": (answering(obs=lambda _: None), "observation 'obs' is None"),
    "obs-shape": (answering(obs=lambda obs: obs[:2]), "observation 'obs': expected (3,), got (2,)"),
    "obs-text": (answering(obs=lambda obs: obs.astype(str)), "observation 'obs' is of dtype <U"),
    "obs-complex": (
        answering(obs=lambda obs: obs.astype(complex)),
        "observation 'obs' is of dtype complex128",
    ),
    "obs-ragged": (answering(obs=lambda _: [[1.0], [1.0, 2.0], 3.0]), "is no array of numbers"),
    "obs-nan": (answering(obs=lambda obs: obs * np.nan), "observation 'obs' holds nan"),
    "obs-huge": (
        observing(spaces.Box(-np.inf, np.inf, (2,), np.float64), lambda t: np.full(2, 1e300)),
        "observation 'obs' holds inf",
    ),
    "obs-keys": (
        observing(
            spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": IMAGE}), lambda t: {"a": np.zeros(2)}
        ),
        "lacks 'b'",
    ),
    "obs-class": (observing(spaces.Discrete(5), lambda t: t), "lies outside its discrete space"),
    "obs-half-class": (observing(spaces.Discrete(50), lambda t: t + 0.5), "its space says int64"),
    "obs-float-bytes": (
        observing(IMAGE, lambda t: np.full((48, 40, 3), 0.5)),
        "image 'obs' is float64",
    ),
}
"""Name -> env that is refused when it is stepped, and what is said."""

OTHERS = {
    "one-step": OneStep,
    "endless": Endless,
    "moves": everything(MOVES),
    "choices": everything(CHOICES),
}
DISCRETE = ("act-one-class", "act-start", "act-multi", "act-bits", "act-nested")


def __getattr__(name: str) -> Any:
    """``odd_envs:reward_none`` is the env of that name."""
    wanted = name.replace("_", "-")
    for group in (GOOD, REFUSED, BROKEN, OTHERS):
        if wanted in group:
            return group[wanted][0] if isinstance(group[wanted], tuple) else group[wanted]
    raise AttributeError(name)


class Helper(Base):
    """Has a ``get_state`` of its own: what its agent sees."""

    def get_state(self) -> Any:
        return self.look()


class PerAgent(Base):
    def get_state(self, agent: str) -> Any:
        return self.look()


class MuJoCoLike(Base):
    """As Gymnasium's ``MujocoEnv`` and others name things."""

    def get_state(self) -> Any:
        return {"qpos": np.zeros(3), "qvel": np.zeros(3)}

    def set_state(self, qpos: Any, qvel: Any) -> None:
        raise RuntimeError("no simulator")

    def state(self) -> Any:
        raise RuntimeError("no simulator")

    def render_state(self) -> Any:
        raise RuntimeError("no simulator")


class Resumable(Base):
    """Draws, and can be saved as the docs say."""

    def look(self) -> Any:
        self.x = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.x

    def worldloom_get_state(self) -> dict[str, Any]:
        return {"t": self.t, "rng": self.np_random.bit_generator.state}

    def worldloom_set_state(self, state: dict[str, Any]) -> None:
        self.t = int(state["t"])
        self.np_random.bit_generator.state = state["rng"]


class Unsavable(Base):
    def worldloom_get_state(self) -> Any:
        raise RuntimeError("the simulator\nis busy")

    def worldloom_set_state(self, state: Any) -> None:
        pass


class StateOfBytes(Unsavable):
    def worldloom_get_state(self) -> Any:
        return pickle.dumps({"t": self.t})


class StateOfTexts(Unsavable):
    def worldloom_get_state(self) -> Any:
        return np.array(["left", "right"])
