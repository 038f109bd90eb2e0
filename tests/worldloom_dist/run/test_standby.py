"""Whether a run keeps a standby learner."""

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom_dist.run import standby as module
from worldloom_dist.run.cli import parse
from worldloom_dist.run.standby import describe_standby, keep_standby, mirror_limit

BASE = ("--preset", "debug", "--runtime", "ray", "--learner.device", "cpu", "--learner.standby")


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(module, "memory_left", lambda: 4_000_000_000)


def test_memory_decides_where_nothing_is_said():
    config = parse([*BASE, "auto"])
    assert keep_standby(config, 0.5e9) == (True, "3.5 GB of memory are left")
    is_kept, why = keep_standby(config, 3e9)
    assert not is_kept
    assert why == "1.0 GB of memory are left, and it wants 1.5"
    assert keep_standby(parse([*BASE, "on"]), 3e9)[0], "one that was asked for is kept"
    assert not keep_standby(parse([*BASE, "off"]))[0]
    assert mirror_limit() == 1_000_000_000


def test_a_gpu_is_not_shared_unsaid(monkeypatch):
    monkeypatch.setattr(module, "has_gpu_driver", lambda: True)
    config = parse([*BASE, "auto", "--learner.device", "auto"])
    assert keep_standby(config) == (False, "a second learner would take a part of the GPU")
    assert keep_standby(parse([*BASE, "auto"]))[0], "the learner was told to use the CPU"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--learners", "2"), "2 learner ranks"),
        (("--learner.device", "cuda:0"), "a part of the GPU"),
        (("--address", "127.0.0.1:1"), "on a cluster that was joined"),
    ],
)
def test_where_there_can_be_none_it_is_refused_and_auto_says_why(words, why):
    with pytest.raises(ConfigurationError, match=rf"learner.standby must be auto or off.*{why}"):
        parse([*BASE, "on", *words])
    is_kept, reason = keep_standby(parse([*BASE, "auto", *words]))
    assert not is_kept
    assert why in reason


def test_a_system_without_such_memory_has_none(monkeypatch):
    monkeypatch.delattr(module.os, "memfd_create")
    assert keep_standby(parse([*BASE, "on"]))[0] is False


def test_a_local_run_has_none():
    assert not keep_standby(parse([*BASE, "on", "--runtime", "local"]))[0]


def test_the_announcement_says_what_happens_when_a_learner_dies():
    assert "goes on when that dies" in describe_standby((True, "x"))
    assert "started again from its newest checkpoint (x)" in describe_standby((False, "x"))
