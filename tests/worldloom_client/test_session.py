"""The blocking client against a gateway that listens."""

import asyncio
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.fakes import check_counting_rows
from tests.ports import free_port
from tests.worldloom_client.live import Live, live
from tests.worldloom_dist.gateway.parts import contract_of
from worldloom.core.sequence import StreamId
from worldloom.envs.toy import CountingEnv
from worldloom_client import ClientError, RefusedError, UnavailableError, WireError, connect
from worldloom_client.line import _watch


def play(session, steps, env=None, now=None):
    """Some steps of ``toy:counting``; returns where it is."""
    env = env or CountingEnv()
    obs, reward, terminated, truncated = now or (env.reset(seed=0)[0], 0.0, False, False)
    for _ in range(steps):
        action = session.act(obs, reward, terminated=terminated, truncated=truncated)
        if terminated or truncated:
            obs, reward, terminated, truncated = env.reset()[0], 0.0, False, False
        else:
            obs, reward, terminated, truncated, _ = env.step(action)
    return env, (obs, reward, terminated, truncated)


def streams(shard):
    return sorted(shard.writer.chunks)


def joined(shard):
    """The rows of all streams, one after the other, without the flags of broken episodes."""
    parts = []
    for stream in streams(shard):
        rows = shard.writer.rows(stream)
        parts.append(rows)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_a_client_acts_and_every_row_is_stored() -> None:
    with live() as server:
        with connect(server.address) as session:
            play(session, 33)
            assert session.version == (1, 7)
            assert session.description.env == "toy:counting"
        assert session.stored == [33]
        (stream,) = streams(server.rig.shard)
        rows = server.rig.shard.writer.rows(stream)
    rows["truncated"][-1] = False
    check_counting_rows(rows)


def test_many_envs_ask_in_one_question() -> None:
    with live() as server, connect(server.address, num_envs=3) as session:
        action = session.act_many(
            {"obs": np.zeros((3, 3), np.float32)}, np.zeros(3), np.zeros(3), np.zeros(3)
        )
        assert action["action"].shape == (3, 2)
        part = session.act_many(
            {"obs": np.ones((1, 3), np.float32)}, np.ones(1), np.zeros(1), np.ones(1), envs=[1]
        )
        assert part["action"].shape == (1, 2)
        assert server.rig.decider.policy.calls == [3, 1]


def test_a_client_goes_on_at_another_gateway_and_no_row_is_lost_or_doubled() -> None:
    first = Live()
    port = free_port()
    session = connect(f"{first.address},127.0.0.1:{port}")
    env, now = play(session, 14)
    second = Live(shard=first.rig.shard, index=1, port=port)
    first.kill()
    play(session, 20, env, now)
    session.close()
    second.thread.stop()
    rows = joined(first.rig.shard)
    assert len(rows["reward"]) == 34
    rows["truncated"][-1] = rows["terminated"][-1] = False
    check_counting_rows({name: value[:33] for name, value in rows.items()})


def test_a_client_waits_for_a_gateway_that_comes_back_at_the_same_address() -> None:
    first = Live()
    session = connect(first.address)
    env, now = play(session, 9)
    port = first.thread.port
    first.kill()
    started = []

    def later():
        started.append(Live(shard=first.rig.shard, port=port, incarnation=2))

    timer = threading.Timer(0.3, later)
    timer.start()
    play(session, 8, env, now)
    session.close()
    timer.join()
    started[0].thread.stop()
    rows = joined(first.rig.shard)
    assert len(rows["reward"]) == 17
    check_counting_rows({name: value[:16] for name, value in rows.items()})


def test_a_gateway_that_is_not_there_is_named_with_the_time_that_was_waited() -> None:
    with pytest.raises(UnavailableError, match=r"no gateway answered at 127.0.0.1:1 within 0.3 s"):
        connect("127.0.0.1:1", timeout_s=0.3)


def test_a_late_answer_ends_in_an_error_in_time() -> None:
    with live() as server:
        session = connect(server.address, timeout_s=0.5)

        async def shut():
            server.rig.decider.gate.clear()

        async def open_again():
            server.rig.decider.gate.set()

        server.thread.call(shut())
        with pytest.raises(UnavailableError):
            session.act(np.zeros(3, np.float32))
        server.thread.call(open_again())
        session.close()


async def never(*_):
    """A gateway that opens sessions, and answers no question."""
    await asyncio.Event().wait()


def test_a_lease_that_no_one_renews_ends_in_an_error_in_time() -> None:
    with live() as server:
        session = connect(server.address, timeout_s=0.5)
        server.rig.gateway.act = never
        with pytest.raises(UnavailableError, match=r"no gateway answered at .* within 0.5 s"):
            session.keep_alive()
        session.close()


def test_a_client_waits_while_replay_wants_no_rows() -> None:
    with live(contract=contract_of(held_chunks=2)) as server:

        async def hold():
            server.rig.shard.permits.clear()

        async def go():
            server.rig.shard.permits.set()

        server.thread.call(hold())
        session = connect(server.address)
        done = threading.Event()

        def act():
            play(session, 40)
            done.set()

        thread = threading.Thread(target=act)
        thread.start()
        assert not done.wait(0.4)
        assert server.rig.gateway.unstored <= 10
        server.thread.call(go())
        assert done.wait(20)
        thread.join()
        session.close()
        assert server.rig.shard.writer.num_rows == 40


def test_a_client_acts_on_while_replay_wants_no_rows_and_counts_what_is_left_out() -> None:
    with live(contract=contract_of(held_chunks=2)) as server:

        async def hold():
            server.rig.shard.permits.clear()

        async def go():
            server.rig.shard.permits.set()

        server.thread.call(hold())
        session = connect(server.address, on_hold="act")
        play(session, 40)
        server.thread.call(go())
        session.close()
        assert session.rows_skipped > 10
        assert server.rig.shard.writer.num_rows + session.rows_skipped >= 40


def test_what_ran_is_told() -> None:
    with live() as server:
        with connect(server.address) as session:
            session.act(np.zeros(3, np.float32))
            session.executed(np.array([0.5, 0.25], np.float32), source="human")
            session.act(np.zeros(3, np.float32), 1.0, terminated=True)
            with pytest.raises(WireError, match="source: got 'cat'"):
                session.executed(np.zeros(2, np.float32), source="cat")
        (stream,) = streams(server.rig.shard)
        assert server.rig.shard.writer.rows(stream)["action"][0].tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("obs", "says"),
    [
        (np.zeros(4, np.float32), r"obs 'obs': got shape \(4,\), expected \(3,\)"),
        (np.full(3, np.nan, np.float32), "not finite"),
        (np.zeros(3, complex), "got complex128, expected float32"),
        ({"camera": np.zeros(3, np.float32)}, r"got keys \['camera'\], expected \['obs'\]"),
    ],
)
def test_a_wrong_observation_is_refused_here(obs, says) -> None:
    with live() as server, connect(server.address) as session:
        with pytest.raises(WireError, match=says):
            session.act(obs)
        session.act(np.zeros(3, np.float32))


def test_what_is_refused_was_not_asked(monkeypatch) -> None:
    from worldloom_dist.gateway import gateway
    from worldloom_dist.gateway.questions import read_question

    def refuse(request, *contract):
        """As if the package sent what it would not send."""
        request.obs[0].shape[1] = 4
        return read_question(request, *contract)

    with live() as server:
        session = connect(server.address)
        env, now = play(session, 3)
        for reward in (float("nan"), float("inf"), 1e300):
            with pytest.raises(WireError, match=r"reward: got .*, expected a number of float32"):
                session.act(now[0], reward)
        with pytest.raises(WireError, match="obs 'obs': is no array"):
            session.act([[1], [1, 2], [3]])
        with pytest.raises(WireError, match=r"action 'action': got numbers outside of \[-1, 1\]"):
            session.executed(np.array([3.0, 0.0], np.float32))
        session.executed(np.array([0.25, 0.25], np.float32))
        with monkeypatch.context() as patch:
            patch.setattr(gateway, "read_question", refuse)
            with pytest.raises(RefusedError, match="expected float32"):
                session.act(now[0], 1.0)
        play(session, 20, env, now)
        session.close()
        rows = joined(server.rig.shard)
        assert rows["action"][2].tolist() == [0.25, 0.25]  # told again with the next question
        assert len(rows["reward"]) == 23


def test_a_session_of_many_envs_checks_their_numbers() -> None:
    with (
        live() as server,
        connect(server.address) as session,
        pytest.raises(WireError, match="env 5"),
    ):
        session.act(np.zeros(3, np.float32), env=5)


def test_what_the_server_refuses_is_raised_with_its_code() -> None:
    with live() as server:
        with pytest.raises(RefusedError, match="num_envs: got 300") as caught:
            connect(server.address, num_envs=300)
        assert caught.value.code == "INVALID_ARGUMENT"
        with pytest.raises(RefusedError) as caught:
            connect(server.address, fingerprint="obs 'obs' = float32[9]")
        assert caught.value.code == "FAILED_PRECONDITION"


def test_settings_are_checked() -> None:
    for settings, says in (
        ({"num_envs": 0}, "num_envs"),
        ({"client": "a b"}, "client"),
        ({"on_hold": "sleep"}, "on_hold"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"key": "x"}, "certificate and key"),
        ({"token": "/does/not/exist"}, "cannot be read"),
    ):
        with pytest.raises(ClientError, match=says):
            connect("127.0.0.1:1", **settings)
    with pytest.raises(ClientError, match="address"):
        connect(" , ")


def test_a_closed_session_says_so() -> None:
    with live() as server:
        session = connect(server.address)
        session.close()
        session.close()
        with pytest.raises(ClientError, match="closed"):
            session.act(np.zeros(3, np.float32))


def test_importing_the_client_imports_nothing_of_ours_and_nothing_heavy() -> None:
    code = "import worldloom_client, sys; print(' '.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.partition(".")[0] for name in out.stdout.split()}
    assert not names & {"torch", "ray", "gymnasium", "worldloom", "worldloom_dist"}
    # gRPC brings asyncio, and half of the time and a third of the memory of all the rest: it comes
    # with the first connection
    assert not names & {"grpc", "asyncio", "ssl", "concurrent", "multiprocessing"}


def test_streams_are_named_after_the_session() -> None:
    with live() as server, connect(server.address) as session:
        play(session, 10)
        session.close()
        (stream,) = streams(server.rig.shard)
        assert isinstance(stream, StreamId)
        assert stream.slot >= 1_000_000


def test_an_answer_that_was_not_waited_for_is_not_that_of_the_next_question() -> None:
    """Ctrl-C in a notebook while ``act`` waits; the same session is used on."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    with live() as server, connect(server.address) as session:
        gate = server.rig.decider.gate
        session.act(np.zeros(3, np.float32))
        server.thread.loop.call_soon_threadsafe(gate.clear)
        timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            session.act(np.ones(3, np.float32))
        timer.join()
        server.thread.loop.call_soon_threadsafe(gate.set)
        third = session.act(np.full(3, 2, np.float32))
        fourth = session.act(np.full(3, 3, np.float32))
    signal.signal(signal.SIGINT, former)
    assert third == pytest.approx(0.02, abs=0.006)  # what FakePolicy says to its third question
    assert fourth == pytest.approx(0.03, abs=0.006)


def test_a_watch_outlives_an_answer_that_comes_while_it_looks() -> None:
    class Watch:
        def __init__(self):
            self.deadlines = [1e12, None, 0.0]

        @property
        def deadline(self):
            return self.deadlines.pop(0)

    class Looks:
        def __init__(self):
            self.left = 3

        def wait(self, _):
            self.left -= 1
            return self.left < 0

    class Stream:
        is_cancelled = False

        def cancel(self):
            self.is_cancelled = True

    watch = Watch()
    stream = Stream()
    _watch(lambda: watch, stream, Looks(), 0.0)
    assert stream.is_cancelled  # for the question after that answer
