"""``rpc:HOST:PORT``: an env that a dm_env_rpc server plays, in any language.

``rpc:HOST:PORT/WORLD`` joins a world that is there already; otherwise one is made, and destroyed
again.

    TensorSpec (name, dtype, shape, min, max)  ->  a space of Gymnasium, under its name
    state TERMINATED or INTERRUPTED            ->  terminated or truncated; a ``discount`` decides
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from worldloom.core.error_text import first_line
from worldloom.core.exceptions import ConfigurationError, EnvFailureError, MissingDependencyError
from worldloom.envs.building import EnvBuildError
from worldloom.envs.config import EnvConfig
from worldloom.envs.wrappers import RawEnv

__all__ = ["RpcEnv", "make"]

logger = logging.getLogger(__name__)

REACHED_WITHIN_S = 10.0
OWN_NAMES = ("reward", "discount")
MOST_CLASSES = 1024
"""Values of a bounded integer that become classes; more are numbers."""
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def make(config: EnvConfig) -> RawEnv:
    """Connect, and join a world.

    Raises:
        MissingDependencyError: If dm-env-rpc is not installed.
        EnvBuildError: If no server answers there, or it says no.
        ConfigurationError: If what it gives or takes cannot be learnt from.
    """
    try:
        import dm_env_rpc.v1.dm_env_adaptor  # noqa: F401 - looks for it
    except ImportError as error:
        raise MissingDependencyError("rpc envs", "dm-env-rpc", "rpc") from error
    address, _, world = config.name.partition("/")
    return RawEnv(RpcEnv(config.env, address, world))


class RpcEnv(gymnasium.Env[dict[str, Any], dict[str, Any]]):
    """One world of a server as a Gymnasium env.

    Args:
        name: As ``--env`` spells it, for messages.
        address: ``HOST:PORT``.
        world: Which world to join; empty makes one.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so

    def __init__(self, name: str, address: str, world: str) -> None:
        self._name = name
        self._address = address
        self._own_world = ""
        self._channel: Any = None
        self._world: Any = None
        try:
            with self._talk(EnvBuildError):
                self._join(world)
        except BaseException:
            self.close()
            raise

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. The protocol knows no seed: what is random is the server's business."""
        with self._talk(EnvFailureError):
            return self._observed(self._world.reset()), {}

    def step(
        self, action: Mapping[str, Any]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One step; at the end of an episode a discount of 0 terminates, any other truncates."""
        with self._talk(EnvFailureError):
            found = self._world.step(
                {key: np.asarray(value, self._dtypes[key]) for key, value in action.items()}
            )
        if found.first():
            raise EnvFailureError(
                f"env {self._name!r} began an episode where it was told to go on with one"
            )
        terminates = found.last() and not np.any(found.discount)
        reward = 0.0 if found.reward is None else found.reward
        truncates = found.last() and not terminates
        return self._observed(found), reward, bool(terminates), bool(truncates), {}

    def close(self) -> None:
        """Leave the world, destroy it if it is ours, and let go of the connection."""
        if self._channel is None:
            return
        from dm_env_rpc.v1 import dm_env_rpc_pb2

        # a server that is gone has nothing to free
        with contextlib.suppress(Exception):
            if self._world is not None:
                self._world.close()
            if self._own_world:
                self._connection.send(
                    dm_env_rpc_pb2.DestroyWorldRequest(world_name=self._own_world)
                )
        self._connection.close()
        self._channel.close()
        self._channel = None

    def _join(self, world: str) -> None:
        import grpc
        from dm_env_rpc.v1 import connection, dm_env_adaptor, dm_env_rpc_pb2

        self._channel = grpc.insecure_channel(self._address, OPTIONS)
        self._connection = connection.Connection(self._channel)
        try:
            grpc.channel_ready_future(self._channel).result(REACHED_WITHIN_S)
        except grpc.FutureTimeoutError as error:
            raise EnvBuildError(
                f"env {self._name!r}: no dm_env_rpc server answers at {self._address} within "
                f"{REACHED_WITHIN_S:g} s; start it, or correct the address"
            ) from error
        if not world:
            request = dm_env_rpc_pb2.CreateWorldRequest()
            world = self._own_world = self._connection.send(request).world_name
        joined = self._connection.send(dm_env_rpc_pb2.JoinWorldRequest(world_name=world))
        specs = joined.specs
        observed = self._usable(specs.observations, "observation", OWN_NAMES)
        acted = self._usable(specs.actions, "action", ())
        self.observation_space = spaces.Dict(
            {spec.name: self._space(spec, "observation") for spec in observed}
        )
        self.action_space = spaces.Dict({spec.name: self._space(spec, "action") for spec in acted})
        self._dtypes = {spec.name: _dtype(spec) for spec in acted}
        self._world = dm_env_adaptor.DmEnvAdaptor(
            self._connection,
            specs,
            requested_observations=[spec.name for spec in observed],
            nested_tensors=False,
        )

    def _usable(self, specs: Mapping[int, Any], what: str, own: tuple[str, ...]) -> list[Any]:
        """The numeric ones, by name; says which are left out."""
        found = sorted(specs.values(), key=lambda spec: spec.name)
        found = [spec for spec in found if spec.name not in own]
        numeric = [spec for spec in found if _dtype(spec) is not None]
        left_out = ", ".join(repr(spec.name) for spec in found if _dtype(spec) is None)
        if left_out:
            logger.warning(
                "env %s: the %ss %s are no numbers and are left out", self._name, what, left_out
            )
        if not numeric:
            raise ConfigurationError(
                f"env {self._name!r} has no numeric {what}; a policy needs at least one"
            )
        return numeric

    def _space(self, spec: Any, what: str) -> spaces.Space[Any]:
        """The space of a tensor.

        Raises:
            ConfigurationError: If its size is not fixed, or its bounds are none.
        """
        from dm_env_rpc.v1 import tensor_spec_utils

        shape = tuple(spec.shape)
        if any(side < 0 for side in shape):
            raise ConfigurationError(
                f"env {self._name!r}: the {what} {spec.name!r} has the shape {list(shape)}, and a "
                "policy needs a fixed one; pad it at the server"
            )
        dtype = _dtype(spec)
        assert dtype is not None
        if dtype.kind == "b":
            return spaces.MultiBinary(shape) if shape else spaces.Discrete(2)
        try:
            bounds = tensor_spec_utils.bounds(spec)
        except ValueError as error:
            raise ConfigurationError(
                f"env {self._name!r}: the bounds of the {what} {spec.name!r} are none: "
                f"{first_line(error)}"
            ) from error
        low, high = (
            np.broadcast_to(np.asarray(bound, dtype), shape) for bound in (bounds.min, bounds.max)
        )
        if dtype.kind in "iu" and spec.HasField("min") and spec.HasField("max"):
            classes = high.astype(object) - low.astype(object) + 1
            if (what == "action" or not shape) and np.max(classes, initial=1) <= MOST_CLASSES:
                if not shape:
                    return spaces.Discrete(int(classes), start=int(low))
                counts = classes.astype(np.int64)
                return spaces.MultiDiscrete(counts, start=low.astype(np.int64))
        if dtype.kind == "f" or (dtype.kind == "i" and what == "action"):
            open_end = np.full(shape, np.inf, dtype if dtype.kind == "f" else np.float64)
            low = low if spec.HasField("min") else -open_end
            high = high if spec.HasField("max") else open_end
        kind: Any = dtype.type
        return spaces.Box(low, high, shape, kind)

    def _observed(self, found: Any) -> dict[str, Any]:
        return {
            key: np.asarray(found.observation[key]).astype(space.dtype, copy=False)
            for key, space in self.observation_space.spaces.items()  # type: ignore[attr-defined]
        }

    @contextlib.contextmanager
    def _talk(self, kind: type[EnvBuildError] | type[EnvFailureError]) -> Iterator[None]:
        """Whatever goes wrong with the server becomes one sentence."""
        import grpc
        from dm_env_rpc.v1.error import DmEnvRpcError

        try:
            yield
        except DmEnvRpcError as error:
            said = " ".join(error.message.split()) or f"code {error.code}"
            hint = "" if self._world is not None else _hint(self._own_world)
            raise kind(f"env {self._name!r}: the server says: {said}{hint}") from error
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else "no status"
            raise kind(
                f"env {self._name!r}: the dm_env_rpc server at {self._address} broke off ({code})"
            ) from error
        except StopIteration as error:
            raise kind(
                f"env {self._name!r}: the dm_env_rpc server at {self._address} ended the connection"
            ) from error


def _dtype(spec: Any) -> np.dtype[Any] | None:
    """Of a tensor of numbers; None for texts and messages."""
    from dm_env_rpc.v1 import tensor_utils

    try:
        found = np.dtype(tensor_utils.data_type_to_np_type(spec.dtype))
    except TypeError:
        return None
    return found if found.kind in "biuf" else None


def _hint(own_world: str) -> str:
    return (
        "" if own_world else "; if worlds there are made by others, name one: rpc:HOST:PORT/WORLD"
    )
