import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.ending import ended
from worldloom.core.exceptions import ConfigurationError, EnvFailureError, StateError
from worldloom.core.memory import MemoryBound
from worldloom.envs import faults
from worldloom.envs import supervised as supervised_module
from worldloom.envs.config import EnvConfig, EnvLimits
from worldloom.envs.factory import make_env
from worldloom.envs.memory import MemoryWatch
from worldloom.envs.supervised import SupervisedVectorEnv
from worldloom.envs.vector import EnvStep, sample_actions

ZERO = {"action": np.zeros((2, 2), np.float32)}
ZERO_3 = {"action": np.zeros((3, 2), np.float32)}


@pytest.fixture(autouse=True)
def _faulty_envs_are_importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("FAULTY_DIR", str(tmp_path))


@pytest.fixture
def opened() -> Iterator[list[SupervisedVectorEnv]]:
    envs: list[SupervisedVectorEnv] = []
    yield envs
    for env in envs:
        env.close()


def supervised(
    opened: list[SupervisedVectorEnv], name: str, limits: EnvLimits | None = None, num_envs: int = 2
) -> SupervisedVectorEnv:
    env = make_env(EnvConfig(env=name), num_envs=num_envs, seed=0, limits=limits, processes=True)
    assert isinstance(env, SupervisedVectorEnv)
    opened.append(env)
    return env


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def step_until_back(env: SupervisedVectorEnv) -> list[EnvStep]:
    """Step until one env has failed and is back."""
    rows = [env.step(ZERO)]
    deadline = time.monotonic() + 60
    while len(rows) < 2 or rows[-2].live.all() or not rows[-1].live.all():
        assert time.monotonic() < deadline, "the env did not come back"
        rows.append(env.step(ZERO))
    return rows


def test_processes_give_the_same_rows_as_envs_in_this_process(
    opened: list[SupervisedVectorEnv],
) -> None:
    far = supervised(opened, "gym:Pendulum-v1")
    near = make_env(EnvConfig(env="gym:Pendulum-v1"), num_envs=2, seed=0)
    assert far.spec == near.spec
    rngs = [np.random.default_rng(index) for index in range(2)]
    pairs = [(far.reset(), near.reset())]
    for _ in range(203):
        action = sample_actions(far.spec, rngs)
        pairs.append((far.step(action), near.step(action)))
    for a, b in pairs:
        for name in ("reward", "is_first", "terminated", "truncated", "live"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert np.array_equal(a.obs["obs"], b.obs["obs"])
    assert sum(a.truncated.sum() for a, _ in pairs) == 2


@pytest.mark.parametrize(
    ("name", "kind", "detail"),
    [
        ("hangs_in_step", "hung", "step took longer than 2 s"),
        ("hangs_in_reset", "hung", "reset took longer than 2 s"),
        ("hangs_holding_the_interpreter", "hung", "step took longer"),
        ("exits", "died", "exited with status 3"),
        ("segfaults", "died", "killed by SIGSEGV"),
        ("raises", "raised", "RuntimeError: broken on purpose"),
        ("calls_sys_exit", "raised", "SystemExit: 3"),
        ("hoards_memory", "memory", "GB of memory, more than the 0.3 that --actors.env-memory-gb"),
        ("gives_nan", "raised", "not finite"),
        ("gives_wrong_shape", "raised", "observation 'obs'"),
    ],
)
def test_misbehaving_env_costs_itself_only_and_comes_back(
    name: str,
    kind: str,
    detail: str,
    opened: list[SupervisedVectorEnv],
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = {
        "hung": EnvLimits(step_timeout_s=2.0, reset_timeout_s=2.0),
        "memory": EnvLimits(memory_gb=0.3, grace_s=30.0),
    }.get(kind, EnvLimits())
    env = supervised(opened, f"faulty_envs:{name}", limits)
    first = env.reset()
    assert first.live.all()
    before = env.pids
    with caplog.at_level(logging.WARNING):
        rows = step_until_back(env)
    (fault,) = env.drain_faults()
    assert (fault.kind, fault.is_quarantined) == (kind, False)
    assert detail in fault.detail
    broken = fault.env
    other = 1 - fault.env
    assert all(row.live[other] for row in rows)
    back = rows[-1]
    assert back.is_first[broken]
    assert back.obs["obs"][broken].tolist() == [0, 0, 0]
    after = env.pids
    assert before[other] == after[other]
    assert before[broken] != after[broken]
    assert not is_running(before[broken] or 0)
    if kind == "hung":
        assert "faulty_envs.py" in caplog.text, "the log must hold the stack of the env that hung"


def test_an_env_that_holds_too_much_is_named_in_the_log(
    opened: list[SupervisedVectorEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(faults.logger, "log", lambda _, text, *words: said.append(text % words))
    env = supervised(opened, "faulty_envs:hoards_memory", EnvLimits(memory_gb=0.3, grace_s=30.0))
    env.reset()
    step_until_back(env)
    (fault,) = env.drain_faults()
    wanted = f"env {fault.env} was ended for its memory (failure 1 in the window): it held 0."
    assert said[0].startswith(wanted)


def test_where_memory_is_short_only_the_one_that_grew_is_ended(
    opened: list[SupervisedVectorEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of 1.2 GB for 2 envs, of which nearly nothing is left from the beginning."""
    tight = MemoryBound("container", 1_200_000_000, 10_000_000)
    monkeypatch.setattr(
        supervised_module, "MemoryWatch", partial(MemoryWatch, bounds=lambda: [tight])
    )
    env = supervised(opened, "faulty_envs:hoards_memory", EnvLimits(grace_s=30.0))
    env.reset()
    before = env.pids
    step_until_back(env)
    (fault,) = env.drain_faults()
    assert fault.kind == "memory"
    assert "container's 1.2 GB 0.01 were left" in fault.detail
    assert env.pids[1 - fault.env] == before[1 - fault.env]


def test_others_go_on_while_one_hangs_until_its_deadline(opened: list[SupervisedVectorEnv]) -> None:
    env = supervised(
        opened, "faulty_envs:hangs_in_step", EnvLimits(step_timeout_s=3.0, grace_s=0.05), num_envs=4
    )
    action = {"action": np.zeros((4, 2), np.float32)}
    rows = [env.reset()]
    faults = env.drain_faults()
    while not faults:
        rows.append(env.step(action))
        faults = env.drain_faults()
    ((broken, kind),) = [(fault.env, fault.kind) for fault in faults]
    assert kind == "hung"
    absent = [row for row in rows if not row.live[broken]]
    assert len(absent) > 10, "they did not stand still"
    for other in {0, 1, 2, 3} - {broken}:
        counts = [row.obs["obs"][other, :2].tolist() for row in rows if row.live[other]]
        assert counts[:6] == [[0, step] for step in range(6)]
        assert len(counts) > 10


def test_whoever_has_other_things_to_do_need_not_wait_for_envs_that_are_all_late(
    opened: list[SupervisedVectorEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_module, "USUAL_STEPS", 0)
    env = supervised(
        opened, "faulty_envs:hangs_in_step", EnvLimits(step_timeout_s=1.0, grace_s=0.05), num_envs=1
    )
    rows = [env.reset()]
    faults = env.drain_faults()
    action = {"action": np.zeros((1, 2), np.float32)}
    while not faults:
        env.patience_s = 0.0 if rows[-1].live[0] else 0.02
        rows.append(env.step(action))
        faults = env.drain_faults()
    assert [fault.kind for fault in faults] == ["hung"], "the deadline holds though no one waits"
    assert sum(not row.live.any() for row in rows) > 10
    env.patience_s = float("inf")
    back = env.step(action)
    assert back.live[0]
    assert back.is_first[0]


def test_an_env_that_has_answered_is_not_taken_for_hung_though_nobody_looked_in_time(
    opened: list[SupervisedVectorEnv],
) -> None:
    env = supervised(opened, "toy:counting")
    env.reset()
    pids = env.pids
    slot = env.slots[0]
    assert slot.process is not None
    env.ask(0, "step", {"action": np.zeros(2, np.float32)})
    assert slot.process.connection.poll(30)
    slot.deadline_s = 0.0
    env.end_hung()
    assert env.step(ZERO).obs["obs"][:, 1].tolist() == [1, 1]
    assert env.pids == pids
    assert env.drain_faults() == []


def test_infinite_grace_waits_for_every_env(opened: list[SupervisedVectorEnv]) -> None:
    env = supervised(opened, "faulty_envs:DawdlingEnv", EnvLimits(grace_s=float("inf")), num_envs=4)
    action = {"action": np.zeros((4, 2), np.float32)}
    rows = [env.reset(), *(env.step(action) for _ in range(20))]
    assert all(row.live.all() for row in rows)


def test_late_row_is_the_one_after_the_last_and_a_reset_waits_for_it(
    opened: list[SupervisedVectorEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised_module, "USUAL_STEPS", 0)
    env = supervised(opened, "faulty_envs:DawdlingEnv", EnvLimits(grace_s=0.02), num_envs=3)
    rng = np.random.default_rng(0)
    acted = np.zeros(3, np.float32)
    row = env.reset()
    late = 0
    while late < 3:
        action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        # the action of a row that is not live is no one's
        acted = np.where(row.live, action[:, 0], acted)
        row = env.step({"action": action})
        late += int(np.count_nonzero(~row.live))
        came = row.live & ~row.is_first
        assert np.array_equal(row.obs["obs"][came, 2], acted[came])
    row = env.reset()
    assert (row.live & row.is_first).all()
    assert (row.obs["obs"][:, 1] == 0).all()
    assert env.step(ZERO_3).obs["obs"][:, 1].max() == 1
    assert env.drain_faults() == []


def test_killed_process_is_replaced(opened: list[SupervisedVectorEnv]) -> None:
    env = supervised(opened, "toy:counting")
    env.reset()
    os.kill(env.pids[0] or 0, signal.SIGKILL)
    rows = step_until_back(env)
    assert [fault.kind for fault in env.drain_faults()] == ["died"]
    assert rows[-1].is_first[0]
    counts = [row.obs["obs"][1, :2].tolist() for row in rows[:6]]
    assert counts == [[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [1, 0]][: len(counts)]


def test_env_that_always_dies_ends_in_quarantine_with_the_reason(
    opened: list[SupervisedVectorEnv],
) -> None:
    limits = EnvLimits(max_failures=2, backoff_s=0.01)
    with pytest.raises(EnvFailureError, match=r"no env is left of 1; .* exited with status 4"):
        supervised(opened, "faulty_envs:always_exits", limits, num_envs=1)


def test_env_that_cannot_be_built_says_why(opened: list[SupervisedVectorEnv]) -> None:
    with pytest.raises(EnvFailureError, match="no licence for this simulator"):
        supervised(opened, "faulty_envs:cannot_be_built", EnvLimits(max_failures=1), num_envs=1)


def test_wrong_config_is_refused_at_once(opened: list[SupervisedVectorEnv]) -> None:
    with pytest.raises(ConfigurationError, match="did you mean counting"):
        supervised(opened, "toy:cuonting")


def test_vector_env_of_the_users_steps_in_this_process_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "worldloom_dist" / "actors"))
    with caplog.at_level(logging.WARNING):
        env = make_env(
            EnvConfig(env="counting_vectors:same_step"), num_envs=3, seed=0, processes=True
        )
    assert not env.has_deadlines
    assert env.reset().obs["obs"].tolist() == [[0, 0, 0]] * 3
    env.close()
    assert (
        "is a vector env, which cannot be split into supervised processes; it steps in this process"
        in caplog.text
    )


def test_close_ends_every_process(opened: list[SupervisedVectorEnv]) -> None:
    env = supervised(opened, "toy:counting")
    with pytest.raises(StateError, match="before reset"):
        env.step(ZERO)
    pids = [pid for pid in env.pids if pid]
    env.close()
    env.close()
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def test_env_processes_end_with_their_parent_even_while_they_hang(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys, numpy as np
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from worldloom.envs.config import EnvConfig
        from worldloom.envs.factory import make_env
        config = EnvConfig(env="faulty_envs:hangs_holding_the_interpreter")
        env = make_env(config, num_envs=2, seed=0, processes=True)
        env.reset()
        assert not {{"torch", "ray", "gymnasium"}} & set(sys.modules)
        print(*env.pids, flush=True)
        for _ in range(9):
            env.step({{"action": np.zeros((2, 2), np.float32)}})
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with ended(parent):
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        deadline = time.monotonic() + 20
        while not (tmp_path / "happened").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    parent.stdout.close()
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "an env process outlived its parent"
        time.sleep(0.02)
