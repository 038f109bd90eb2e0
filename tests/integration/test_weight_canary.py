"""Weights that no one could mistake are published, and every acting process is seen to act with
them.

The roles are the real ones on a real Ray: two workers with local inference, one that asks an
inference server, a shard whose journal shows what arrived. There is no learner, so this test alone
says which weights there are. The canary is a bias of the actor's output: with it every component of
every action is positive, or negative, whatever is observed.
"""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np
import pytest

from tests.integration.running import PATIENCE
from worldloom.algorithms.registry import make_agent
from worldloom.core.sequence import PolicyVersion, StreamId
from worldloom.core.weights import WeightsSnapshot
from worldloom.data.codec import decode_rows
from worldloom_dist.replay.journal import JournalDamage, read_journal
from worldloom_dist.replay.records import CHUNK, StoredChunk
from worldloom_dist.run.config import ReplayConfig
from worldloom_dist.run.plan import Plan, resolve
from worldloom_dist.run.presets import PRESETS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900 * PATIENCE),
    pytest.mark.filterwarnings("default"),
]

AGENT = {
    "deter": 32,
    "hidden": 8,
    "stoch": 4,
    "classes": 4,
    "units": 8,
    "depth": 2,
    "blocks": 4,
    "replay_context": 0,
}
SLOTS = LOCAL_0, LOCAL_1, CENTRAL = range(3)
SURE = 20.0
"""As a bias: a mean of +-1; as a negative one of the spread: the smallest spread there is, 0.1."""


def plan_of() -> Plan:
    """The band of the train ratio is so wide that workers never wait for the training that no one
    does.
    """
    config = dataclasses.replace(
        PRESETS["debug"](),
        agent="dreamerv3:ci",
        agent_overrides=AGENT,
        workers=len(SLOTS),
        env_steps=800_000,
        inference="local",
        replay=ReplayConfig(shards=1, capacity_steps=500_000, band_steps=400_000),
    )
    return dataclasses.replace(resolve(config), run_id="canary")


def weights(plan: Plan, update: int, sign: int) -> WeightsSnapshot:
    """Version 1.``update`` of weights whose actions are positive, negative, or (0) the untrained
    ones.
    """
    snapshot = make_agent(plan.agent, plan.env_spec, seed=update).policy_weights()
    arrays = {name: np.array(value) for name, value in snapshot.arrays().items()}
    if sign:
        arrays["actor.head.out.0.bias"][:] = sign * SURE
        arrays["actor.head.out.1.bias"][:] = -SURE
    return WeightsSnapshot.from_arrays(arrays, PolicyVersion(1, update))


def stored(folder) -> dict[int, list[StoredChunk]]:
    """Chunks that have arrived, by worker, in order; each worker has one stream."""
    found: dict[int, list[StoredChunk]] = {slot: [] for slot in SLOTS}
    for record in read_journal(folder / "shard-0", JournalDamage()):
        if record.kind == CHUNK:
            each = StoredChunk.unpack(record.payload)
            assert each.chunk.stream == StreamId(each.chunk.stream.slot, 0, 0)
            found[each.chunk.stream.slot].append(each)
    return found


def wait_for(
    folder, version: PolicyVersion, before: Mapping[int, int] | None = None
) -> dict[int, list[StoredChunk]]:
    """Wait until every worker has sent two chunks of a version, and two more than it had sent
    before.
    """
    deadline = time.monotonic() + 240 * PATIENCE
    while time.monotonic() < deadline:
        found = stored(folder)
        if all(
            sum(each.chunk.version == version for each in chunks) >= 2
            and len(chunks) >= (before or {}).get(slot, 0) + 2
            for slot, chunks in found.items()
        ):
            return found
        time.sleep(0.2)
    raise AssertionError(
        {slot: sorted({str(each.chunk.version) for each in found[slot]}) for slot in SLOTS}
    )


def decisions(plan: Plan, chunks: list[StoredChunk], version: PolicyVersion) -> np.ndarray:
    """Actions of one version, without those of last rows, which no one took. [n, A]"""
    parts = [
        decode_rows(each.chunk.payload, plan.columns)
        for each in chunks
        if each.chunk.version == version
    ]
    return np.concatenate(
        [rows["action"][~(rows["terminated"] | rows["truncated"])] for rows in parts]
    )


def start_roles(plan: Plan, folder) -> None:
    """As the driver does, by name, without hub, learner and evaluator."""
    from worldloom_dist.runtime.coordinator_role import CoordinatorRole
    from worldloom_dist.runtime.policy_roles import InferenceRole
    from worldloom_dist.runtime.shard_role import ShardRole
    from worldloom_dist.runtime.supervisor import start_actor
    from worldloom_dist.runtime.weight_roles import WeightStoreRole
    from worldloom_dist.runtime.worker_role import WorkerRole

    central = dataclasses.replace(plan, measured_inference=("central", "for this test"))
    lasting = []
    options = {"num_cpus": 0.001}
    lasting.append(start_actor(CoordinatorRole, "coordinator-0", plan, 0, options=options))
    lasting.append(start_actor(WeightStoreRole, "weights-0", options=options))
    lasting.append(start_actor(ShardRole, "shard-0", plan, 0, folder, options=options))
    lasting.append(start_actor(InferenceRole, "inference-0", central, 0, 0, options=options))
    for handle in lasting:
        handle.run_forever.remote()
    for slot in SLOTS:
        own = central if slot == CENTRAL else plan
        start_actor(
            WorkerRole, f"worker-{slot}", own, slot, 0, options=options, threads=4
        ).run.remote()


def test_perturbed_weights_change_the_actions_of_every_worker_and_no_version_falls(
    tmp_path, monkeypatch
):
    from worldloom_dist.interfaces import WeightStore, weight_store_client
    from worldloom_dist.runtime.cluster import ray_cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    plan = plan_of()
    folder = tmp_path / "replay"
    versions = [PolicyVersion(1, update) for update in range(3)]
    with ray_cluster(None, plan.run_id):
        start_roles(plan, folder)
        store = weight_store_client()
        for version, sign in zip(versions, (0, 1, -1), strict=True):
            assert store.call(WeightStore.publish, weights(plan, version.update, sign))
            wait_for(folder, version)
        assert not store.call(WeightStore.publish, weights(plan, 1, 1)), (
            "an older version is refused"
        )
        arrived = {slot: len(chunks) for slot, chunks in stored(folder).items()}
        found = wait_for(folder, versions[-1], arrived)
    for slot, chunks in found.items():
        order = [each.chunk.version for each in chunks]
        assert order == sorted(order), f"worker {slot}: a version fell"
        assert set(versions) <= set(order)
        first, up, down = (decisions(plan, chunks, version) for version in versions)
        assert (first > 0).any()
        assert (first < 0).any()
        assert (up > 0).all(), f"worker {slot}"
        assert (down < 0).all(), f"worker {slot}"
