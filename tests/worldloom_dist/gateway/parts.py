"""A gateway with fakes around it, and questions for it."""

import asyncio

import numpy as np

from tests.fakes import FakePolicy, FakeReplayWriter
from worldloom.core.exceptions import StateError
from worldloom.core.protocol import SamplingSpec
from worldloom.core.sequence import PolicyVersion
from worldloom.data.codec import decode_rows
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import probe_env
from worldloom.envs.toy import CountingEnv
from worldloom_client.wire import encode_tensor, message
from worldloom_dist.actors.inference import InferenceServer
from worldloom_dist.gateway.contract import Contract, Limits
from worldloom_dist.gateway.gateway import Gateway
from worldloom_dist.replay.shard import ReplayShard

KEY = b"k" * 32
VERSION = PolicyVersion(1, 7)


class FakeShard:
    """Stores chunks of a :class:`FakeReplayWriter` unless told to wait or to fence."""

    def __init__(self, columns) -> None:
        self.writer = FakeReplayWriter(columns)
        self.permits = asyncio.Event()
        self.permits.set()
        self.fenced = {}

    async def append(self, chunk) -> None:
        from worldloom_dist.ports import FencedError

        await self.permits.wait()
        if (chunk.stream.slot, chunk.stream.incarnation) in self.fenced:
            raise FencedError(f"{chunk.stream} is fenced")
        self.writer.append(chunk)

    async def fence(self, slot, incarnation):
        from worldloom.data.codec import notes_of

        self.fenced[slot, incarnation] = True
        found = {}
        for stream, chunks in self.writer.chunks.items():
            if stream[:2] == (slot, incarnation):
                newest = chunks[-1]
                found[stream.env] = notes_of(newest.payload)["first_step"] + newest.num_rows
        return found


class KeptShard:
    """A real shard; keeps what was new, and may wait, or lose acknowledgements, when it is told.

    ``lose_acks``: how often yet a chunk is stored and its sender hears of an error.
    """

    def __init__(self, columns, folder) -> None:
        sampling = SamplingSpec(batch_size=1, length=2)
        self.shard = ReplayShard(
            0, columns, sampling, capacity_rows=10_000, directory=folder, durability="journal"
        )
        self.columns = columns
        self.chunks = []
        self.permits = asyncio.Event()
        self.permits.set()
        self.lose_acks = 0

    async def append(self, chunk) -> bool:
        await self.permits.wait()
        is_new = self.shard.append(chunk)
        if is_new:
            self.chunks.append(chunk)
        if self.lose_acks:
            self.lose_acks -= 1
            raise StateError("acknowledgement lost on purpose")
        return is_new

    async def fence(self, slot, incarnation):
        return self.shard.fence(slot, incarnation)

    def rows(self, only=lambda chunk: True):
        """All rows of ``toy:counting``, by episode and step, as they are stored; but the last row
        of an episode that was broken off counts as one in its middle.
        """
        chunks = [chunk for chunk in self.chunks if only(chunk)]
        parts = [decode_rows(chunk.payload, self.columns) for chunk in chunks]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in self.columns}
        order = np.lexsort((rows["obs"][:, 1], rows["obs"][:, 0]))
        rows = {name: value[order] for name, value in rows.items()}
        slots = np.repeat([c.stream.incarnation for c in chunks], [c.num_rows for c in chunks])
        is_left = np.diff(slots[order], append=slots[-1]) != 0
        length = np.array(CountingEnv.LENGTHS)[rows["obs"][:, 0].astype(int) % 5]
        ends = rows["obs"][:, 1] == length
        # a row where an episode was broken off is a last one, and what it says of its action is of
        # no meaning: the answer may have been lost on the way
        is_broken = (rows["truncated"] & ~ends) | (rows["is_first"] & is_left)
        for place in np.flatnonzero(is_broken[:-1]):
            rows["action"][place, 0] = rows["obs"][place + 1, 2]
        rows["truncated"] &= ends
        return rows


class Decider:
    """Decides at once with a :class:`FakePolicy`, or another policy."""

    def __init__(self, spec, extras, policy=None) -> None:
        self.policy = policy or FakePolicy(spec, extras)
        self.server = InferenceServer(self.policy)
        self.failures = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.requests = 0

    async def __call__(self, request):
        from dataclasses import replace

        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.requests += 1
        reply = self.server.act_batch([request])[0]
        return replace(reply, version=VERSION)


def spec_of(env="toy:counting"):
    return probe_env(EnvConfig(env=env))[0]


def contract_of(env="toy:counting", extras=None, **limits) -> Contract:
    spec = spec_of(env)
    features = ("store", "push", "explore", "zlib", "zstd")
    return Contract(
        env_spec=spec,
        env=env,
        columns=spec.columns(extras or {}),
        features=features,
        limits=Limits(**limits),
    )


class Rig:
    """A gateway, its shard and its policy; made on a loop."""

    def __init__(
        self,
        contract=None,
        *,
        shard=None,
        index=0,
        incarnation=1,
        clock=None,
        policy=None,
        version=VERSION,
        **more,
    ):
        self.contract = contract or contract_of()
        own = self.contract.env_spec.columns()
        extras = {k: v for k, v in self.contract.columns.items() if k not in own}
        self.shard = shard or FakeShard(self.contract.columns)
        self.decider = Decider(self.contract.env_spec, extras, policy)
        more = {"chunk_rows": 4, "max_chunk_age_s": 1e9, **more}
        if clock is not None:
            more["clock"] = clock
        more = {"key": KEY, "append": self.shard.append, "fence": self.shard.fence, **more}
        self.gateway = Gateway(
            self.contract,
            self.decider,
            lambda: version,
            index=index,
            incarnation=incarnation,
            **more,
        )

    async def open(self, num_envs=1, **more):
        request = message("OpenRequest")(
            **{"client": "test", "num_envs": num_envs, "explore": True, "store": True, **more}
        )
        return await self.gateway.open(request)


def question(rows, **more):
    """``rows`` is a list of (env, step, obs, reward, is_first, terminated, truncated)."""
    envs, steps, obs, reward, first, terminated, truncated = zip(*rows, strict=True)
    return message("ActRequest")(
        env=envs,
        step=steps,
        obs=[encode_tensor(np.array(obs, np.float32))],
        reward=reward,
        is_first=bytes(first),
        terminated=bytes(terminated),
        truncated=bytes(truncated),
        **more,
    )


class Player:
    """Plays ``toy:counting`` in one env of a session, in the gateway's own messages."""

    def __init__(self, env=0) -> None:
        from worldloom.envs.toy import CountingEnv

        self.env = env
        self.sim = CountingEnv()
        self.step = 0
        self.now = (self.sim.reset(seed=0)[0], 0.0, True, False, False)

    def row(self):
        obs, *rest = self.now
        return (self.env, self.step, obs, *rest)

    def move(self, action) -> None:
        ended = self.now[3] or self.now[4]
        self.step += 1
        if ended:
            self.now = (self.sim.reset()[0], 0.0, True, False, False)
        else:
            obs, reward, terminated, truncated, _ = self.sim.step(action)
            self.now = (obs, reward, False, terminated, truncated)


async def play(rig, secret, players, steps) -> None:
    """Whole questions of all players."""
    from worldloom_client.wire import named

    for _ in range(steps):
        response = await rig.gateway.act(secret, question([p.row() for p in players]))
        actions = named(rig.contract.action, response.action, (len(players),), "action")
        for place, player in enumerate(players):
            player.move(actions["action"][place])
