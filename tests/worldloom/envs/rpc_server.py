"""A dm_env_rpc server that plays ``toy:counting``, or says what it is told to say."""

import itertools
from concurrent import futures

import grpc
import numpy as np
from dm_env_rpc.v1 import dm_env_rpc_pb2 as pb
from dm_env_rpc.v1 import dm_env_rpc_pb2_grpc, spec_manager, tensor_spec_utils
from google.rpc import status_pb2

from worldloom.envs.toy import CountingEnv


def tensor(name, dtype, shape=(), low=None, high=None):
    """A ``TensorSpec``."""
    spec = pb.TensorSpec(name=name, dtype=dtype, shape=shape)
    if low is not None or high is not None:
        tensor_spec_utils.set_bounds(spec, low, high)
    return spec


OBS = {
    1: tensor("count", pb.FLOAT, (3,)),
    2: tensor("hint", pb.STRING),
    3: tensor("reward", pb.DOUBLE),
    5: tensor("phase", pb.INT32, (), 0, 4),
}
ACTIONS = {
    1: tensor("move", pb.FLOAT, (2,), [-2.0, -4.0], [2.0, 4.0]),
    2: tensor("mode", pb.INT32, (), 1, 3),
    4: tensor("note", pb.STRING),
    5: tensor("grip", pb.INT64, (2,), [0, -1], [1, 1]),
}


class World:
    """One env."""

    def __init__(self) -> None:
        self.env = CountingEnv()
        self.is_open = False
        self.given = []
        self.now = None

    def step(self, actions):
        """Observation by name, and the state."""
        if not self.is_open:
            obs, reward, ends = self.env.reset()[0], 0.0, (False, False)
            self.is_open = True
        else:
            self.given.append(actions)
            move = np.asarray(actions.get("move", np.zeros(2)), np.float32) / [2.0, 4.0]
            obs, reward, *ends, _ = self.env.step(move.astype(np.float32))
        self.is_open = not any(ends)
        state = pb.RUNNING if self.is_open else pb.TERMINATED if ends[0] else pb.INTERRUPTED
        phase = np.int32(obs[1] % 5)
        return {"count": obs, "hint": "go", "reward": float(reward), "phase": phase}, state


class Server(dm_env_rpc_pb2_grpc.EnvironmentServicer):
    """Worlds by name; ``refuses`` maps a kind of message to what is said to it."""

    def __init__(self, observations=None, actions=None, port=0) -> None:
        self.observations = observations or OBS
        self.actions = actions or ACTIONS
        self.refuses = {}
        self.worlds = {}
        self._numbers = itertools.count()
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        dm_env_rpc_pb2_grpc.add_EnvironmentServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def stop(self) -> None:
        """As if it was killed."""
        self._server.stop(None).wait()

    def Process(self, requests, context):
        joined = ""
        for request in requests:
            kind = request.WhichOneof("payload")
            answer = pb.EnvironmentResponse()
            try:
                if kind in self.refuses:
                    raise ValueError(self.refuses[kind])
                message = getattr(request, kind)
                if kind == "join_world":
                    if joined:
                        raise ValueError("joined already")
                    self._world(message.world_name)
                    joined = message.world_name
                    _no_settings(message)
                if kind == "leave_world":
                    joined = ""
                getattr(answer, kind).CopyFrom(getattr(self, f"_{kind}")(message, joined))
            except Exception as error:
                answer = pb.EnvironmentResponse()
                answer.error.CopyFrom(status_pb2.Status(code=3, message=str(error)))
                if kind == "join_world" and "settings" in str(error):
                    joined = ""
            yield answer

    def _world(self, name):
        if name not in self.worlds:
            raise ValueError(f"there is no world {name!r}")
        return self.worlds[name]

    def _specs(self, response):
        for uid, spec in self.observations.items():
            response.specs.observations[uid].CopyFrom(spec)
        for uid, spec in self.actions.items():
            response.specs.actions[uid].CopyFrom(spec)
        return response

    def _create_world(self, message, _):
        _no_settings(message)
        name = f"world-{next(self._numbers)}"
        self.worlds[name] = World()
        return pb.CreateWorldResponse(world_name=name)

    def _join_world(self, message, _):
        return self._specs(pb.JoinWorldResponse())

    def _leave_world(self, *_):
        return pb.LeaveWorldResponse()

    def _destroy_world(self, message, joined):
        self._world(message.world_name)
        del self.worlds[message.world_name]
        return pb.DestroyWorldResponse()

    def _reset(self, _, joined):
        self._world(joined).is_open = False
        return self._specs(pb.ResetResponse())

    def _reset_world(self, message, _):
        self._world(message.world_name).is_open = False
        return pb.ResetWorldResponse()

    def _step(self, message, joined):
        world = self._world(joined)
        actions = {}
        if world.is_open:
            for uid, given in message.actions.items():
                if list(given.shape).count(-1) == 1 and uid in self.actions:
                    given.shape[:] = self.actions[uid].shape
            actions = spec_manager.SpecManager(self.actions).unpack(message.actions)
            self._check(actions)
        values, state = world.step(actions)
        response = pb.StepResponse(state=state)
        packed = spec_manager.SpecManager(self.observations).pack(
            {spec.name: values.get(spec.name, 0) for spec in self.observations.values()}
        )
        for uid in message.requested_observations:
            if uid not in packed:
                raise ValueError(f"there is no observation {uid}")
            response.observations[uid].CopyFrom(packed[uid])
        return response

    def _check(self, actions):
        for spec in self.actions.values():
            if spec.name in actions and spec.dtype != pb.STRING:
                bounds = tensor_spec_utils.bounds(spec)
                value = np.asarray(actions[spec.name])
                if (value < bounds.min).any() or (value > bounds.max).any():
                    raise ValueError(f"action {spec.name} is out of its bounds")


def _no_settings(message):
    if message.settings:
        raise ValueError(f"there are no settings, got {sorted(message.settings)}")
