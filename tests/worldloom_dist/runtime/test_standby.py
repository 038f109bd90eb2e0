"""The standby behind a learner: when it is started, what it is told, and when it may take over."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from worldloom_dist.ports import MirrorPlace
from worldloom_dist.runtime.server_watch import lives
from worldloom_dist.runtime.standby import TITLE, StandbyKeeper, end_process
from worldloom_dist.runtime.supervisor import Role


class Actor:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple]] = []

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *args: self.told.append((method, args)))


class FakeSupervisor:
    """Has roles, and starts what it is given at once."""

    def __init__(self) -> None:
        self.roles: dict[str, Role] = {}
        self.add(Role("learner", 0, lambda _: Actor(), lambda _: None))

    def add(self, role: Role) -> None:
        role.handle = role.start(0)
        self.roles[role.name] = role

    def forget(self, role: Role) -> None:
        del self.roles[role.name]

    def of_kind(self, kind: str) -> list[Role]:
        return [role for role in self.roles.values() if role.kind == kind]

    def up(self, name: str, **status: object) -> Role:
        role = self.roles[name]
        role.ready_at = 1.0
        role.status = status
        return role


@pytest.fixture
def supervisor():
    return FakeSupervisor()


def keeper_of(supervisor, *, is_wanted=True, end=lambda _: True):
    return StandbyKeeper(supervisor, lambda _: Actor(), is_wanted=is_wanted, end=end)


def test_it_is_started_once_the_learner_trains_and_nothing_else_comes_up(supervisor):
    keeper = keeper_of(supervisor)
    keeper.look(has_room=True)
    supervisor.up("learner-0", state="starting")
    keeper.look(has_room=True)
    supervisor.up("learner-0", state="training")
    keeper.look(has_room=False)
    assert keeper.role is None
    keeper.look(has_room=True)
    keeper.look(has_room=True)
    assert [*supervisor.roles] == ["learner-0", "standby-0"]


def test_a_run_that_wants_none_has_none(supervisor):
    keeper = keeper_of(supervisor, is_wanted=False)
    supervisor.up("learner-0", state="training")
    keeper.look(has_room=True)
    assert keeper.role is None
    assert keeper.take(2) is None


def test_it_is_told_once_where_the_state_is_and_again_when_that_moves(supervisor):
    keeper = keeper_of(supervisor)
    supervisor.up("learner-0", state="training", mirror=None)
    keeper.look(has_room=True)
    standby = supervisor.up("standby-0", state="standby")
    keeper.look(has_room=True)
    assert standby.handle.told == []
    places = [MirrorPlace(7, 12, 1), MirrorPlace(7, 12, 2)]
    for place in places:
        supervisor.up("learner-0", state="training", mirror=place)
        keeper.look(has_room=True)
        keeper.look(has_room=True)
    assert standby.handle.told == [("follow", (place,)) for place in places]
    supervisor.add(Role("standby", 0, lambda _: Actor(), lambda _: None))  # it died
    again = supervisor.up("standby-0", state="standby")
    keeper.look(has_room=True)
    assert again.handle.told == [("follow", (places[1],))]


def test_it_is_said_once_when_it_is_ready(supervisor, caplog):
    caplog.set_level("INFO")
    keeper = keeper_of(supervisor)
    supervisor.up("learner-0", state="training")
    keeper.look(has_room=True)
    for status in ({"state": "starting", "follows": 1}, {"state": "standby"}):
        supervisor.up("standby-0", **status)
        keeper.look(has_room=True)
    assert "is ready" not in caplog.text
    supervisor.up("standby-0", state="standby", follows=1)
    for _ in range(2):
        keeper.look(has_room=True)
    assert caplog.text.count("standby-0 is ready to go on") == 1


def test_it_takes_over_when_the_former_learner_has_ended_and_a_new_one_is_started(supervisor):
    ended = []
    keeper = keeper_of(supervisor, end=lambda pid: ended.append(pid) or True)
    supervisor.up("learner-0", state="training", pid=123)
    keeper.look(has_room=True)
    standby = supervisor.up("standby-0", state="standby")
    assert keeper.take(2) is standby.handle
    assert ended == [123]
    assert standby.handle.told == [("take_over", (2,))]
    assert keeper.role is None, "its process is the learner's now"
    supervisor.up("learner-0", state="starting")
    keeper.look(has_room=True)
    assert keeper.role is None
    supervisor.up("learner-0", state="training")
    keeper.look(has_room=True)
    assert keeper.role.name == "standby-1", "the first one's name is taken"


def test_one_that_is_still_being_built_is_nearer_than_a_new_process(supervisor):
    keeper = keeper_of(supervisor)
    supervisor.up("learner-0", state="training", pid=123)
    keeper.look(has_room=True)
    standby = supervisor.up("standby-0", state="starting")
    assert keeper.take(2) is standby.handle


@pytest.mark.parametrize("why", ["it died", "the former learner lives"])
def test_a_standby_that_is_gone_or_a_learner_that_lives_is_left(supervisor, why):
    keeper = keeper_of(supervisor, end=lambda _: why != "the former learner lives")
    supervisor.up("learner-0", state="training", pid=123)
    keeper.look(has_room=True)
    standby = supervisor.up("standby-0", state="standby")
    if why == "it died":
        standby.ready_at = None
    assert keeper.take(2) is None
    assert standby.handle.told == []
    assert keeper.role is standby


@pytest.mark.parametrize("stopped", [False, True])
def test_a_former_learner_is_ended_for_good_also_when_it_is_stopped(stopped):
    program = "import time; time.sleep(60)"
    command = [TITLE, "-c", program]
    process = subprocess.Popen(command, executable=sys.executable)
    try:
        deadline = time.monotonic() + 10
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(TITLE.encode()):
            assert time.monotonic() < deadline  # the system has not put its name there yet
            time.sleep(0.001)
        if stopped:
            os.kill(process.pid, 19)
        assert end_process(process.pid)
        assert process.wait(10) == -9
    finally:
        process.kill()
    assert end_process(process.pid), "it is gone"


def test_another_process_that_has_the_number_of_a_learner_is_left_alone():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert end_process(process.pid)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)


def test_a_zombie_counts_as_ended():
    import psutil

    process = subprocess.Popen([sys.executable, "-c", "pass"])
    known = psutil.Process(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not lives(known)
    process.wait(10)
