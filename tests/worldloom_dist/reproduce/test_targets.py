"""The table of published results names what exists, fits into its replay, and ends where a
published number stands.
"""

import pytest

from worldloom.core.exceptions import ConfigurationError
from worldloom.envs.config import EnvConfig
from worldloom_dist.plot.reference import task_key
from worldloom_dist.reproduce import TARGETS, find_target
from worldloom_dist.reproduce.targets import flags
from worldloom_dist.run.cli import parse


@pytest.mark.parametrize("name", TARGETS)
def test_a_name_is_a_run_that_the_command_line_takes(name: str) -> None:
    target = TARGETS[name]
    config = parse(flags(target.settings))
    assert config == target.config().__class__.from_dict(
        {**target.config().to_dict(), "preset": target.settings["preset"]}
    )
    assert config.env_steps == target.env_steps
    assert config.agent.partition(":")[0] == target.algorithm
    assert not config.problems()


@pytest.mark.parametrize("name", TARGETS)
def test_no_row_of_a_curve_is_evicted(name: str) -> None:
    config = TARGETS[name].config()
    repeat = config.env.resolved().action_repeat or 1
    decisions = config.env_steps // repeat
    assert config.replay.capacity_steps >= decisions


@pytest.mark.parametrize("name", TARGETS)
def test_another_end_has_hours_in_proportion_and_room_for_its_rows(name: str) -> None:
    target = TARGETS[name]
    longer = target.ending_at(4 * target.env_steps)
    config = parse(flags(longer.settings))
    decisions = longer.env_steps // (config.env.resolved().action_repeat or 1)
    assert config.replay.capacity_steps > decisions
    assert longer.hours == (None if target.hours is None else pytest.approx(4 * target.hours, 0.05))
    shorter = target.ending_at(target.env_steps // 2)
    assert shorter.config().replay == target.config().replay
    assert target.ending_at(target.env_steps) == target


@pytest.mark.parametrize("name", [name for name in TARGETS if not name.startswith("gym/")])
def test_what_differs_is_said(name: str) -> None:
    config = TARGETS[name].config()
    said = TARGETS[name].differs
    assert ("weights that are seconds old" in said) == (config.runtime == "ray")
    assert ("running episode" in said) == name.startswith("tdmpc2/")
    assert ("the paper: 128" in said) == (config.env.suite == "atari")


def test_the_hours_of_a_shorter_run_are_fewer() -> None:
    assert TARGETS["tdmpc2/cup-catch"].ending_at(20_000).hours == 0.9


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.published])
def test_a_published_curve_is_of_that_task_and_has_a_point_at_the_end(name: str) -> None:
    target = TARGETS[name]
    published = target.curve()
    config = target.config()
    assert task_key(published.task) == task_key(config.env.env)
    assert published.has_pixels == bool(config.env.pixels or config.env.suite == "atari")
    place = target.last_compared()
    assert place is not None
    last = (
        published.curve.steps[place] if published.windows is None else published.windows[place][1]
    )
    assert 0.95 * target.env_steps <= last <= target.env_steps
    if target.measured == "evaluation":
        assert config.eval_episodes >= 10


@pytest.mark.parametrize("name", TARGETS)
def test_a_smoke_run_has_the_same_env_and_is_short(name: str) -> None:
    target = TARGETS[name]
    small = target.smaller()
    config = parse(flags(small.settings))
    repeat = config.env.resolved().action_repeat or 1
    assert config.env == target.config().env
    assert config.env_steps // repeat <= 1000
    assert config.agent.endswith(":ci")
    assert config.runtime == target.config().runtime
    assert EnvConfig(env=config.env.env).suite == target.config().env.suite


def test_an_unknown_name_is_one_sentence_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean tdmpc2/cup-catch"):
        find_target("tdmpc2/cup-cach")
