"""A run that cannot draw its env is told so before it begins, and one that was not asked to draw
goes on without.
"""

import sys

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig
from worldloom_dist.run.cli import parse
from worldloom_dist.run.drawing import drawable, why_not_drawn


@pytest.fixture
def no_pygame(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    monkeypatch.setitem(sys.modules, "pygame.gfxdraw", None)


def test_an_env_that_draws_changes_nothing() -> None:
    assert why_not_drawn(EnvConfig(env="gym:Pendulum-v1")) == ""
    config = parse(["--preset", "quick"])
    assert drawable(config) is config


def test_the_demo_goes_on_without_its_video(no_pygame, caplog) -> None:
    config = drawable(parse(["--preset", "quick"]))
    assert config.eval_videos == 0
    assert "makes no videos" in caplog.text
    assert "pygame" in caplog.text
    assert "classic" in caplog.text


def test_videos_that_were_asked_for_are_refused_before_anything_starts(no_pygame) -> None:
    config = parse(["--env", "gym:Pendulum-v1", "--agent", "tdmpc2:ci", "--eval-videos", "2"])
    with pytest.raises(ConfigurationError, match=r"eval_videos: .*pygame.*classic"):
        drawable(config)


def test_a_cluster_draws_by_itself(no_pygame) -> None:
    config = parse(["--preset", "quick", "--address", "auto"])
    assert drawable(config) is config


def test_of_several_tasks_only_those_that_are_watched_must_draw() -> None:
    tasks = {
        "swing": {"env": "gym:Pendulum-v1", "settings": {}},
        "blind": {"env": "toy:point", "settings": {}},
    }
    several = EnvConfig(env="gym:Pendulum-v1,toy:point", tasks=tasks)
    assert why_not_drawn(several).startswith("task blind: ")
    assert why_not_drawn(several, ["swing"]) == ""
