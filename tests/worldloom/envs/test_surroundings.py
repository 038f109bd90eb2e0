"""What an env does to the process it lives in is undone, and an env that needs a main thread is
found out before a run.
"""

import asyncio
import logging
import logging.config
import os
import signal
import sys
import tempfile
import threading
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig
from worldloom.envs.factory import make_env, probe_env
from worldloom.envs.surroundings import Surroundings
from worldloom.envs.thread_check import ThreadCheck, needs_main_thread


class Plain(gymnasium.Env):
    """Three numbers in, one out, episodes of four steps; ``disturb`` is called where ``place``
    says.
    """

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Box(-1, 1, (1,))
    place = "never"

    def __init__(self):
        self.at("init")

    def at(self, place):
        if place == self.place:
            self.disturb()

    def disturb(self):
        """Nothing."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.at("reset")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.at("step")
        return np.zeros(3, np.float32), 1.0, False, self.steps == 4, {}


def ignore_signals():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def clear_handlers():
    logging.root.handlers.clear()


def configure_logging():
    logging.config.dictConfig({"version": 1})


def quiet_loggers():
    for name in ("", "worldloom", "worldloom_dist"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


DISTURBANCES = {
    "signals": ignore_signals,
    "grad": lambda: torch.set_grad_enabled(False),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "threads": lambda: torch.set_num_threads(2),
    "logging": logging.disable,
    "handlers": clear_handlers,
    "config": configure_logging,
    "seterr": lambda: np.seterr(all="raise"),
    "levels": quiet_loggers,
    "warnings": lambda: warnings.simplefilter("error", ResourceWarning),
    "depth": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "autocast": lambda: torch.autocast("cpu", torch.float16).__enter__(),
    "device": lambda: torch.set_default_device("meta"),
    "precision": lambda: torch.set_float32_matmul_precision("medium"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
}
QUICK = ("grad", "dtype", "autocast", "logging", "levels", "handlers")


def state():
    loggers = [
        logging.getLogger("worldloom.envs.local").disabled,
        logging.getLogger("worldloom_dist.lockstep.runtime").disabled,
    ]
    handlers = [
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGHUP),
        signal.getsignal(signal.SIGUSR1),
        *logging.root.handlers,
    ]
    torchs = [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()]
    torchs += [torch.is_autocast_enabled("cpu"), torch.get_default_device()]
    torchs += [torch.get_autocast_dtype("cpu"), torch.autocast_increment_nesting()]
    torch.autocast_decrement_nesting()
    torchs += [torch.get_float32_matmul_precision(), torch.is_anomaly_enabled()]
    torchs += [torch.are_deterministic_algorithms_enabled()]
    levels = [logging.getLogger(name).level for name in ("", "worldloom", "worldloom_dist")]
    errors = [entry for entry in warnings.filters if entry[0] == "error"]
    python = [errors, sys.getrecursionlimit(), logging.root.manager.disable, levels]
    return handlers, loggers, torchs, python, np.geterr()


@pytest.fixture
def env_of(monkeypatch):
    """The name of an env whose ``disturb`` and ``place`` are these."""

    def make(place, disturb):
        module = sys.modules[__name__]
        kind = type("Disturber", (Plain,), {"place": place, "disturb": lambda self: disturb()})
        monkeypatch.setattr(module, "Disturber", kind, raising=False)
        monkeypatch.setitem(sys.modules, "disturbing_env", module)
        return EnvConfig(env="disturbing_env:Disturber")

    return make


def test_half_precision_uses_the_weights_of_now_after_an_env_that_stays_in_autocast(env_of):
    """A depth that stays above 0 would keep every weight that autocast has cast."""
    env = make_env(env_of("reset", DISTURBANCES["autocast"]), num_envs=1, seed=0)
    env.reset()
    layer = torch.nn.Linear(1, 1, bias=False)
    seen = []
    for value in (1.0, 2.0):
        with torch.no_grad():
            layer.weight.fill_(value)
        with torch.autocast("cpu", torch.bfloat16):
            seen.append(float(layer(torch.ones(1, 1)).detach()))
    assert seen == [1.0, 2.0]
    env.close()


@pytest.mark.parametrize(
    ("place", "what"),
    [
        *(("init", what) for what in DISTURBANCES),
        *(("reset", what) for what in DISTURBANCES),
        *(("step", what) for what in QUICK),
    ],
)
def test_what_the_process_shares_is_as_it_was_after_every_call(env_of, caplog, place, what):
    logging.getLogger("worldloom_dist.lockstep.runtime")
    before = state()
    env = make_env(env_of(place, DISTURBANCES[what]), num_envs=2, seed=0)
    assert state() == before
    env.reset()
    assert state() == before
    for _ in range(6):
        row = env.step({"action": np.zeros((2, 1), np.float32)})
        assert row.live.all()
        assert state() == before
    env.close()
    assert "Disturber' changed" in caplog.text or what in ("handlers", "config")


def test_an_env_that_leaves_a_deleted_working_directory_is_looked_at_all_the_same(env_of):
    def move():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)

    before = os.getcwd()
    assert probe_env(env_of("init", move))[0].obs["obs"].shape == (3,)
    assert os.getcwd() == before


def test_a_change_of_the_run_itself_between_two_calls_stays(env_of):
    surroundings = Surroundings("x")
    with surroundings:
        pass
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with surroundings:
            pass
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_look_at_an_env_leaves_the_working_directory_and_what_steers_cuda_and_ray(
    env_of, monkeypatch, tmp_path
):
    monkeypatch.setenv("RAY_ADDRESS", "mine")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folder = os.getcwd()

    def disturb():
        os.chdir(tmp_path)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["RAY_ADDRESS"] = "theirs"
        os.environ["MY_ASSETS"] = "here"

    probe_env(env_of("init", disturb))
    assert os.getcwd() == folder
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "mine"
    assert os.environ.pop("MY_ASSETS") == "here", "a variable of the env's own stays"


def handles_signals():
    former = signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, former)


def asks_for_a_loop():
    if threading.current_thread() is not threading.main_thread():
        asyncio.get_event_loop()


@pytest.mark.parametrize("place", ["init", "reset", "step"])
@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        (handles_signals, "signal only works in main thread"),
        (asks_for_a_loop, "no current event loop"),
    ],
)
def test_an_env_that_needs_a_main_thread_is_found_and_works_in_a_process_of_its_own(
    env_of, place, disturb, reason
):
    assert reason in needs_main_thread(env_of(place, disturb))


def test_an_env_that_works_anywhere_needs_no_main_thread_and_one_that_works_nowhere_is_refused(
    env_of,
):
    def fails():
        raise ValueError("broken anyway")

    assert needs_main_thread(env_of("never", fails)) == ""
    for place in ("init", "reset", "step"):
        with pytest.raises(ConfigurationError, match=r"Disturber.*broken anyway.*check-env"):
            needs_main_thread(env_of(place, fails))


def test_a_cancelled_task_of_an_env_costs_that_env_only(env_of):
    calls = []

    def cancel_once():
        calls.append(1)
        if len(calls) == 3:
            raise asyncio.CancelledError

    env = make_env(env_of("step", cancel_once), num_envs=2, seed=0)
    env.reset()
    for _ in range(4):
        env.step({"action": np.zeros((2, 1), np.float32)})
    assert [fault.env for fault in env.drain_faults()] == [0]
    env.close()


HOME = "tests.worldloom_dist.foreign_envs"


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (f"{HOME}:NeedsMainThread", "signal only works in main thread"),
        (f"{HOME}:Ordinary", ""),
        (f"{HOME}:Deadly", ""),
        ("toy:point", ""),
    ],
)
def test_the_check_runs_in_a_process_that_an_env_may_kill(env, reason):
    found = ThreadCheck(EnvConfig(env=env)).result()
    assert reason in found
    assert bool(found) == bool(reason)


def test_an_env_that_fails_at_once_is_refused_by_the_check():
    with pytest.raises(
        ConfigurationError, match=r"FourValues' fails in its first steps: .*four values"
    ):
        ThreadCheck(EnvConfig(env=f"{HOME}:FourValues")).result()
