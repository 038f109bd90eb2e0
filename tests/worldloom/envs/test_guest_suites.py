"""Suites that an installed package brings, and what they lack, in one sentence."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from tests.guest_packages import install
from worldloom.core.exceptions import ConfigurationError
from worldloom.core.guests import ENV_SUITES
from worldloom.envs import thread_check
from worldloom.envs.building import EnvBuildError
from worldloom.envs.config import EnvConfig, suite_names
from worldloom.envs.consent import module_of
from worldloom.envs.factory import make_env, probe_env, probed
from worldloom.envs.thread_check import needs_main_thread

WALK = """
import gymnasium
import numpy as np
from gymnasium import spaces

DEFAULTS = {"time_limit": 5}


class Walk(gymnasium.Env):
    observation_space = spaces.Box(0.0, 9.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, places):
        self.places = places

    def reset(self, *, seed=None, options=None):
        self.place = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.place += 1
        done = self.place == self.places
        return np.full(1, self.place, np.float32), 1.0, done, False, {}


def make(config):
    return Walk(int(config.name))


def picture(config, renders=False):
    return config


def vector(config):
    return gymnasium.vector.SyncVectorEnv([lambda: Walk(3)])


def raises(config):
    raise ZeroDivisionError("no places")
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a package that brings ``walk`` and others; the module has a name of its own each time,
    because Python keeps what it has imported.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"walks_{tmp_path.name}.py").write_text(WALK)
    home = f"walks_{tmp_path.name}"
    points = {
        "walk": home,
        "made": f"{home}:make",
        "odd": f"{home}:picture",
        "zero": f"{home}:raises",
        "lacks": f"{home}:nothing",
        "gone": "not_there_at_all",
        "many": f"{home}:vector",
        "toy": home,
    }
    install(tmp_path, "my-walks", ENV_SUITES, points)
    return tmp_path


def test_a_suite_of_a_package_is_a_prefix_with_settings_of_its_own(site: Path) -> None:
    config = EnvConfig(env="walk:3")
    assert (config.suite, config.name, config.family) == ("walk", "3", "walk")
    assert config.resolved().time_limit == 5
    assert EnvConfig(env="walk:3", time_limit=9).resolved().time_limit == 9
    assert EnvConfig.from_settings("walk:3", config.resolved().settings()) == config.resolved()
    spec, _ = probe_env(config)
    assert (spec.name, spec.episode_limit) == ("walk:3", 5)
    env = make_env(EnvConfig(env="made:2"), num_envs=2, seed=0)
    assert env.spec.obs["obs"].shape == (1,)
    env.close()


def test_an_installed_package_was_agreed_to(site: Path) -> None:
    assert module_of("walk:3") is None
    assert module_of("walks_elsewhere:make") == "walks_elsewhere"


def test_ours_come_first_and_names_are_offered(site: Path) -> None:
    assert probe_env(EnvConfig(env="toy:counting"))[0].name == "toy:counting"
    assert suite_names().count("toy") == 1
    assert suite_names()[-2:] == ["walk", "zero"]
    with pytest.raises(ConfigurationError, match=r"no suite 'wlak'; did you mean walk\?"):
        EnvConfig(env="wlak:3")
    with pytest.raises(ConfigurationError, match="a name must follow the colon"):
        EnvConfig(env="walk:")
    with pytest.raises(ConfigurationError, match=r"env.pixels is for .* leave it out"):
        EnvConfig(env="walk:3", pixels=True)


@pytest.mark.parametrize(
    ("env", "kind", "text"),
    [
        ("gone:3", ConfigurationError, "'gone' of my-walks 1.2 cannot be imported: ModuleNotFound"),
        ("lacks:3", ConfigurationError, r"has no function nothing\(config\)"),
        ("odd:3", ConfigurationError, "returned a EnvConfig without reset, step"),
        ("many:3", ConfigurationError, "returned a SyncVectorEnv; it must return one Gymnasium"),
        ("zero:3", EnvBuildError, "ZeroDivisionError: no places"),
        ("walk:x", EnvBuildError, "ValueError: invalid literal"),
    ],
)
def test_what_a_suite_lacks_is_one_sentence(
    env: str, kind: type[Exception], text: str, site: Path
) -> None:
    with pytest.raises(kind, match=text) as caught:
        probe_env(EnvConfig(env=env))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        ('{"time_limt": 5}', r"its default 'time_limt' is no setting .* did you mean time_limit\?"),
        ("3", "must map settings of EnvConfig to values, got int"),
    ],
)
def test_defaults_that_are_none_are_told(defaults: str, text: str, site: Path) -> None:
    name = f"wrong_{site.name}"
    (site / f"{name}.py").write_text(WALK.replace('{"time_limit": 5}', defaults))
    install(site, "other-walks", ENV_SUITES, {"wrong": name})
    with pytest.raises(ConfigurationError, match=text):
        EnvConfig(env="wrong:3").resolved()


SIGNALS = """
import signal
import gymnasium
import numpy as np
from gymnasium import spaces


class Signals(gymnasium.Env):
    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        signal.signal(signal.SIGUSR2, signal.getsignal(signal.SIGUSR2))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


def make(config):
    return Signals()
"""


def test_among_several_tasks_foreign_ones_alone_are_tried_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"signals_{tmp_path.name}.py").write_text(SIGNALS)
    install(tmp_path, "my-signals", ENV_SUITES, {"signals": f"signals_{tmp_path.name}"})
    reason = needs_main_thread(probed(EnvConfig(env="toy:point,signals:one")))
    assert "signal only works in main thread" in reason
    toys = probed(EnvConfig(env="toy:point,toy:counting"))
    with patch.object(thread_check, "make_env") as tried:
        assert needs_main_thread(toys) == ""
    tried.assert_not_called()


@pytest.mark.parametrize("asked", ["make", "DEFAULTS"])
def test_a_module_that_leaves_when_it_is_asked_for_a_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    home = f"leaves_{tmp_path.name}"
    lines = ["def __getattr__(name):", f"    if name == {asked!r}:", "        raise SystemExit(5)"]
    lines += ["    raise AttributeError(name)"]
    (tmp_path / f"{home}.py").write_text("\n".join(lines) + "\n")
    install(tmp_path, "leaves", ENV_SUITES, {"leaves": home})
    with pytest.raises(ConfigurationError, match=r"'leaves'.*SystemExit: 5"):
        make_env(EnvConfig(env="leaves:1"), seed=1)
    if asked == "make":
        with pytest.raises(ConfigurationError, match=r"sys.exit\(5\)"):
            make_env(EnvConfig(env=f"{home}:make"), seed=1)
