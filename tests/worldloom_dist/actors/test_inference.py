import logging
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakePolicy, FakeWeights, snapshot_of
from worldloom.core.exceptions import ConfigurationError, ShapeMismatchError
from worldloom.core.protocol import ActOutput, Carry
from worldloom.core.sequence import PolicyVersion
from worldloom.core.specs import ArraySpec, EnvSpec
from worldloom_dist.actors.acting import ActRequest, LocalActing, RemoteActing
from worldloom_dist.actors.inference import CarryTable, InferenceServer

SPEC = EnvSpec(name="toy", obs={"obs": ArraySpec((2,))}, action={"action": ArraySpec((1,))})
EXTRAS = {"count": ArraySpec((), "float32")}


def request(slot: int, envs: list[int], *, first: bool = False, incarnation: int = 0) -> ActRequest:
    obs = {"obs": np.zeros((len(envs), 2), np.float32)}
    return ActRequest(slot, incarnation, np.array(envs, np.int64), obs, np.full(len(envs), first))


def server(**settings: Any) -> InferenceServer:
    return InferenceServer(FakePolicy(SPEC, EXTRAS), **settings)


def counts(replies: list[Any]) -> list[list[float]]:
    return [reply.extras["count"].tolist() for reply in replies]


def test_one_call_of_the_policy_answers_many_workers_in_order() -> None:
    policy = FakePolicy(SPEC, EXTRAS)
    central = InferenceServer(policy)
    central.act_batch([request(0, [0, 1], first=True), request(1, [0], first=True)])
    central.act_batch([request(1, [0])])
    replies = central.act_batch([request(1, [0]), request(0, [1, 0]), request(2, [0], first=True)])
    assert counts(replies) == [[2], [1, 1], [0]]
    assert policy.calls == [3, 1, 4]
    assert not any(reply.carry_reset.any() for reply in replies)


def test_restarted_server_says_that_it_lost_the_carries() -> None:
    (reply,) = server().act_batch([request(0, [0, 1])])
    assert reply.carry_reset.tolist() == [True, True]
    assert counts([reply]) == [[0, 0]]
    (fresh,) = server().act_batch([request(0, [0], first=True)])
    assert fresh.carry_reset.tolist() == [False]


def test_new_incarnation_begins_with_an_initial_carry() -> None:
    central = server()
    central.act_batch([request(0, [0], first=True), request(1, [0], first=True)])
    (again,) = central.act_batch([request(0, [0], incarnation=1)])
    assert (counts([again]), again.carry_reset.tolist()) == ([[0]], [True])
    (other,) = central.act_batch([request(1, [0])])
    assert (counts([other]), other.carry_reset.tolist()) == ([[1]], [False])


def test_rows_of_an_earlier_incarnation_are_used_again_and_a_full_table_grows() -> None:
    table = CarryTable(FakePolicy(SPEC), capacity=4)
    rows, is_new = table.rows_of(request(0, [0, 1, 2]))
    assert sorted(rows.tolist()) == [1, 2, 3]
    assert is_new.all()
    table.scatter(rows, {"count": np.array([5, 6, 7]), "noise": np.ones((3, 2), np.float32)})
    more, _ = table.rows_of(request(1, list(range(20))))
    assert len({*rows.tolist(), *more.tolist(), 0}) == 24
    assert table.gather(rows)["count"].tolist() == [5, 6, 7]
    assert table.gather(more)["count"].tolist() == [0] * 20
    reused, _ = table.rows_of(request(0, [0], incarnation=1))
    assert len(table) == 21
    assert reused[0] in rows
    assert table.gather(reused)["count"].tolist() == [0]


def test_padding_changes_no_answer() -> None:
    plain = server(explore=False)
    policy = FakePolicy(SPEC, EXTRAS)
    padded = InferenceServer(policy, batch_sizes=(4, 8), explore=False)
    for step in range(3):
        batch = [request(0, [0, 1], first=step == 0), request(1, [0, 1, 2], first=step == 0)]
        for a, b in zip(plain.act_batch(batch), padded.act_batch(batch), strict=True):
            assert np.array_equal(a.action["action"], b.action["action"])
            assert np.array_equal(a.extras["count"], b.extras["count"])
    padded.act_batch([request(2, list(range(9)), first=True)])
    assert policy.calls == [8, 8, 8, 9]


def test_batch_sizes_must_rise() -> None:
    with pytest.raises(ConfigurationError, match="batch_sizes must be positive and rising"):
        server(batch_sizes=(8, 4))


def test_env_that_asks_twice_in_one_batch_is_refused() -> None:
    with pytest.raises(ShapeMismatchError, match="each env once"):
        server().act_batch([request(0, [0]), request(0, [0])])


def test_empty_batch_needs_no_policy() -> None:
    policy = FakePolicy(SPEC)
    (reply,) = InferenceServer(policy).act_batch([request(0, [])])
    assert (reply.carry_reset.shape, policy.calls) == ((0,), [])


def test_weights_are_pulled_between_batches_and_named_in_the_reply() -> None:
    weights = FakeWeights()
    central = server(source=weights)
    (before,) = central.act_batch([request(0, [0], first=True)])
    weights.publish(snapshot_of(0.5, PolicyVersion(2, 9)))
    central.refresh()
    (after,) = central.act_batch([request(0, [0])])
    assert (before.version.update, after.version) == (0, PolicyVersion(2, 9))
    assert after.action["action"][0, 0] > 0.4


def test_lost_carries_are_counted_once_and_named_by_who_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    servers = [server(), server()]
    remote = RemoteActing(3, 0, lambda asked: servers[0].act_batch([asked])[0], first_env=4)
    obs = {"obs": np.zeros((3, 2), np.float32)}
    no = np.zeros(3, bool)
    with caplog.at_level(logging.WARNING):
        remote.act(obs, no)  # as after a random prefill: nothing is lost
    servers.reverse()  # the first one has died
    with caplog.at_level(logging.WARNING):
        lost = [
            remote.act(
                obs, np.array([False, True, False]), np.array([True, True, False])
            ).carry_resets,
            remote.act(obs, no).carry_resets,
            remote.act(obs, no).carry_resets,
        ]
    assert lost == [[0], [2], []], "each once, by its place in the request"
    assert remote.drain_metrics()["carry_resets_total"].value == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"the inference server had lost the carries of envs {env} in mid-episode" for env in (4, 6)
    ]
    assert "carry_resets_total" not in remote.drain_metrics()
    assert all("carry_resets_total" not in central.drain_metrics() for central in servers), (
        "or a sum over roles would double"
    )


def test_env_that_was_late_when_the_policy_began_to_act_has_lost_nothing() -> None:
    central = server()
    remote = RemoteActing(0, 0, lambda asked: central.act_batch([asked])[0])
    obs = {"obs": np.zeros((2, 2), np.float32)}
    no = np.zeros(2, bool)
    assert remote.act(obs, no, np.array([True, False])).carry_resets == []
    assert remote.act(obs, no).carry_resets == [], (
        "it comes back in mid-episode, from random actions"
    )
    central = server()
    assert remote.act(obs, no).carry_resets == [0, 1]


def test_row_that_is_not_live_keeps_its_carry() -> None:
    central = server()
    remote = RemoteActing(0, 0, lambda asked: central.act_batch([asked])[0])
    local = LocalActing(FakePolicy(SPEC, EXTRAS), 2)
    obs = {"obs": np.zeros((2, 2), np.float32)}
    for acting in (remote, local):
        acting.act(obs, np.array([True, True]))
        acting.act(obs, np.array([False, True]), np.array([True, False]))
        out = acting.act(obs, np.array([False, False]), np.array([True, True]))
        assert out.extras["count"].tolist() == [2, 1]


def test_carries_may_be_torch_tensors() -> None:
    import torch

    class TorchPolicy(FakePolicy):
        def initial_carry(self, num_envs: int) -> Carry:
            with torch.inference_mode():
                return {"count": torch.zeros(num_envs, dtype=torch.int64)}

        def act(self, obs: Any, carry: Carry, is_first: np.ndarray, *, explore: bool) -> ActOutput:
            with torch.inference_mode():
                count = torch.where(torch.from_numpy(is_first), 0, carry["count"])
                extras = {"count": count.numpy().astype(np.float32)}
                return ActOutput(
                    {"action": np.zeros((len(is_first), 1), np.float32)},
                    {"count": count + 1},
                    extras,
                )

    central = InferenceServer(TorchPolicy(SPEC, EXTRAS), batch_sizes=(4,))
    for _ in range(3):
        replies = central.act_batch([request(0, [0, 1]), request(1, [4])])
    assert counts(replies) == [[2, 2], [2]]
    central.act_batch([request(5, list(range(200)), first=True)])
    assert counts(central.act_batch([request(0, [1])])) == [[3]]
    local = LocalActing(TorchPolicy(SPEC, EXTRAS), 2)
    obs = {"obs": np.zeros((2, 2), np.float32)}
    no = np.zeros(2, bool)
    local.act(obs, no)
    local.act(obs, no, np.array([False, True]))
    assert local.act(obs, no).extras["count"].tolist() == [1, 2]
